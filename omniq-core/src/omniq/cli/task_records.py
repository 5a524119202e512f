"""What is shown of a task: the rows of a list, everything about one, and the same as JSON.

Arguments and results are decoded where the function is known here, since its annotations say how. Elsewhere they are
shown as they are stored; nothing but JSON is read then, and nothing that is larger than ``max_payload``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from attrs import frozen

from omniq._client.explain import Reason
from omniq._client.queue import TaskQueue
from omniq.cli.columns import Column, Table, shortened
from omniq.cli.short_ids import short_id
from omniq.cli.terminal import Screen, human_duration, picked
from omniq.cli.values import plain_json
from omniq.cli.wording import ago, exact, relative, rough_duration
from omniq.serialization.signing import unsealed
from omniq.task import Attempt, Progress, Reference, Task, TaskError, TaskState

__all__ = [
    "STYLES",
    "arguments_json",
    "arguments_text",
    "as_json",
    "as_lines",
    "stored_arguments",
    "stored_result",
    "task_table",
    "unread",
]

T = TypeVar("T")

STYLES: Mapping[TaskState, tuple[str, ...]] = {
    TaskState.BLOCKED: ("dim",),
    TaskState.SCHEDULED: ("dim",),
    TaskState.RUNNING: ("cyan",),
    TaskState.SUCCEEDED: ("green",),
    TaskState.FAILED: ("red",),
    TaskState.CANCELLED: ("yellow",),
}

LONGEST_ERROR = 200
"""Characters of an error that a list shows, wherever it goes."""
LONGEST_MESSAGE = 20_000
"""Characters of an error's message that are shown to people: all of one that a worker has stored."""
LONGEST_TRACEBACK = 100_000
"""Characters of a traceback that are shown to people: all of one that a worker has stored."""
LONGEST = 4000
"""Characters of an argument list or a result that are shown to people; JSON has all of them."""


# A list


def task_table(screen: Screen, now: datetime) -> Table[Task]:
    """Return a table that has a row for each task."""
    columns: list[Column[Task]] = [
        Column(title="id", cell=lambda task: short_id(task.id)),
        Column(title="state", cell=lambda task: task.state, styles=lambda task: STYLES.get(task.state, ())),
        Column(title="name", cell=lambda task: task.name, least=8, keep_end=True),
        Column(title="queue", cell=lambda task: task.queue, least=6, rank=2),
        Column(title="attempts", cell=lambda task: f"{task.attempt}/{task.max_retries + 1}", right=True, rank=3),
        Column(title="when", cell=lambda task: _when(task, now), right=True),
        Column(title="error", cell=_error_line, styles=lambda _: ("red",), least=12, rank=1),
    ]
    return Table(columns, screen)


def _error_line(task: Task) -> str:
    return "-" if task.error is None else _error_text(task.error)


def _error_text(error: TaskError) -> str:
    first_line = error.message.strip().partition("\n")[0]
    return shortened(f"{error.type}: {first_line}", LONGEST_ERROR)


def _when(task: Task, now: datetime) -> str:
    """Say what, with the state before it, makes a sentence: ready ``for 3 min``, failed ``5 h ago``."""
    if task.state is TaskState.SCHEDULED:
        return relative(task.run_at, now)
    if task.state.is_final:
        return ago(task.finished_at, now)
    since = task.started_at if task.state is TaskState.RUNNING else task.run_at
    return f"for {rough_duration((now - (since or task.run_at)).total_seconds())}"


# One task, for people


def as_lines(task: Task, queue: TaskQueue, screen: Screen, now: datetime, why: Sequence[Reason] = ()) -> Iterator[str]:
    """Yield everything about a task as lines for people.

    :param why: why it is not running; the first reason is shown.
    """
    yield from screen.details(_details(task, queue, now, why))
    if task.error is not None and task.error.traceback:
        yield ""
        yield from _cut(task.error.traceback, LONGEST_TRACEBACK).rstrip().expandtabs().split("\n")


Detail = tuple[str, ...]


def _details(task: Task, queue: TaskQueue, now: datetime, why: Sequence[Reason]) -> Iterator[Detail]:
    yield "task", task.id
    yield "name", task.name, "bold"
    yield "queue", task.queue
    asked = ", asked to stop" if task.cancel_requested else ""
    yield "state", f"{task.state} {_when(task, now)}{asked}", *STYLES.get(task.state, ())
    if why and not task.state.is_final:  # else the rest says it all
        yield "why", why[0].text
    yield "arguments", arguments_text(task, queue)
    yield from _attempts(task)
    yield from _times(task, now)
    for label, value in _names(task):
        if value:
            yield label, value
    if task.progress is not None:
        yield "progress", _cut(_progress(task.progress), LONGEST)
    if task.result_payload is not None:
        yield "result", _result_text(task, queue)
    if task.error is not None:
        yield "error", _cut(f"{task.error.type}: {task.error.message}", LONGEST_MESSAGE), "red"
    yield from _history(task, now)


def _history(task: Task, now: datetime) -> Iterator[Detail]:
    """Yield the attempts that are over, unless the rest says all there is: of a task that ended at the first."""
    if task.state.is_final and len(task.history) < 2:
        return
    for label, past in zip(["history", *[""] * len(task.history)], task.history, strict=False):
        worker = f" on {past.worker}" if past.worker else ""
        error = "" if past.error is None else f": {_error_text(past.error)}"
        yield label, f"{past.attempt}. {past.outcome} {ago(past.ended_at, now)}{_took(past)}{worker}{error}"


def _took(past: Attempt) -> str:
    if past.started_at is None or past.ended_at is None:
        return ""
    return f" after {human_duration(max(0.0, (past.ended_at - past.started_at).total_seconds()))}"


def _attempts(task: Task) -> Iterator[Detail]:
    yield "attempts", f"{task.attempt} of {task.max_retries + 1}"
    policy = _or_none(lambda: task.retry)
    if policy is not None:
        yield "retry", repr(policy)
    if task.timeout is not None:
        yield "timeout", human_duration(task.timeout)
    if task.priority:
        yield "priority", str(task.priority)


def _times(task: Task, now: datetime) -> Iterator[Detail]:
    waits = task.state in (TaskState.SCHEDULED, TaskState.READY)
    moments = {
        "created": task.created_at,
        "run at": task.run_at if waits and task.run_at != task.created_at else None,
        "started": task.started_at,
        "lease to": task.lease_until,
        "finished": task.finished_at,
        "expires": task.expires_at if waits else None,
    }
    for label, moment in moments.items():
        if moment is not None:
            yield label, exact(moment, now)


def _names(task: Task) -> tuple[tuple[str, str | None], ...]:
    return (
        ("worker", task.worker),
        ("flow", task.flow),
        ("unique", task.unique),
        ("tags", ", ".join(task.tags)),
    )


def _progress(progress: Progress) -> str:
    text = f"{progress.done:g}"
    if progress.total is not None:
        text += f" of {progress.total:g}"
        if progress.total > 0:
            text += f" ({progress.done / progress.total:.0%})"
    return f"{text}: {progress.note}" if progress.note else text


def arguments_text(task: Task, queue: TaskQueue) -> str:
    """Return a task's arguments as they would stand in a call; as stored where they cannot be decoded."""
    decoded = _decoded_arguments(task, queue)
    text = None if decoded is None else _or_none(lambda: _call(*_with_awaited(*decoded, task), repr))
    if text is not None:
        return _bounded(text or "none")
    stored = stored_arguments(task, queue)
    if stored is None:
        return unread(task.payload, task, queue)
    # A writer of the store can put the places anywhere.
    args, kwargs = _or_none(lambda: _with_awaited(*stored, task)) or stored
    return _bounded(f"{_call(args, kwargs, _json) or 'none'}  (as stored)")


@frozen(repr=False)
class _Awaited:
    """What is shown in the place of an argument that the results of other tasks take when the task runs."""

    reference: Reference

    def __repr__(self) -> str:
        count = sum(count for _, count in self.reference.runs)
        first = self.reference.runs[0][0] if self.reference.runs else ""
        what = "no tasks" if not count else f"task {first}" if count == 1 else f"{count:,} tasks from {first}"
        return f"<{self.reference.kind} of {what}>"


def _with_awaited(
    args: Sequence[Any], kwargs: Mapping[str, Any], task: Task
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return arguments, as they are in the store, with what is said of the results that come there."""
    places: dict[str | int, Any] = {"args": list(args), "kwargs": dict(kwargs)}
    for reference in task.references:
        place: Any = places
        for step in reference.path[:-1]:
            # A copy: what was decoded is the task's.
            place[step] = dict(place[step]) if isinstance(place[step], dict) else list(place[step])
            place = place[step]
        place[reference.path[-1]] = _Awaited(reference)
    return places["args"], places["kwargs"]


def _call(args: Sequence[Any], kwargs: Mapping[str, Any], show: Callable[[Any], str]) -> str:
    return ", ".join([*map(show, args), *(f"{name}={show(value)}" for name, value in kwargs.items())])


def _result_text(task: Task, queue: TaskQueue) -> str:
    if task.name in queue.functions:
        text = _or_none(lambda: repr(task.result))
        if text is not None:
            return _bounded(text)
    stored = stored_result(task, queue)
    if stored is None:
        return unread(task.result_payload or b"", task, queue)
    return _bounded(f"{_json(stored[0])}  (as stored)")


def unread(payload: bytes, task: Task, queue: TaskQueue) -> str:
    """Return what is said of a payload that is not read: how large it is, and why."""
    size = f"{len(payload):,} bytes of {task.serializer or 'an unknown serializer'}"
    limit = queue.codec.max_payload
    if len(payload) > limit:
        return f"{size}, over the limit here of {limit:,} (max_payload): not read"
    return f"{size}, which cannot be read here"


def _bounded(text: str) -> str:
    return _cut(text, LONGEST, "; --json shows all")


def _cut(text: str, longest: int, rest: str = "") -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters{rest})"


# One task, for programs


def as_json(task: Task, queue: TaskQueue) -> dict[str, Any]:
    """Return everything about a task as what ``--json`` prints."""
    return {
        **picked(task, "id", "name", "queue", "state"),
        **arguments_json(task, queue),
        "result": _result_json(task, queue),
        **picked(task, "references", "error", "progress", "attempt", "max_retries", "priority", "timeout"),
        **picked(task, "created_at", "run_at", "started_at", "finished_at", "expires_at", "lease_until"),
        **picked(task, "worker", "flow", "unique", "tags", "serializer", "result_ttl", "is_async"),
        "headers": dict(task.headers),
        **picked(task, "cancel_requested", "history"),
    }


def arguments_json(task: Task, queue: TaskQueue) -> dict[str, Any]:
    """Return a task's arguments as JSON: a Path as its text where decoded; else as stored; None where unreadable."""
    decoded = _decoded_arguments(task, queue)
    text = None if decoded is None else plain_json([list(decoded[0]), decoded[1]])
    pair = stored_arguments(task, queue) if text is None else json.loads(text)
    args, kwargs = (None, None) if pair is None else pair
    return {"args": args, "kwargs": kwargs, "decoded": text is not None}


def _result_json(task: Task, queue: TaskQueue) -> Any:
    if task.result_payload is None:
        return None
    if task.name in queue.functions:
        text = _or_none(lambda: plain_json(task.result))
        if text is not None:
            return json.loads(text)
    stored = stored_result(task, queue)
    return None if stored is None else stored[0]


# Reading


def _decoded_arguments(task: Task, queue: TaskQueue) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if task.name not in queue.functions:
        return None
    return _or_none(lambda: queue.decoder.arguments(task))


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except Exception:  # a payload of another version, a class that cannot be made or shown: then it is as stored
        return None


def stored_arguments(task: Task, queue: TaskQueue) -> tuple[list[Any], dict[str, Any]] | None:
    """Return the arguments of a task as they are stored; None if they are no JSON, or too large."""
    match _stored_json(task, task.payload, queue):
        case [[list() as args, dict() as kwargs]]:
            return args, kwargs
    return None


def stored_result(task: Task, queue: TaskQueue) -> tuple[Any] | None:
    """Return a tuple of the result of a task as it is stored; None if that is no JSON, or too large."""
    return _stored_json(task, unsealed(task.result_payload or b""), queue)


def _stored_json(task: Task, payload: bytes, queue: TaskQueue) -> tuple[Any] | None:
    if task.serializer != "json" or len(payload) > queue.codec.max_payload:
        return None
    try:
        return (json.loads(payload),)
    except (ValueError, RecursionError):
        return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)
