"""``omniq tasks cancel``, ``retry``, ``run-now`` and ``delete``: on tasks that are named, or on all that match."""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import frozen

from omniq._client import selection
from omniq._client.queue import TaskQueue
from omniq._client.selection import Selection, Step
from omniq.cli.app import ask, note_place
from omniq.cli.arguments import flag, option, text, value
from omniq.cli.enqueue import find_function
from omniq.cli.failures import FAILED, UsageError, complain
from omniq.cli.groups import Action
from omniq.cli.short_ids import whole_ids
from omniq.cli.terminal import Screen
from omniq.cli.wording import plural
from omniq.task import StoredTask, TaskState

__all__ = ["VERBS", "Verb", "action_of", "full_name"]

READ_AT_ONCE = 25
"""Tasks that are read in one call, each with its arguments and its result."""


RUNNING = TaskState.RUNNING


@frozen(kw_only=True)
class Verb:
    """Something that can be done to many tasks."""

    name: str
    done: str
    summary: str
    description: str
    action: selection.Action
    apply: Callable[[Selection], Iterator[Step]]

    @property
    def states(self) -> list[TaskState]:
        """Those in which it can be done."""
        return [state for state in TaskState if state in self.action.states]

    @property
    def default(self) -> list[TaskState]:
        """Those that are chosen by filters without ``--state``."""
        return [state for state in TaskState if state in self.action.default]


CANCEL = Verb(
    name="cancel",
    done="cancelled",
    summary="cancel tasks that wait; ask running ones to stop",
    description="Cancel tasks. Those that wait end at once; running ones are asked to stop.",
    action=selection.CANCEL,
    apply=Selection.cancel,
)
VERBS = (
    CANCEL,
    Verb(
        name="retry",
        done="retried",
        summary="make failed or cancelled tasks ready again",
        description="Make failed or cancelled tasks ready again, with all their attempts. Filters choose failed ones,\n"
        "unless --state says otherwise.",
        action=selection.RETRY,
        apply=Selection.retry,
    ),
    Verb(
        name="run-now",
        done="made ready",
        summary="make tasks ready that are scheduled for later",
        description="Make tasks ready that are scheduled for later, such as for their next attempt.",
        action=selection.RUN_NOW,
        apply=Selection.run_now,
    ),
    Verb(
        name="delete",
        done="deleted",
        summary="remove tasks that are not running",
        description="Remove tasks with their results. Running ones stay.",
        action=selection.DELETE,
        apply=Selection.delete,
    ),
)


def action_of(verb: Verb) -> Action:
    """Return the action of ``omniq tasks`` that does this to tasks named by ids, or chosen by filters."""
    return Action(
        verb.summary,
        f"{verb.description}\nName the tasks by their ids, or choose them by filters: then all that match are taken.",
        f"omniq tasks {verb.name} shop.tasks:queue 0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e\n"
        f"omniq tasks {verb.name} shop.tasks:queue --queue mail --state {verb.states[0]} --dry-run\n"
        f"omniq tasks {verb.name} sqlite:///jobs.db --tag order-17",
        (
            value("ids", text, "ID", "the tasks' ids, or the last 12 characters of them", nargs="*"),
            value("--queue", text, "QUEUE", "all tasks of this queue"),
            option("--state", choices=[state.value for state in verb.states], help="all tasks in this state"),
            value("--name", text, "NAME", "all tasks of this function"),
            value("--tag", text, "TAG", "all tasks with this tag"),
            flag("--dry-run", "say how many it would be, and change nothing"),
        ),
        functools.partial(_act, verb),
    )


def full_name(queue: TaskQueue, name: str | None) -> str | None:
    """Return the full name of a function of which the end was typed.

    A name that is not known here may well be that of stored tasks, and stays as it is.
    """
    if name is None or not queue.functions:
        return name
    try:
        return find_function(queue, name, "").name
    except UsageError:
        return name


def _act(verb: Verb, queue: TaskQueue, options: argparse.Namespace) -> int:
    """Do it, and say to how many.

    :return: the exit code: 1 if a task that was named was left as it is.
    :raises UsageError: if tasks are neither named nor chosen, or both.
    """
    chosen = [options.queue, options.state, options.name, options.tag]
    if options.ids and any(chosen):
        raise UsageError(f"name tasks by id or choose them by filters, not both (see omniq tasks {verb.name} --help)")
    if not options.ids and not any(chosen):
        raise UsageError(
            f"which tasks? Name their ids, or choose with --queue, --state, --name, --tag "
            f"(see omniq tasks {verb.name} --help)"
        )
    refused: Refused = []
    if options.ids:
        ids = list(dict.fromkeys(whole_ids(queue, options.ids)))
        done, refused = (_would_be_done if options.dry_run else _named)(queue, verb, ids)
    else:
        states = verb.default if options.state is None else [TaskState(options.state)]
        filters = {"queue": options.queue, "name": full_name(queue, options.name), "tag": options.tag}
        done = (_matching if options.dry_run else _applied)(queue, verb, states, filters)
    for task_id, task in refused:
        complain(_refusal(task_id, task, verb))
    Screen().say(_summary(done, verb, dry_run=options.dry_run))
    if not done.total() and all(task is None for _, task in refused):
        note_place(queue)
    return FAILED if refused else 0


Done = Counter[TaskState]
"""How many tasks were changed, by the state that they had."""
Refused = list[tuple[str, StoredTask | None]]
"""The ids of tasks that were left as they were, with their records, if they are there."""


def _would_be_done(queue: TaskQueue, verb: Verb, ids: list[str]) -> tuple[Done, Refused]:
    done, refused = Done(), []
    for task_id, task in _records(queue, ids):
        if task is not None and task.state in verb.states:
            done[task.state] += 1
        else:
            refused.append((task_id, task))
    return done, refused


def _named(queue: TaskQueue, verb: Verb, ids: list[str]) -> tuple[Done, Refused]:
    done = Done()
    refused: Refused = []
    for step in verb.apply(queue.select(ids=ids)):
        done.update(step.by_state)
        refused += _records(queue, step.left)
    return done, refused


def _records(queue: TaskQueue, ids: Sequence[str]) -> Iterator[tuple[str, StoredTask | None]]:
    for start in range(0, len(ids), READ_AT_ONCE):
        yield from _read(queue, ids[start : start + READ_AT_ONCE])


def _read(queue: TaskQueue, ids: Sequence[str]) -> Iterator[tuple[str, StoredTask | None]]:
    return zip(ids, ask(queue, lambda storage: storage.get(ids)), strict=True)


def _refusal(task_id: str, task: StoredTask | None, verb: Verb) -> str:
    if task is None:
        return f"there is no task {task_id!r}"
    if task.state not in verb.states:
        return f"task {task_id} is {task.state}, and cannot be {verb.done}"
    unique = f", or a live task has its unique key {task.unique!r}" if task.unique else ""
    return f"task {task_id} was not {verb.done}: it changed meanwhile{unique}"


def _matching(queue: TaskQueue, verb: Verb, states: Sequence[TaskState], filters: dict[str, Any]) -> Done:
    return Done({state: queue.select(states=[state], **filters).count().number for state in states})


def _applied(queue: TaskQueue, verb: Verb, states: Sequence[TaskState], filters: dict[str, Any]) -> Done:
    done = Done()
    for step in verb.apply(queue.select(states=states, **filters)):
        done.update(step.by_state)
    return done


def _summary(done: Done, verb: Verb, *, dry_run: bool) -> str:
    if verb is not CANCEL or not done[RUNNING]:
        return f"{f'would {verb.name}' if dry_run else verb.done} {plural(done.total(), 'task')}{_by_state(done)}"
    waited = Done({state: number for state, number in done.items() if state is not RUNNING})
    asked = f"{'would ask' if dry_run else 'asked'} {plural(done[RUNNING], 'running task')} to stop"
    return f"{_summary(waited, verb, dry_run=dry_run)}; {asked}" if waited.total() else asked


def _by_state(done: Done) -> str:
    parts = [f"{done[state]:,} {state}" for state in TaskState if done[state]]
    return f" ({', '.join(parts)})" if len(parts) > 1 else ""
