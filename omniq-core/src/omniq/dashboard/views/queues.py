"""All queues in numbers, and pausing and resuming them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from omniq._worker.worker_info import serves
from omniq.cli.stats import held_back, running_of_limit
from omniq.dashboard.views.limits import usage_of
from omniq.dashboard.visit import Visit
from omniq.storage import QueueStats
from omniq.task import TaskState

__all__ = ["pause", "resume", "show"]

ON_A_PAGE = 100
_ORDERS: dict[str, Callable[[QueueStats], Any]] = {
    "name": lambda one: one.queue,
    "ready": lambda one: (-one.counts.get(TaskState.READY, 0), one.queue),
    "running": lambda one: (-one.counts.get(TaskState.RUNNING, 0), one.queue),
    "failed": lambda one: (-one.counts.get(TaskState.FAILED, 0), one.queue),
    "oldest": lambda one: (-(one.oldest_ready or -1.0), one.queue),
}


async def show(visit: Visit) -> Response:
    """Return the page."""
    look = await visit.dashboard.looks.latest()
    wanted, order = visit.one("q"), visit.one("sort")
    order = order if order in _ORDERS else "name"
    found = sorted((one for one in look.stats if wanted.lower() in one.queue.lower()), key=_ORDERS[order])
    number = visit.one("page")
    at = int(number) if number.isascii() and number.isdecimal() and len(number) < 7 else 1
    pages = max(1, -(-len(found) // ON_A_PAGE))
    at = min(max(at, 1), pages)
    some = found[(at - 1) * ON_A_PAGE : at * ON_A_PAGE]
    return visit.page(
        "queues.html",
        title="Queues",
        look=look,
        queues=some,
        limits={one.scope.queue: one for one in await usage_of(visit)},
        is_able=(await visit.storage()).limits.task_limits,
        held_back=held_back,
        running_of_limit=running_of_limit,
        workers={one.queue: sum(serves(worker.about, one.queue) for worker in look.workers) for one in some},
        q=wanted,
        sort=order,
        orders=list(_ORDERS),
        at=at,
        pages=pages,
        found=len(found),
    )


async def pause(visit: Visit) -> Response:
    """Pause a queue."""
    do = visit.queue.apause
    return await visit.act("pause", do, "queue", "Queue {} is paused.", "Queue {} was paused already.")


async def resume(visit: Visit) -> Response:
    """Resume a queue."""
    do = visit.queue.aresume
    return await visit.act("resume", do, "queue", "Queue {} goes on.", "Queue {} was not paused.")
