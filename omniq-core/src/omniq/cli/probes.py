"""What ``omniq worker --http`` answers: ``/metrics``, ``/livez`` and ``/readyz``.

``/livez`` is about this process alone: a store that cannot be reached is no reason to start it again. ``/readyz`` says
whether it gets through to the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

from omniq._worker.metrics import Totals
from omniq._worker.worker import Worker
from omniq.cli.exposition import exposed, worker_metrics
from omniq.cli.http import HttpServer, Query, Response, refused

__all__ = ["reason_of", "serve_probes"]

PATIENCE = 5.0
"""Seconds that a loop has to show that it turns."""


def reason_of(worker: Worker) -> str | None:
    """Return why a worker does not work; None if it does."""
    if worker.is_stopping:
        return "it is stopping"
    heard_at = worker.heard_at
    if heard_at is None:
        return "no heartbeat has got through to the store yet"
    silent = time.monotonic() - heard_at
    if silent > worker.lease:
        return f"no heartbeat has got through to the store for {silent:.0f} s"
    return None


def serve_probes(
    place: tuple[str, int],
    loop: asyncio.AbstractEventLoop,
    *,
    totals: Callable[[], Totals],
    processes: Callable[[], int],
    reason: Callable[[], str | None],
) -> HttpServer:
    """Answer probes and scrapers from now on.

    :param place: where to listen.
    :param loop: the loop that must turn.
    :param totals: returns what was counted.
    :param processes: returns how many worker processes there are.
    :param reason: returns why the work does not go on; None if it does.
    :raises UsageError: if that address cannot be listened on.
    """

    def livez(_: Query) -> Response:
        turned = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
        try:
            turned.result(PATIENCE)
        except (TimeoutError, CancelledError):
            return refused(f"the event loop has not turned for {PATIENCE:g} s")
        return Response("ok\n")

    def readyz(_: Query) -> Response:
        why = reason()
        return Response("ok\n") if why is None else refused(why)

    def metrics(_: Query) -> Response:
        return exposed(worker_metrics(totals(), processes()))

    return HttpServer(place, {"/metrics": metrics, "/livez": livez, "/readyz": readyz})
