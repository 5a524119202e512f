"""``omniq schedules``: what is planned, and pausing, resuming, triggering and deleting it."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from attrs import frozen

from omniq._client.queue import TaskQueue
from omniq._tasks.policies import decode_value
from omniq.cli.app import note_place, now_of, place_of
from omniq.cli.arguments import add_json, text, value
from omniq.cli.columns import Column, Table
from omniq.cli.failures import OperationFailed, each, note, suggestion
from omniq.cli.groups import Action, command_of
from omniq.cli.task_records import arguments_json, arguments_text
from omniq.cli.terminal import Screen, human_duration, picked
from omniq.cli.trigger_words import in_words
from omniq.cli.wording import ago, exact, local_time, relative
from omniq.errors import CorruptRecord, OmniQError, PayloadRejected, ScheduleNotFound
from omniq.schedule import Schedule, Trigger
from omniq.storage.body import preview
from omniq.task import Task

__all__ = ["ACTIONS", "as_json", "configure", "run"]

PREVIEW = 5
"""How many of the next runs are shown of one schedule."""


@frozen
class _Row:
    schedule: Schedule
    words: str


def _list(queue: TaskQueue, options: argparse.Namespace) -> None:
    schedules, now, screen = queue.schedules(), now_of(queue), Screen()

    def lines() -> Iterator[str]:
        rows = [_Row(schedule, _words(schedule, queue)) for schedule in schedules]
        yield from _table(screen, now).lines(rows) if rows else ["there are no schedules"]
        if not rows:
            note_place(queue)

    screen.answer(options.json, lambda: [as_json(schedule, queue, now) for schedule in schedules], lines)


def _table(screen: Screen, now: datetime) -> Table[_Row]:
    columns: list[Column[_Row]] = [
        Column(title="id", cell=lambda row: row.schedule.id, least=10),
        Column(title="task", cell=lambda row: row.schedule.task.name, least=8, keep_end=True, rank=2),
        Column(title="trigger", cell=lambda row: row.words, least=24),
        Column(title="next run", cell=lambda row: _next_run(row.schedule), rank=1),
        Column(title="due", cell=lambda row: _due(row.schedule, now), right=True),
        Column(title="last run", cell=lambda row: ago(row.schedule.last_run, now), right=True, rank=4),
        Column(title="paused", cell=lambda row: _yes(row.schedule.paused), rank=3, dull="no"),
        Column(title="declared", cell=lambda row: _yes(row.schedule.declared), rank=5, dull="no"),
    ]
    return Table(columns, screen)


def _next_run(schedule: Schedule) -> str:
    return "-" if schedule.paused or schedule.next_run is None else local_time(schedule.next_run)


def _due(schedule: Schedule, now: datetime) -> str:
    if schedule.paused:
        return "paused"
    return "never" if schedule.next_run is None else relative(schedule.next_run, now)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _trigger(schedule: Schedule, queue: TaskQueue) -> Trigger | None:
    try:
        return decode_value(schedule.trigger, queue.plugins.trigger)
    except OmniQError:  # of a plugin that is not installed here, or of another version of it
        return None


def _record(schedule: Schedule, queue: TaskQueue, now: datetime) -> Task:
    """Return the record that the task of a run would have; one that cannot be decoded if the schedule is forged."""
    order = schedule.task
    with contextlib.suppress(PayloadRejected):
        queue.codec.admit_schedule(schedule)
        order = queue.codec.sign(order)
    return preview(order, now, queue.decoder)


def _trigger_json(schedule: Schedule) -> Any:
    try:
        return json.loads(schedule.trigger)
    except (ValueError, RecursionError):  # not ours
        return schedule.trigger


def _words(schedule: Schedule, queue: TaskQueue) -> str:
    trigger = _trigger(schedule, queue)
    return schedule.trigger if trigger is None else in_words(trigger)


def as_json(schedule: Schedule, queue: TaskQueue, now: datetime) -> dict[str, Any]:
    """Return a schedule as what ``--json`` prints."""
    return {
        "id": schedule.id,
        "task": schedule.task.name,
        "queue": schedule.task.queue,
        **arguments_json(_record(schedule, queue, now), queue),
        "trigger": _trigger_json(schedule),
        "trigger_text": _words(schedule, queue),
        **picked(schedule, "next_run", "last_run", "last_task", "paused", "declared", "apps"),
        **picked(schedule, "misfire", "overlap", "jitter", "start", "end", "revision"),
    }


def _show(queue: TaskQueue, options: argparse.Namespace) -> None:
    schedule, now, screen = _find(queue, options.id), now_of(queue), Screen()
    screen.answer(
        options.json,
        lambda: as_json(schedule, queue, now),
        lambda: (
            f"{screen.styled(f'{label:<9}', 'dim')}  {screen.styled(text)}"
            for label, text in _details(schedule, queue, now)
        ),
    )


def _find(queue: TaskQueue, schedule_id: str) -> Schedule:
    schedules = {schedule.id: schedule for schedule in queue.schedules()}
    if schedule_id not in schedules:
        raise _not_found(queue, schedule_id, schedules)
    return schedules[schedule_id]


def _not_found(queue: TaskQueue, schedule_id: str, known: Iterable[str]) -> OperationFailed:
    hint = suggestion(schedule_id, known)
    return OperationFailed(f"{ScheduleNotFound(schedule_id)}{hint or f'; looked in {place_of(queue)}'}")


def _details(schedule: Schedule, queue: TaskQueue, now: datetime) -> Iterator[tuple[str, str]]:
    yield "schedule", schedule.id
    yield "task", schedule.task.name
    yield "queue", schedule.task.queue
    yield "arguments", arguments_text(_record(schedule, queue, now), queue)
    yield "trigger", _words(schedule, queue)
    yield "paused", _yes(schedule.paused)
    declared = f"yes, in code ({', '.join(schedule.apps)}): workers keep it as it stands there"
    yield "declared", declared if schedule.declared else "no"
    yield "misfire", schedule.misfire.value
    yield "overlap", schedule.overlap.value
    if schedule.jitter:
        yield "jitter", f"up to {human_duration(schedule.jitter)}"
    for label, moment in (("start", schedule.start), ("end", schedule.end), ("last run", schedule.last_run)):
        if moment is not None:
            yield label, exact(moment, now)
    if schedule.last_task is not None:
        yield "last task", schedule.last_task
    label = "next runs"
    for moment in _preview(schedule, queue):
        yield label, exact(moment, now)
        label = ""
    if label:
        yield label, "none"


def _preview(schedule: Schedule, queue: TaskQueue) -> Iterator[datetime]:
    moment = schedule.next_run
    trigger = _trigger(schedule, queue)
    for _ in range(PREVIEW):
        if moment is None or (schedule.end is not None and moment > schedule.end):
            return
        yield moment
        moment = None if trigger is None else trigger.next_after(moment)


# Changing


def _changing(change: Callable[[TaskQueue, str], None], summary: str, name: str, description: str) -> Action:
    """Return an action that does something to each schedule that is named."""

    def act(queue: TaskQueue, options: argparse.Namespace) -> int:
        def change_one(schedule_id: str) -> None:
            try:
                change(queue, schedule_id)
            except ScheduleNotFound:
                raise _not_found(queue, schedule_id, [schedule.id for schedule in queue.schedules()]) from None

        return each(options.ids, change_one)

    return Action(
        summary,
        description,
        f"omniq schedules {name} shop.tasks:queue nightly\nomniq schedules {name} sqlite:///jobs.db nightly weekly",
        (value("ids", text, "ID", "the schedules' ids", nargs="+"),),
        act,
    )


def _pause(queue: TaskQueue, schedule_id: str) -> None:
    changed = queue.pause_schedule(schedule_id)
    Screen().say(f"schedule {schedule_id} is paused" if changed else f"schedule {schedule_id} was paused already")


def _resume(queue: TaskQueue, schedule_id: str) -> None:
    changed = queue.resume_schedule(schedule_id)
    Screen().say(f"schedule {schedule_id} goes on" if changed else f"schedule {schedule_id} was not paused")


def _trigger_now(queue: TaskQueue, schedule_id: str) -> None:
    Screen().say(queue.trigger_schedule(schedule_id).id)


def _delete(queue: TaskQueue, schedule_id: str) -> None:
    declared = False
    with contextlib.suppress(CorruptRecord):  # of a store that cannot list the others; it is deleted all the same
        declared = any(schedule.declared for schedule in queue.schedules() if schedule.id == schedule_id)
    if not queue.delete_schedule(schedule_id):
        raise ScheduleNotFound(schedule_id)
    Screen().say(f"schedule {schedule_id} is deleted")
    if declared:
        note(
            f"{schedule_id} is declared in code: the next worker that starts makes it anew; "
            "remove schedule= from @queue.task there"
        )


ACTIONS = {
    "list": Action(
        "show every schedule",
        "Show every schedule: its task, when it runs, the next run and the last one.",
        "omniq schedules list shop.tasks:queue\nomniq schedules list sqlite:///jobs.db --json",
        (add_json,),
        _list,
    ),
    "show": Action(
        "show everything about one schedule",
        f"Show everything about one schedule, and its next {PREVIEW} runs.",
        "omniq schedules show shop.tasks:queue nightly\nomniq schedules show sqlite:///jobs.db nightly --json",
        (value("id", text, "ID", "the schedule's id"), add_json),
        _show,
    ),
    "pause": _changing(
        _pause, "keep schedules from firing", "pause", "Keep schedules from firing until they are resumed."
    ),
    "resume": _changing(
        _resume,
        "let them fire again",
        "resume",
        "Let paused schedules fire again, in their old rhythm. Runs that fell into the pause are not made up.",
    ),
    "trigger": _changing(
        _trigger_now,
        "enqueue their tasks now",
        "trigger",
        "Enqueue the task of each schedule now, whatever its trigger says, and print the tasks' ids. The rhythm\n"
        "goes on as before.",
    ),
    "delete": _changing(
        _delete,
        "remove schedules; the tasks that they enqueued stay",
        "delete",
        "Remove schedules. The tasks that they enqueued stay.",
    ),
}
"""The actions of this command."""

configure, run = command_of(
    "List, show, pause, resume, trigger and delete schedules.",
    "omniq schedules list shop.tasks:queue\n"
    "omniq schedules pause shop.tasks:queue nightly\n"
    "omniq schedules trigger sqlite:///jobs.db nightly",
    ACTIONS,
)
