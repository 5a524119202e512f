"""The list of tasks: every filter in the address, the latest enqueued first."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from attrs import evolve
from starlette.responses import Response

from omniq.dashboard.bulk import VERBS
from omniq.dashboard.looks import Look
from omniq.dashboard.views.filters import Filters
from omniq.dashboard.visit import Visit
from omniq.storage import Count
from omniq.task import TaskState

__all__ = ["LOOKED_AT", "counts_of", "show"]

ON_A_PAGE = 50
LOOKED_AT = 10_000
"""Tasks that are looked through for one page, and for one count."""
COUNTS_FRESH = 2.0


async def show(visit: Visit) -> Response:
    """Return the page."""
    filters = Filters.of(visit)
    looks = visit.dashboard.looks
    cursor = visit.one("cursor") or None
    page = await visit.queue.atasks(
        queue=filters.queue or None,
        states=filters.states,
        name=filters.name or None,
        tag=filters.tag or None,
        enqueued_before=filters.before,
        enqueued_after=filters.after,
        bare=True,
        look_at=LOOKED_AT,
        limit=ON_A_PAGE,
        cursor=cursor,
    )
    look = await looks.latest()
    counts = await counts_of(visit, filters, look)
    told = {name for one in look.workers if one.about is not None for name in one.about.functions}
    chosen = filters.states
    return visit.page(
        "tasks.html",
        title="Tasks",
        now=look.now,
        filters=filters,
        tasks=page.tasks,
        cursor=page.cursor,
        trail=visit.all("newer"),
        at=cursor,
        counts=counts,
        total=sum(one.number for one in counts.values()),
        total_at_least=any(one.at_least for one in counts.values()),
        looked_at=LOOKED_AT,
        cut=page.cursor is not None and len(page.tasks) < ON_A_PAGE,
        queues=sorted(one.queue for one in look.stats),
        names=sorted({*visit.queue.functions, *told})[:500],
        verbs=[
            verb
            for verb in VERBS.values()
            if verb.name != "purge" and verb.permission in visit.visitor.may and verb.chosen(chosen)
        ],
    )


async def counts_of(visit: Visit, filters: Filters, look: Look) -> Mapping[str, Count]:
    """Return how many tasks match in each state, whichever states are chosen."""
    others = evolve(filters, states=None)
    if not (others.name or others.tag or others.before or others.after):
        stats = [one for one in look.stats if others.queue in ("", one.queue)]
        return {state.value: Count(sum(one.counts.get(state, 0) for one in stats)) for state in TaskState}
    return await visit.dashboard.looks.shared(("counts", others), COUNTS_FRESH, lambda: _counted(visit, others))


async def _counted(visit: Visit, filters: Filters) -> Mapping[str, Count]:
    counts = await asyncio.gather(
        *(
            visit.queue.acount_tasks(
                **{**filters.selected, "states": [state]},
                enqueued_after=filters.after,
                look_at=LOOKED_AT,
                limit=LOOKED_AT,
            )
            for state in TaskState
        )
    )
    return {state.value: count for state, count in zip(TaskState, counts, strict=True)}
