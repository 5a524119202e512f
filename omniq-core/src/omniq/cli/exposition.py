"""Metrics in the text format that Prometheus reads, by its own library (``omniq-core[metrics]``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from omniq._worker.metrics import BOUNDS, COUNTERS, Totals, histogram
from omniq._worker.worker_info import WorkerInfo
from omniq.cli.failures import UsageError
from omniq.cli.http import Response
from omniq.limit import LimitUsage
from omniq.schedule import Schedule
from omniq.storage import QueueStats
from omniq.task import TaskState

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["exposed", "require_library", "store_metrics", "worker_metrics"]

_HELP = {
    "started": "Attempts that have begun.",
    "retried": "Attempts that failed and are tried again.",
    "recovered": "Tasks of lost workers that this worker took back.",
    "released": "Tasks that were put back without an attempt that counts.",
}


def require_library() -> None:
    """Refuse to begin without the library.

    :raises UsageError: if it is not installed; the message says what to install.
    """
    try:
        import prometheus_client  # noqa: F401  # whether it is there
    except ImportError as error:
        raise UsageError("--http needs prometheus-client: pip install 'omniq-core[metrics]'") from error


def exposed(metrics: Iterable[Metric]) -> Response:
    """Return metrics as a scraper reads them."""
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.registry import Collector, CollectorRegistry

    class Given(Collector):
        def collect(self) -> Iterable[Metric]:
            return metrics

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Given())
    return Response(generate_latest(registry).decode(), kind=CONTENT_TYPE_LATEST)


def worker_metrics(totals: Totals, processes: int) -> list[Metric]:
    """Return what workers have counted.

    :param totals: the rows of all of them.
    :param processes: how many worker processes are alive.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    names = ("queue", "function")
    counted = {
        counter: CounterMetricFamily(f"omniq_tasks_{counter}", text, labels=names) for counter, text in _HELP.items()
    }
    ended = CounterMetricFamily("omniq_tasks_ended", "Tasks that have ended.", labels=(*names, "outcome"))
    times = {
        "run": HistogramMetricFamily("omniq_task_run_seconds", "How long attempts took.", labels=names),
        "wait": HistogramMetricFamily("omniq_task_wait_seconds", "How late attempts began.", labels=names),
    }
    for pair, row in totals.items():
        for counter, value in zip(COUNTERS, row, strict=False):
            if counter in counted:
                counted[counter].add_metric(pair, value)
            else:
                ended.add_metric((*pair, counter), value)
        for kind, family in times.items():
            counts, total = histogram(row, kind)
            bounds = [*map(str, BOUNDS), "+Inf"]
            family.add_metric(pair, list(zip(bounds, counts, strict=True)), total)
    alive = GaugeMetricFamily("omniq_worker_processes", "Worker processes that are alive.", value=processes)
    return [*counted.values(), ended, *times.values(), alive]


def store_metrics(
    stats: Sequence[QueueStats],
    workers: Sequence[WorkerInfo],
    schedules: Sequence[Schedule],
    now: datetime,
    usage: Sequence[LimitUsage] = (),
) -> list[Metric]:
    """Return what can be seen of a store.

    :param now: by the store's clock.
    :param usage: how its limits stand.
    """
    from prometheus_client.core import GaugeMetricFamily

    tasks = GaugeMetricFamily("omniq_tasks", "Tasks by state.", labels=("queue", "state"))
    oldest = GaugeMetricFamily(
        "omniq_oldest_ready_seconds", "For how long the oldest ready task has waited.", labels=("queue",)
    )
    paused = GaugeMetricFamily("omniq_queue_paused", "1 if the queue is paused.", labels=("queue",))
    for queue in stats:
        for state in TaskState:
            tasks.add_metric((queue.queue, state.value), queue.counts.get(state, 0))
        oldest.add_metric((queue.queue,), queue.oldest_ready or 0.0)
        paused.add_metric((queue.queue,), queue.paused)
    late = [
        (now - schedule.next_run).total_seconds()
        for schedule in schedules
        if schedule.next_run is not None and not schedule.paused
    ]
    gauges = {
        "omniq_workers": ("Workers that were heard of within their lease.", len(workers)),
        "omniq_worker_slots": ("Tasks that they can run at once.", sum(_slots(worker) for worker in workers)),
        "omniq_running_tasks": ("Tasks that they hold.", sum(len(worker.running) for worker in workers)),
        "omniq_schedules": ("Schedules.", len(schedules)),
        "omniq_schedule_lag_seconds": ("How late the latest schedule is.", max(0.0, *late) if late else 0.0),
    }
    single = [GaugeMetricFamily(name, text, value=value) for name, (text, value) in gauges.items()]
    return [tasks, oldest, paused, *single, *_limit_metrics(usage)]


def _limit_metrics(usage: Sequence[LimitUsage]) -> list[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    running = GaugeMetricFamily("omniq_limit_running", "Tasks that run under a limit.", labels=("limit",))
    most = GaugeMetricFamily("omniq_limit_concurrency", "How many tasks may run under a limit.", labels=("limit",))
    held = GaugeMetricFamily("omniq_limit_held_keys", "Keys whose tasks a limit holds back.", labels=("limit",))
    closed = GaugeMetricFamily("omniq_limit_closed", "1 if a limit lets no further task start now.", labels=("limit",))
    for one in usage:
        if one.limit is None:
            continue
        running.add_metric((one.limit.id,), one.running)
        held.add_metric((one.limit.id,), one.held_keys)
        closed.add_metric((one.limit.id,), one.is_full or one.next_start is not None)
        if one.limit.concurrency is not None:
            most.add_metric((one.limit.id,), one.limit.concurrency)
    return [running, most, held, closed]


def _slots(worker: WorkerInfo) -> int:
    return 0 if worker.about is None else worker.about.concurrency
