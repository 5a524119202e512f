"""``omniq exporter``: the numbers of a whole store, for Prometheus and for what scales workers."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import frozen

from omniq._client.queue import TaskQueue
from omniq._worker.worker_info import WorkerInfo, serves
from omniq.cli.app import now_of, open_queue
from omniq.cli.arguments import add_store, configuring
from omniq.cli.exposition import exposed, require_library, store_metrics
from omniq.cli.http import HttpServer, Query, Response, http_option, refused
from omniq.cli.logs import logging_to_stderr
from omniq.errors import StorageError
from omniq.limit import LimitUsage
from omniq.schedule import Schedule
from omniq.storage import QueueStats
from omniq.task import TaskState

__all__ = ["configure", "run"]

FRESH = 1.0
"""Seconds for which one look at the store serves all that ask."""
SOON = 60.0
"""Seconds within which a scheduled task is due soon: long enough to start a worker for it."""
MOST_LOOKED_AT = 500
"""Of each queue so many of the latest scheduled tasks are looked at for that."""


configure = configuring(
    "Serve the numbers of a store over HTTP until SIGTERM or Ctrl-C: /metrics for Prometheus, /scale for\n"
    "what starts and stops workers (/scale?queue=mail,slow for some queues), /livez and /readyz.\n"
    "One for each store is enough. It looks at most once a second, however many ask.",
    "omniq exporter redis://localhost --http 127.0.0.1:9100",
    add_store,
    http_option("where to listen (default 127.0.0.1:9100)", ("127.0.0.1", 9100)),
)


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    require_library()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with logging_to_stderr(logging.DEBUG if options.verbose else logging.INFO), open_queue(options.app) as queue:
        looks = _Looks(queue)
        routes: dict[str, Callable[[Query], Response]] = {
            "/metrics": lambda _: _metrics(looks),
            "/scale": lambda query: _scale(looks, query),
            "/livez": lambda _: Response("ok\n"),
            "/readyz": lambda _: _readyz(looks),
        }
        server = HttpServer(options.http, routes)
        stopped.wait()
        server.close()
    return 0


@frozen
class _Look:
    stats: Sequence[QueueStats]
    workers: Sequence[WorkerInfo]
    schedules: Sequence[Schedule]
    now: datetime
    usage: Sequence[LimitUsage]


class _Looks:
    """The latest look at a store, for all that ask within a second of it."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self._lock = threading.Lock()
        self._latest: tuple[float, _Look] | None = None

    def latest(self) -> _Look:
        """Return what the store looks like.

        :raises StorageError: if it cannot be read.
        """
        with self._lock:
            if self._latest is None or time.monotonic() - self._latest[0] > FRESH:
                queue = self.queue
                look = _Look(queue.stats(), queue.workers(), queue.schedules(), now_of(queue), queue.limit_usage())
                self._latest = time.monotonic(), look
            return self._latest[1]


def _metrics(looks: _Looks) -> Response:
    from prometheus_client.core import GaugeMetricFamily

    up = GaugeMetricFamily("omniq_store_up", "1 if the store could be read.")
    try:
        look = looks.latest()
    except StorageError:
        up.add_metric((), 0)
        return exposed([up])
    up.add_metric((), 1)
    return exposed([up, *store_metrics(look.stats, look.workers, look.schedules, look.now, look.usage)])


def _readyz(looks: _Looks) -> Response:
    try:
        looks.latest()
    except StorageError as error:
        return refused(str(error))
    return Response("ok\n")


def _scale(looks: _Looks, query: Query) -> Response:
    asked = [name for text in query.get("queue", ()) for name in text.split(",") if name]
    look = looks.latest()
    stats = [queue for queue in look.stats if not asked or queue.queue in asked]
    names = asked or [queue.queue for queue in stats]
    workers = [worker for worker in look.workers if not names or any(serves(worker.about, name) for name in names)]
    slots = sum(worker.about.concurrency for worker in workers if worker.about is not None)
    ready = sum(queue.counts.get(TaskState.READY, 0) for queue in stats)
    running = sum(queue.counts.get(TaskState.RUNNING, 0) for queue in stats)
    numbers: dict[str, Any] = {
        "queues": names,
        "ready": ready,
        "running": running,
        "due_soon": sum(_due_soon(looks.queue, queue, look.now) for queue in stats),
        "oldest_ready_seconds": max((queue.oldest_ready or 0.0 for queue in stats), default=0.0),
        "workers": len(workers),
        "slots": slots,
        "load": (ready + running) / slots if slots else None,
    }
    return Response(json.dumps(numbers) + "\n", kind="application/json")


def _due_soon(queue: TaskQueue, stats: QueueStats, now: datetime) -> int:
    if not stats.counts.get(TaskState.SCHEDULED):
        return 0
    page = queue.tasks(queue=stats.queue, state=TaskState.SCHEDULED, limit=MOST_LOOKED_AT)
    return sum(task.run_at <= now + timedelta(seconds=SOON) for task in page)
