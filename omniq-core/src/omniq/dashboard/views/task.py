"""One task: what it carries, what has become of it, why it does not run; and what can be done to it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from datetime import datetime

from attrs import evolve, frozen
from markupsafe import Markup
from starlette.responses import Response

from omniq._client.explain import explained
from omniq._client.queue import TaskQueue
from omniq._tasks.options import check_queue
from omniq.cli.task_records import stored_arguments
from omniq.dashboard.access import Permission
from omniq.dashboard.payloads import (
    arguments_of,
    headers_of,
    redacted_arguments,
    restored_arguments,
    result_of,
    text_of,
)
from omniq.dashboard.security import Refused
from omniq.dashboard.views.fields import json_field
from omniq.dashboard.views.flows import picture
from omniq.dashboard.visit import Visit
from omniq.storage.body import dump_header, join_body, load_content, make_content, split_body
from omniq.storage.ids import new_id
from omniq.task import NewTask, Task, TaskError, TaskState

__all__ = ["cancel", "copy", "delete", "retry", "run_now", "show", "show_copy"]


@frozen(kw_only=True)
class Moment:
    """A point on the way of a task."""

    label: str
    at: datetime | None
    kind: str = ""
    """Of the dot: a state."""
    detail: str = ""
    before: float | None = None
    """Seconds since the moment before."""
    error: TaskError | None = None


async def show(visit: Visit) -> Response:
    """Return the page."""
    queue = visit.queue
    task = await queue.arecord(visit.needed("id"))
    look = await visit.dashboard.looks.latest()
    payload = visit.may(Permission.PAYLOAD)
    storage = await visit.storage()
    plain = task if payload or task.error is None else evolve(task, error=evolve(task.error, message=""))
    reasons = await explained(storage, plain)
    flow_picture = Markup("")
    flow = None
    if task.flow is not None and storage.limits.flows:
        flow, flow_picture = await picture(visit, task.flow, task.id)
    return visit.page(
        "task.html",
        title=task.name,
        now=look.now,
        task=task,
        payload=payload,
        reasons=reasons,
        moments=_timeline(task, look.now),
        arguments=arguments_of(task, queue) if payload else [],
        result=result_of(task, queue) if payload else None,
        headers=headers_of(task) if payload else [],
        flow=flow,
        picture=flow_picture,
        live=not task.state.is_final,
    )


def _timeline(task: Task, now: datetime) -> Sequence[Moment]:
    """Return the way of a task, with how long it took from each of its moments to the next."""
    moments = [Moment(label="Enqueued", at=task.created_at, kind="scheduled")]
    for past in task.history:
        on = f"on {past.worker}" if past.worker else ""
        if past.started_at is not None:
            moments.append(Moment(label=f"Attempt {past.attempt} began", at=past.started_at, kind="running", detail=on))
        kind = {"retry": "failed", "lost": "failed"}.get(past.outcome.value, past.outcome.value)
        words = {"retry": "failed, to be retried", "lost": "was lost: its worker died or lost its lease"}
        label = f"Attempt {past.attempt} {words.get(past.outcome.value, past.outcome.value)}"
        moments.append(Moment(label=label, at=past.ended_at, kind=kind, error=past.error))
    is_over = bool(task.history) and task.history[-1].attempt >= task.attempt
    if task.started_at is not None and not is_over:
        on = f"on {task.worker}" if task.worker else ""
        moments.append(Moment(label=f"Attempt {task.attempt} began", at=task.started_at, kind="running", detail=on))
    if task.state.is_final and not (is_over and task.history[-1].outcome.value == task.state.value):
        moments.append(Moment(label=task.state.value.capitalize(), at=task.finished_at, kind=task.state.value))
    elif task.state in (TaskState.SCHEDULED, TaskState.READY):
        label = "Due" if task.run_at > now else "Ready"
        if task.run_at != task.created_at:
            moments.append(Moment(label=label, at=task.run_at, kind=task.state.value))
        if task.expires_at is not None:
            moments.append(Moment(label="Expires", at=task.expires_at, kind="cancelled"))
    moments = sorted(moments, key=lambda one: one.at or now)
    spans = [(b.at - a.at).total_seconds() if a.at and b.at else None for a, b in itertools.pairwise(moments)]
    return [evolve(one, before=span) for one, span in zip(moments, [None, *spans], strict=True)]


# Doing


async def cancel(visit: Visit) -> Response:
    """Cancel a task."""
    done = "The task is cancelled; if it ran, it was asked to stop."
    return await visit.act("cancel", visit.queue.acancel, "id", done, "It has ended already, and was not cancelled.")


async def retry(visit: Visit) -> Response:
    """Make a task ready again."""
    not_done = "It was not retried: it neither failed nor was cancelled, or a live task has its unique key."
    return await visit.act("retry", visit.queue.aretry, "id", "The task is ready again.", not_done)


async def run_now(visit: Visit) -> Response:
    """Make a scheduled task ready."""
    not_done = "It is not scheduled for later any more."
    return await visit.act("run_now", visit.queue.arun_now, "id", "The task is ready.", not_done)


async def delete(visit: Visit) -> Response:
    """Remove a task."""
    not_done = "It was not deleted: it runs, or is gone already."
    return await visit.act("delete", visit.queue.adelete, "id", "The task is deleted.", not_done, "/tasks")


# A copy


async def show_copy(visit: Visit) -> Response:
    """Return the page on which the arguments of a copy can be edited."""
    task = await visit.queue.arecord(visit.needed("id"))
    stored = stored_arguments(task, visit.queue)
    shown = None if stored is None else redacted_arguments(task, visit.queue, *stored)
    return visit.page(
        "copy.html",
        title=f"A copy of {task.name}",
        task=task,
        args=None if shown is None else text_of(shown[0]),
        kwargs=None if shown is None else text_of(shown[1]),
        problem="",
    )


async def copy(visit: Visit) -> Response:
    """Enqueue a copy of a task, with other arguments if they were edited."""
    queue = visit.queue
    stored = await queue.arecord(visit.needed("id"))
    if stored.references:
        raise Refused(409, "Its arguments come from other tasks of its flow: retry the flow instead.")
    # What is copied is signed anew: only what this queue would run itself may be.
    task = queue.codec.admit(stored)
    own = stored_arguments(task, queue)
    payload = task.payload
    if own is not None:
        args, kwargs = visit.one("args") or "[]", visit.one("kwargs") or "{}"
        try:
            parsed = [json_field(args, "Positional arguments", list), json_field(kwargs, "Named arguments", dict)]
            edited = restored_arguments(task, queue, parsed, *own)
        except ValueError as error:
            return visit.page(
                "copy.html",
                status=400,
                title=f"A copy of {task.name}",
                task=task,
                args=args,
                kwargs=kwargs,
                problem=str(error),
            )
        if edited != [own[0], own[1]]:
            payload = json.dumps(edited, ensure_ascii=False, separators=(",", ":")).encode()
        if len(payload) > queue.codec.max_payload:
            raise Refused(413, f"The arguments take more than {queue.codec.max_payload:,} bytes.")
    new = _copied(task, payload, visit.one("queue") or task.queue, queue)
    storage = await visit.storage()
    (entry,) = await storage.enqueue([new])
    visit.audit("enqueue_copy", task.id, entry.id)
    return visit.done("The copy is enqueued.", f"/task?id={entry.id}")


def _copied(task: Task, payload: bytes, name: str, queue: TaskQueue) -> NewTask:
    header, _ = load_content(split_body(task.body)[1])
    header = evolve(header, scheduled_for=None)
    new = NewTask(
        id=new_id(),
        queue=check_queue(name),
        name=task.name,
        body=join_body(make_content(dump_header(header), payload)),
        priority=task.priority,
        max_retries=task.max_retries,
        tags=task.tags,
        key=task.key,
        limit=task.limit,
        result_ttl=task.result_ttl,
    )
    return queue.codec.sign(new)
