"""``omniq tasks``: finds tasks, shows everything about one and why it waits, and cancels, retries or deletes many."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

from omniq._client.admin import MOST_IN_A_PAGE
from omniq._client.queue import TaskQueue
from omniq.cli.app import note_place, now_of, place_of
from omniq.cli.arguments import add_json, count, flag, moment, states, text, value
from omniq.cli.failures import OperationFailed, UsageError
from omniq.cli.groups import Action, command_of
from omniq.cli.short_ids import whole_ids
from omniq.cli.task_control import VERBS, action_of, full_name
from omniq.cli.task_records import as_json, as_lines, task_table
from omniq.cli.terminal import Screen, to_json
from omniq.errors import TaskNotFound
from omniq.storage import TaskPage
from omniq.task import Task, TaskState

__all__ = ["ACTIONS", "configure", "run"]

DEFAULT_LIMIT = 25


def _list(queue: TaskQueue, options: argparse.Namespace) -> None:
    if options.all and options.limit:
        raise UsageError("--all and --limit exclude each other (see omniq tasks list --help)")
    (_print_json if options.json else _print_table)(_pages(queue, options), queue, Screen())


def _pages(queue: TaskQueue, options: argparse.Namespace) -> Iterator[TaskPage[Task]]:
    left = None if options.all else options.limit or DEFAULT_LIMIT
    cursor = options.cursor
    while left is None or left > 0:
        try:
            page = queue.tasks(
                queue=options.queue,
                states=options.state,
                name=full_name(queue, options.name),
                tag=options.tag,
                enqueued_before=options.before,
                enqueued_after=options.after,
                bare=not options.json,  # of what can be large a table shows nothing
                limit=MOST_IN_A_PAGE if left is None else min(left, MOST_IN_A_PAGE),
                cursor=cursor,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        yield page
        cursor = page.cursor
        if cursor is None:
            return
        if left is not None:
            left -= len(page)


def _print_table(pages: Iterator[TaskPage[Task]], queue: TaskQueue, screen: Screen) -> None:
    table = task_table(screen, now_of(queue))
    cursor, shown = None, 0
    for page in pages:
        for line in table.lines(page.tasks):
            screen.say(line)
        cursor, shown = page.cursor, shown + len(page)
    if not shown:
        screen.say("no such tasks")
        note_place(queue)
    if cursor is not None:
        screen.say(screen.styled(f"there are more: --cursor={shlex.quote(cursor)}", "dim"))


def _print_json(pages: Iterator[TaskPage[Task]], queue: TaskQueue, screen: Screen) -> None:
    # Written as it is read: there may be more tasks than fit into memory.
    cursor, separator = None, ""
    screen.say('{"tasks": [')
    for page in pages:
        cursor = page.cursor
        for task in page:
            print(f"{separator}{to_json(as_json(task, queue))}", end="")
            separator = ",\n"
    screen.say_lines(f'\n], "cursor": {to_json(cursor)}}}')


def _show(queue: TaskQueue, options: argparse.Namespace) -> None:
    (task_id,) = whole_ids(queue, [options.id])
    task = queue.get(task_id)
    if task is None:
        raise _not_found(queue, TaskNotFound(options.id))
    why, screen = queue.explain(task_id), Screen()
    screen.answer(
        options.json,
        lambda: {**as_json(task, queue), "why": why},
        lambda: as_lines(task, queue, screen, now_of(queue), why),
    )


def _why(queue: TaskQueue, options: argparse.Namespace) -> None:
    (task_id,) = whole_ids(queue, [options.id])
    try:
        reasons = queue.explain(task_id)
    except TaskNotFound as error:
        raise _not_found(queue, error) from error
    Screen().answer(options.json, lambda: reasons, lambda: [reason.text for reason in reasons])


def _not_found(queue: TaskQueue, error: TaskNotFound) -> OperationFailed:
    return OperationFailed(f"{error}; looked in {place_of(queue)}")


_ID = value("id", text, "ID", "the task's id, or the last 12 characters of it")

ACTIONS = {
    "list": Action(
        "show tasks, the latest first",
        "Show tasks, the latest enqueued first. Every filter may be left out.",
        "omniq tasks list shop.tasks:queue\n"
        "omniq tasks list shop.tasks:queue --state failed --name resize\n"
        "omniq tasks list shop.tasks:queue --state failed,cancelled --after 2030-01-31T09:00\n"
        "omniq tasks list sqlite:///jobs.db --tag order-17 --all --json",
        (
            value("--queue", text, "QUEUE", "only tasks of this queue"),
            value("--state", states, "STATE[,...]", f"only tasks in one of these states: {', '.join(TaskState)}"),
            value("--name", text, "NAME", "only tasks of this function"),
            value("--tag", text, "TAG", "only tasks with this tag"),
            value("--after", moment, "TIME", "only tasks enqueued at this time or later: 2030-01-31T09:00"),
            value("--before", moment, "TIME", "only tasks enqueued before this time"),
            value("--limit", count, "N", f"how many at most (default {DEFAULT_LIMIT}); the rest is a page away"),
            value("--cursor", text, "CURSOR", "go on where a list ended; its last line says it"),
            flag("--all", "as many as there are"),
            add_json,
        ),
        _list,
    ),
    "show": Action(
        "show everything about one task",
        "Show everything about one task: its arguments, its times, its result, or its error with the traceback.\n"
        "With a URL instead of APP, arguments and result are shown as they are stored.",
        "omniq tasks show shop.tasks:queue 0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e\n"
        "omniq tasks show sqlite:///jobs.db 0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e --json",
        (_ID, add_json),
        _show,
    ),
    "why": Action(
        "say why a task is not running",
        "Say why a task is not running: each reason on a line, the one to see to first at the beginning.\n"
        "Of a task that runs: where, since when, and what has become of a cancellation or of its lease.",
        "omniq tasks why shop.tasks:queue 0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e\n"
        "omniq tasks why sqlite:///jobs.db 6d1a2b3c4d5e --json",
        (_ID, add_json),
        _why,
    ),
    **{verb.name: action_of(verb) for verb in VERBS},
}
"""The actions of this command."""

configure, run = command_of(
    "List, show, cancel, retry and delete tasks.",
    ACTIONS,
)
