"""``omniq queues``: which queues there are, and pausing, resuming and emptying them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from omniq._client.queue import TaskQueue
from omniq.cli.app import note_place, place_of
from omniq.cli.arguments import add_json, flag, option, queue_name, value
from omniq.cli.failures import OperationFailed, UsageError, each, note, suggestion
from omniq.cli.groups import Action, command_of
from omniq.cli.stats import show
from omniq.cli.terminal import Screen
from omniq.cli.wording import plural
from omniq.storage import QueueStats
from omniq.storage.escaping import printable
from omniq.task import TaskState

__all__ = ["ACTIONS", "configure", "run"]


# Pausing and resuming


def _pause(queue: TaskQueue, options: argparse.Namespace) -> None:
    known = _known(queue, queue.stats())
    for name in dict.fromkeys(options.queues):
        changed = queue.pause(name)
        Screen().say(f"queue {name} is paused" if changed else f"queue {name} was paused already")
        if name not in known:
            # Not wrong: a queue can be paused before its first task comes.
            note(f"queue {name} has no tasks yet{suggestion(name, known)}")


def _resume(queue: TaskQueue, options: argparse.Namespace) -> int:
    known = _known(queue, queue.stats())

    def resume(name: str) -> None:
        if queue.resume(name):
            Screen().say(f"queue {name} goes on")
        elif name in known:
            Screen().say(f"queue {name} was not paused")
        else:
            hint = suggestion(name, known)
            raise OperationFailed(f"there is no queue {name!r}{hint or f'; looked in {place_of(queue)}'}")

    return each(options.queues, resume)


def _known(queue: TaskQueue, stats: Iterable[QueueStats]) -> set[str]:
    return {one.queue for one in stats} | {one.options.queue for one in queue.functions.values()}


# Emptying


def _purge(queue: TaskQueue, options: argparse.Namespace) -> None:
    stats = queue.stats()
    number = _removable(stats, options.queue, options.state)
    what = _what(number, options)
    if options.dry_run:
        Screen().say(f"would remove {what}")
    elif number == 0:
        known = _known(queue, stats)
        hint = "" if options.queue in known else suggestion(options.queue, known)
        Screen().say(f"there is nothing to remove: {what}{hint}")
        if options.queue not in known and not hint:
            note_place(queue)
    else:
        if not options.yes:
            _confirm(what, queue)
        chosen = queue.select(queue=options.queue, states=options.state and [options.state])
        removed = sum(step.done for step in chosen.delete())
        Screen().say(f"removed {_what(removed, options)}")


def _removable(stats: Iterable[QueueStats], name: str, state: str | None) -> int:
    for queue in stats:
        if queue.queue == name:
            chosen = [one for one in TaskState if one is not TaskState.RUNNING] if state is None else [TaskState(state)]
            return sum(queue.counts.get(one, 0) for one in chosen)
    return 0


def _what(number: int, options: argparse.Namespace) -> str:
    kind = "task" if options.state is None else f"{options.state} task"
    return f"{plural(number, kind)} of queue {options.queue}"


def _confirm(what: str, queue: TaskQueue) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"this would remove {what} for good; add --yes to do so, or --dry-run to look")
    print(printable(f"Remove {what} on {queue.url} for good? [y/N] "), end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        print(file=sys.stderr)
    if answer.strip().lower() not in ("y", "yes"):
        raise OperationFailed("nothing was removed")


_QUEUES = (value("queues", queue_name, "QUEUE", "the queue's name", nargs="+"),)

ACTIONS = {
    "list": Action(
        "show every queue in numbers",
        "Show every queue that has tasks or is paused: the same as omniq stats.",
        "omniq queues list shop.tasks:queue\nomniq queues list sqlite:///jobs.db --json",
        (add_json,),
        show,
    ),
    "pause": Action(
        "keep workers from claiming tasks of a queue",
        "Keep workers from claiming tasks of a queue. Tasks that run go on, new ones are taken in, and the pause\n"
        "survives restarts.",
        "omniq queues pause shop.tasks:queue mail\nomniq queues pause sqlite:///jobs.db mail reports",
        _QUEUES,
        _pause,
    ),
    "resume": Action(
        "let them claim again",
        "Let workers claim tasks of a paused queue again.",
        "omniq queues resume shop.tasks:queue mail\nomniq queues resume sqlite:///jobs.db mail reports",
        _QUEUES,
        _resume,
    ),
    "purge": Action(
        "remove the tasks of a queue",
        "Remove all tasks of a queue with their results; running ones stay. On a terminal it asks first; elsewhere\n"
        "it wants --yes, unless there is nothing to remove.",
        "omniq queues purge shop.tasks:queue mail\n"
        "omniq queues purge shop.tasks:queue mail --state failed --yes\n"
        "omniq queues purge sqlite:///jobs.db mail --dry-run",
        (
            value("queue", queue_name, "QUEUE", "the queue's name"),
            option(
                "--state",
                choices=[state.value for state in TaskState if state is not TaskState.RUNNING],
                help="only tasks in this state",
            ),
            flag("--dry-run", "say how many it would be, and remove nothing"),
            flag("-y --yes", "do not ask"),
        ),
        _purge,
    ),
}
"""The actions of this command."""

configure, run = command_of(
    "List, pause, resume and purge queues.",
    ACTIONS,
)
