"""``omniq schedules``: what is planned, and pausing, resuming, triggering and deleting it."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from omniq._client.queue import TaskQueue
from omniq._tasks.policies import decode_value
from omniq.cli.app import now_of, place_of
from omniq.cli.arguments import add_json, text, value
from omniq.cli.columns import Column
from omniq.cli.failures import OperationFailed, each, note, suggestion
from omniq.cli.groups import Action, answer_all, command_of
from omniq.cli.task_records import arguments_json, arguments_text
from omniq.cli.terminal import Screen, human_duration, picked
from omniq.cli.trigger_words import in_words
from omniq.cli.wording import ago, exact, local_time, relative
from omniq.errors import CorruptRecord, OmniQError, PayloadRejected, ScheduleNotFound
from omniq.schedule import Schedule, Trigger
from omniq.storage.body import preview
from omniq.task import Task

__all__ = ["ACTIONS", "as_json", "configure", "next_runs", "run", "trigger_of", "words_of"]

PREVIEW = 5
"""How many of the next runs are shown of one schedule."""


def _list(queue: TaskQueue, options: argparse.Namespace) -> None:
    now = now_of(queue)
    answer_all(
        queue, options, queue.schedules(), lambda one: as_json(one, queue, now), _columns(queue, now), "schedules"
    )


def _columns(queue: TaskQueue, now: datetime) -> list[Column[Schedule]]:
    return [
        Column(title="id", cell=lambda one: one.id, least=10),
        Column(title="task", cell=lambda one: one.task.name, least=8, keep_end=True, rank=2),
        Column(title="trigger", cell=lambda one: words_of(one, trigger_of(one, queue)), least=24),
        Column(title="next run", cell=_next_run, rank=1),
        Column(title="due", cell=lambda one: _due(one, now), right=True),
        Column(title="last run", cell=lambda one: ago(one.last_run, now), right=True, rank=4),
        Column(title="paused", cell=lambda one: _yes(one.paused), rank=3, dull="no"),
        Column(title="declared", cell=lambda one: _yes(one.declared), rank=5, dull="no"),
    ]


def _next_run(schedule: Schedule) -> str:
    return "-" if schedule.paused or schedule.next_run is None else local_time(schedule.next_run)


def _due(schedule: Schedule, now: datetime) -> str:
    if schedule.paused:
        return "paused"
    return "never" if schedule.next_run is None else relative(schedule.next_run, now)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def trigger_of(schedule: Schedule, queue: TaskQueue) -> Trigger | None:
    """Return the trigger of a schedule; None if it cannot be read here."""
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


def words_of(schedule: Schedule, trigger: Trigger | None) -> str:
    """Return in words when a schedule fires; as it is stored if its trigger cannot be read here."""
    return schedule.trigger if trigger is None else in_words(trigger)


def as_json(schedule: Schedule, queue: TaskQueue, now: datetime) -> dict[str, Any]:
    """Return a schedule as what ``--json`` prints."""
    return {
        "id": schedule.id,
        "task": schedule.task.name,
        "queue": schedule.task.queue,
        **arguments_json(_record(schedule, queue, now), queue),
        "trigger": _trigger_json(schedule),
        "trigger_text": words_of(schedule, trigger_of(schedule, queue)),
        **picked(schedule, "next_run", "last_run", "last_task", "paused", "declared", "apps"),
        **picked(schedule, "misfire", "overlap", "jitter", "start", "end", "revision"),
    }


def _show(queue: TaskQueue, options: argparse.Namespace) -> None:
    schedule, now, screen = _find(queue, options.id), now_of(queue), Screen()
    screen.answer(
        options.json,
        lambda: as_json(schedule, queue, now),
        lambda: screen.details(_details(schedule, queue, now)),
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
    trigger = trigger_of(schedule, queue)
    yield "trigger", words_of(schedule, trigger)
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
    for moment in next_runs(schedule, trigger):
        yield label, exact(moment, now)
        label = ""
    if label:
        yield label, "none"


def next_runs(schedule: Schedule, trigger: Trigger | None) -> Iterator[datetime]:
    """Yield the next runs of a schedule, as far as they are known: without its trigger that is one."""
    moment = schedule.next_run
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
    ACTIONS,
)
