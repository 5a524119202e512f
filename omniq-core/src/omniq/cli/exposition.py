"""Metrics in the text format that Prometheus reads, by its own library (``omniq-core[metrics]``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

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
    late = [(now - one.next_run).total_seconds() for one in schedules if one.next_run is not None and not one.paused]
    slots = [worker.about.concurrency for worker in workers if worker.about is not None]
    limits = [(one.limit, one) for one in usage if one.limit is not None]
    by_state = [(one.queue, state.value, one.counts.get(state, 0)) for one in stats for state in TaskState]
    waited = [(one.queue, one.oldest_ready or 0.0) for one in stats]
    running = [(limit.id, one.running) for limit, one in limits]
    held_back = [(limit.id, one.held_keys) for limit, one in limits]
    most = [(limit.id, limit.concurrency) for limit, _ in limits if limit.concurrency is not None]
    closed = [(limit.id, one.is_full or one.next_start is not None) for limit, one in limits]
    return [
        _gauge("tasks", "Tasks by state.", by_state, "queue", "state"),
        _gauge("oldest_ready_seconds", "For how long the oldest ready task has waited.", waited, "queue"),
        _gauge("queue_paused", "1 if the queue is paused.", [(one.queue, one.paused) for one in stats], "queue"),
        _gauge("workers", "Workers that were heard of within their lease.", [(len(workers),)]),
        _gauge("worker_slots", "Tasks that they can run at once.", [(sum(slots),)]),
        _gauge("running_tasks", "Tasks that they hold.", [(sum(len(worker.running) for worker in workers),)]),
        _gauge("schedules", "Schedules.", [(len(schedules),)]),
        _gauge("schedule_lag_seconds", "How late the latest schedule is.", [(max(0.0, *late) if late else 0.0,)]),
        _gauge("limit_running", "Tasks that run under a limit.", running, "limit"),
        _gauge("limit_concurrency", "How many tasks may run under a limit.", most, "limit"),
        _gauge("limit_held_keys", "Keys whose tasks a limit holds back.", held_back, "limit"),
        _gauge("limit_closed", "1 if a limit lets no further task start now.", closed, "limit"),
    ]


def _gauge(name: str, text: str, samples: Iterable[tuple[Any, ...]], *labels: str) -> Metric:
    """Return a gauge.

    :param samples: the values, each behind those of its labels.
    """
    from prometheus_client.core import GaugeMetricFamily

    gauge = GaugeMetricFamily(f"omniq_{name}", text, labels=labels)
    for *of_labels, value in samples:
        gauge.add_metric(of_labels, value)
    return gauge
