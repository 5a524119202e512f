"""``omniq queues``: which queues there are, and pausing, resuming and emptying them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable

from omniq._client.queue import TaskQueue
from omniq.cli.app import note_place, open_queue, place_of
from omniq.cli.arguments import add_app, add_json, describe, queue_name
from omniq.cli.failures import FAILED, OperationFailed, UsageError, complain, note, suggestion
from omniq.cli.groups import Action, add_actions, run_action
from omniq.cli.stats import as_json, show
from omniq.cli.terminal import Screen
from omniq.cli.wording import plural
from omniq.storage import QueueStats
from omniq.storage.escaping import printable
from omniq.task import TaskState

__all__ = ["ACTIONS", "configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    describe(
        parser,
        "List, pause, resume and purge queues.",
        "omniq queues list shop.tasks:queue\n"
        "omniq queues pause shop.tasks:queue mail\n"
        "omniq queues purge sqlite:///jobs.db mail --state failed --dry-run",
    )
    add_actions(parser, ACTIONS)


def run(options: argparse.Namespace) -> int:
    """Do what was asked."""
    return run_action(options)


# Looking


def _configure_list(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Show every queue that has tasks or is paused: the same as omniq stats.",
        "omniq queues list shop.tasks:queue\nomniq queues list sqlite:///jobs.db --json",
    )
    add_app(parser, or_url=True)
    add_json(parser)


def _list(options: argparse.Namespace) -> int:
    screen = Screen()
    with open_queue(options.app) as queue:
        stats = queue.stats()
        if options.json:
            screen.say_lines(json.dumps(as_json(stats, queue.limit_usage()), indent=2))
            return 0
        show(stats, queue, screen)
    return 0


# Pausing and resuming


def _configure_pause(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Keep workers from claiming tasks of a queue. Tasks that run go on, new ones are taken in, and the pause\n"
        "survives restarts.",
        "omniq queues pause shop.tasks:queue mail\nomniq queues pause sqlite:///jobs.db mail reports",
    )
    _add_queues(parser)


def _configure_resume(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Let workers claim tasks of a paused queue again.",
        "omniq queues resume shop.tasks:queue mail\nomniq queues resume sqlite:///jobs.db mail reports",
    )
    _add_queues(parser)


def _add_queues(parser: argparse.ArgumentParser) -> None:
    add_app(parser, or_url=True)
    parser.add_argument("queues", nargs="+", type=queue_name, metavar="QUEUE", help="the queue's name")


def _pause(options: argparse.Namespace) -> int:
    with open_queue(options.app) as queue:
        known = _known(queue, queue.stats())
        for name in dict.fromkeys(options.queues):
            changed = queue.pause(name)
            Screen().say(f"queue {name} is paused" if changed else f"queue {name} was paused already")
            if name not in known:
                # Not wrong: a queue can be paused before its first task comes.
                note(f"queue {name} has no tasks yet{suggestion(name, known)}")
    return 0


def _resume(options: argparse.Namespace) -> int:
    code = 0
    with open_queue(options.app) as queue:
        known = _known(queue, queue.stats())
        for name in dict.fromkeys(options.queues):
            if queue.resume(name):
                Screen().say(f"queue {name} goes on")
            elif name in known:
                Screen().say(f"queue {name} was not paused")
            else:
                hint = suggestion(name, known)
                complain(f"there is no queue {name!r}{hint or f'; looked in {place_of(queue)}'}")
                code = FAILED
    return code


def _known(queue: TaskQueue, stats: Iterable[QueueStats]) -> set[str]:
    return {one.queue for one in stats} | {one.options.queue for one in queue.functions.values()}


# Emptying


def _configure_purge(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Remove all tasks of a queue with their results; running ones stay. On a terminal it asks first; elsewhere\n"
        "it wants --yes, unless there is nothing to remove.",
        "omniq queues purge shop.tasks:queue mail\n"
        "omniq queues purge shop.tasks:queue mail --state failed --yes\n"
        "omniq queues purge sqlite:///jobs.db mail --dry-run",
    )
    add_app(parser, or_url=True)
    parser.add_argument("queue", type=queue_name, metavar="QUEUE", help="the queue's name")
    removable = [state.value for state in TaskState if state is not TaskState.RUNNING]
    parser.add_argument("--state", choices=removable, help="only tasks in this state")
    parser.add_argument("--dry-run", action="store_true", help="say how many it would be, and remove nothing")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _purge(options: argparse.Namespace) -> int:
    with open_queue(options.app) as queue:
        stats = queue.stats()
        number = _removable(stats, options.queue, options.state)
        what = _what(number, options)
        if options.dry_run:
            Screen().say(f"would remove {what}")
            return 0
        if number == 0:
            known = _known(queue, stats)
            hint = "" if options.queue in known else suggestion(options.queue, known)
            Screen().say(f"there is nothing to remove: {what}{hint}")
            if options.queue not in known and not hint:
                note_place(queue)
            return 0
        if not options.yes:
            _confirm(what, queue)
        chosen = queue.select(queue=options.queue, states=options.state and [options.state])
        removed = sum(step.done for step in chosen.delete())
        Screen().say(f"removed {_what(removed, options)}")
    return 0


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


ACTIONS = {
    "list": Action("show every queue in numbers", _configure_list, _list),
    "pause": Action("keep workers from claiming tasks of a queue", _configure_pause, _pause),
    "resume": Action("let them claim again", _configure_resume, _resume),
    "purge": Action("remove the tasks of a queue", _configure_purge, _purge),
}
"""The actions of this command."""
