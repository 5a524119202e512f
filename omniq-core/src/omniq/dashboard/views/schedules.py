"""The schedules: in words, their next runs, and pausing, resuming, triggering and deleting them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from attrs import frozen
from starlette.responses import Response

from omniq.cli.schedules import next_runs, trigger_of, words_of
from omniq.dashboard.visit import Visit
from omniq.schedule import Schedule

__all__ = ["delete", "pause", "resume", "show", "trigger"]

MOST = 500


@frozen(kw_only=True)
class Row:
    """One schedule."""

    schedule: Schedule
    words: str
    following: Sequence[datetime]
    late: float | None
    """By how many seconds it is late; None if it is not."""


async def show(visit: Visit) -> Response:
    """Return the page."""
    look = await visit.dashboard.looks.latest()
    wanted = visit.one("q")
    found = [one for one in look.schedules if wanted.lower() in one.id.lower()]
    rows = [_row(one, visit, look.now) for one in found[:MOST]]
    return visit.page("schedules.html", title="Schedules", look=look, rows=rows, q=wanted, found=len(found), most=MOST)


def _row(schedule: Schedule, visit: Visit, now: datetime) -> Row:
    read = trigger_of(schedule, visit.queue)
    following = [] if schedule.paused else [*next_runs(schedule, read)]
    late = None
    if not schedule.paused and schedule.next_run is not None and schedule.next_run < now:
        late = (now - schedule.next_run).total_seconds()
    return Row(schedule=schedule, words=words_of(schedule, read), following=following, late=late)


async def pause(visit: Visit) -> Response:
    """Pause a schedule."""
    do = visit.queue.apause_schedule
    return await visit.act("pause_schedule", do, "id", "Schedule {} is paused.", "Schedule {} was paused already.")


async def resume(visit: Visit) -> Response:
    """Resume a schedule."""
    do = visit.queue.aresume_schedule
    return await visit.act("resume_schedule", do, "id", "Schedule {} goes on.", "Schedule {} was not paused.")


async def trigger(visit: Visit) -> Response:
    """Enqueue a schedule's task now."""
    name = visit.needed("id")
    handle = await visit.queue.atrigger_schedule(name)
    visit.audit("trigger_schedule", name, handle.id)
    return visit.done(f"Schedule {name} enqueued its task.", f"/task?id={handle.id}")


async def delete(visit: Visit) -> Response:
    """Remove a schedule."""
    name, do = visit.needed("id"), visit.queue.adelete_schedule
    declared = any(one.declared for one in await visit.queue.aschedules() if one.id == name)
    rest = " It is declared in code: the next worker that starts makes it anew." if declared else ""
    done = f"Schedule {{}} is deleted.{rest}"
    return await visit.act("delete_schedule", do, "id", done, "Schedule {} was gone already.")
