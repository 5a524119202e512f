"""Actions on many tasks: the dry run, the start, and how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from attrs import evolve
from starlette.responses import Response

from omniq.dashboard.bulk import TYPED_ABOVE, Job, Verb
from omniq.dashboard.security import Refused
from omniq.dashboard.views.filters import Filters, moment_of
from omniq.dashboard.visit import Visit
from omniq.storage import Count
from omniq.task import TaskState

__all__ = ["dry_run", "show_job", "start", "stop"]

SAMPLES = 5
MOST_NAMED = 200
"""Tasks that can be chosen one by one."""
RESOLUTION = timedelta(microseconds=1)


async def dry_run(verb: Verb, visit: Visit) -> Response:
    """Return the page that says what an action would do."""
    asked, ids = _asked(visit, verb)
    filters = await _bounded(visit, verb, asked, ids)
    counts = await _counts(visit, filters, ids)
    samples = await _samples(visit, filters, ids)
    total = sum(one.number for one in counts.values())
    return visit.page(
        "bulk.html",
        title=f"{verb.label} tasks",
        verb=verb,
        filters=filters,
        words=evolve(filters, before=asked.before, states=asked.states).words,
        ids=ids,
        counts={state.value: count for state, count in counts.items() if count.number},
        total=total,
        samples=samples,
        typed=total > TYPED_ABOVE,
        now=filters.before,
        back=visit.back("/tasks"),
        problem="",
    )


def _asked(visit: Visit, verb: Verb) -> tuple[Filters, list[str]]:
    """Return the filters of a request, and the ids of tasks that were chosen one by one.

    :raises Refused: if it cannot be done to such tasks.
    """
    filters = Filters.of(visit)
    ids = list(dict.fromkeys(visit.all("id")))
    if len(ids) > MOST_NAMED:
        raise Refused(400, f"At most {MOST_NAMED} tasks can be chosen one by one.")
    if filters.after is not None:
        raise Refused(400, "An action on many tasks cannot be limited to those enqueued after a time; leave that out.")
    if verb.name == "purge" and not filters.queue:
        raise Refused(400, "Only a queue can be purged.")
    if not verb.chosen(filters.states):
        raise Refused(400, f"{verb.label} does nothing to tasks in these states.")
    return filters, ids


async def _bounded(visit: Visit, verb: Verb, filters: Filters, ids: list[str]) -> Filters:
    """Return filters with what follows from the action: states in which it can be done, and an end of what is meant."""
    storage = await visit.storage()
    # What is enqueued from now on is no part of it. A task that is there may have been enqueued at this very moment.
    now = await storage.now() + RESOLUTION
    before = now if filters.before is None else min(now, filters.before)
    return evolve(filters, before=before, states=verb.states if ids else verb.chosen(filters.states))


async def _counts(visit: Visit, filters: Filters, ids: list[str]) -> Mapping[TaskState, Count]:
    async def counted(state: TaskState) -> Count:
        selected = {**filters.selected, "states": [state]}
        return await visit.queue.select(**(selected if not ids else {"states": [state], "ids": ids})).acount()

    states = [state for state in TaskState if filters.states is None or state in filters.states]
    return dict(zip(states, await asyncio.gather(*map(counted, states)), strict=True))


async def _samples(visit: Visit, filters: Filters, ids: list[str]) -> list[Any]:
    if ids:
        found = [await visit.queue.aget(one) for one in ids[:SAMPLES]]
        return [task for task in found if task is not None]
    return list(await visit.queue.atasks(**filters.selected, bare=True, limit=SAMPLES))


async def start(verb: Verb, visit: Visit) -> Response:
    """Start an action."""
    filters, ids = _asked(visit, verb)
    before = moment_of(visit.needed("before"), "before")
    expected = visit.needed("expected")
    if not (expected.isascii() and expected.isdecimal() and len(expected) < 16):
        raise Refused(400, "The form does not say how many tasks it was about.")
    number = int(expected)
    if number > TYPED_ABOVE and visit.one("typed").replace(",", "").replace(" ", "") != expected:
        raise Refused(400, f"Nothing was done: to confirm, type the number of tasks, {number:,}.")
    now = await (await visit.storage()).now()
    selected: Mapping[str, Any] = filters.selected if not ids else {"states": filters.states, "ids": ids}
    words = filters.words if not ids else f"{len(ids)} chosen one by one"
    job = visit.dashboard.bulk.start(
        verb,
        {**selected} if ids else {**selected, "enqueued_before": before},
        actor=visit.visitor.name,
        filters=words,
        expected=number,
        began=now,
        back=visit.back("/tasks"),
    )
    visit.audit(f"bulk {verb.name}", words, f"started, {number:,} expected")
    return visit.done("", f"/bulk/{verb.name}/job?id={job.id}")


def _job(visit: Visit) -> Job:
    job = visit.dashboard.bulk.get(visit.needed("id"))
    if job is None or not visit.request.url.path.rpartition("/")[0].endswith(f"/{job.verb.name}"):
        raise Refused(404, "This process knows no such action: it ended long ago, or the process has restarted since.")
    return job


async def show_job(visit: Visit) -> Response:
    """Return the page that says how far an action is."""
    return visit.page("bulk_job.html", title=f"{_job(visit).verb.label} tasks", job=_job(visit))


async def stop(visit: Visit) -> Response:
    """Stop an action after the step that is under way."""
    job = _job(visit)
    job.stopped = job.stopped or not job.is_over
    visit.audit(f"bulk {job.verb.name} stop", job.filters, job.stopped)
    return visit.done("", f"/bulk/{job.verb.name}/job?id={job.id}")
