"""``omniq tasks``: finds tasks, shows everything about one and why it waits, and cancels, retries or deletes many."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator

from omniq._client.admin import MOST_IN_A_PAGE
from omniq._client.queue import TaskQueue
from omniq.cli.app import note_place, now_of, open_queue, place_of
from omniq.cli.arguments import add_app, add_json, count, describe, moment, states, text
from omniq.cli.failures import OperationFailed, UsageError
from omniq.cli.groups import Action, add_actions, run_action
from omniq.cli.short_ids import whole_ids
from omniq.cli.task_control import CANCEL, DELETE, RETRY, RUN_NOW, act, add_verb, full_name
from omniq.cli.task_records import as_json, as_lines, reasons_json, task_table
from omniq.cli.terminal import Screen
from omniq.errors import TaskNotFound
from omniq.storage import TaskPage
from omniq.task import Task, TaskState

__all__ = ["ACTIONS", "configure", "run"]

DEFAULT_LIMIT = 25


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    describe(
        parser,
        "List, show, cancel, retry and delete tasks.",
        "omniq tasks list shop.tasks:queue --state failed\n"
        "omniq tasks show shop.tasks:queue 0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e\n"
        "omniq tasks retry sqlite:///jobs.db --queue mail --dry-run",
    )
    add_actions(parser, ACTIONS)


def run(options: argparse.Namespace) -> int:
    """Do what was asked."""
    return run_action(options)


def _configure_list(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Show tasks, the latest enqueued first. Every filter may be left out.",
        "omniq tasks list shop.tasks:queue\n"
        "omniq tasks list shop.tasks:queue --state failed --name resize\n"
        "omniq tasks list shop.tasks:queue --state failed,cancelled --after 2030-01-31T09:00\n"
        "omniq tasks list sqlite:///jobs.db --tag order-17 --all --json",
    )
    add_app(parser, or_url=True)
    parser.add_argument("--queue", type=text, metavar="QUEUE", help="only tasks of this queue")
    parser.add_argument(
        "--state", type=states, metavar="STATE[,...]", help=f"only tasks in one of these states: {', '.join(TaskState)}"
    )
    parser.add_argument("--name", type=text, metavar="NAME", help="only tasks of this function")
    parser.add_argument("--tag", type=text, metavar="TAG", help="only tasks with this tag")
    parser.add_argument(
        "--after", type=moment, metavar="TIME", help="only tasks enqueued at this time or later: 2030-01-31T09:00"
    )
    parser.add_argument("--before", type=moment, metavar="TIME", help="only tasks enqueued before this time")
    parser.add_argument(
        "--limit", type=count, metavar="N", help=f"how many at most (default {DEFAULT_LIMIT}); the rest is a page away"
    )
    parser.add_argument("--cursor", type=text, metavar="CURSOR", help="go on where a list ended; its last line says it")
    parser.add_argument("--all", action="store_true", help="as many as there are")
    add_json(parser)


def _list(options: argparse.Namespace) -> int:
    if options.all and options.limit:
        raise UsageError("--all and --limit exclude each other (see omniq tasks list --help)")
    with open_queue(options.app) as queue:
        pages = _pages(queue, options)
        if options.json:
            _print_json(pages, queue, Screen())
        else:
            _print_table(pages, queue, Screen())
    return 0


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
        for line in table.lines(page.tasks) if page.tasks else []:
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
            print(f"{separator}{json.dumps(as_json(task, queue))}", end="")
            separator = ",\n"
    screen.say_lines(f'\n], "cursor": {json.dumps(cursor)}}}')


def _configure_show(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Show everything about one task: its arguments, its times, its result, or its error with the traceback.\n"
        "With a URL instead of APP, arguments and result are shown as they are stored.",
        "omniq tasks show shop.tasks:queue 0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e\n"
        "omniq tasks show sqlite:///jobs.db 0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e --json",
    )
    add_app(parser, or_url=True)
    parser.add_argument("id", type=text, metavar="ID", help="the task's id, or the last 12 characters of it")
    add_json(parser)


def _show(options: argparse.Namespace) -> int:
    screen = Screen()
    with open_queue(options.app) as queue:
        (task_id,) = whole_ids(queue, [options.id])
        task = queue.get(task_id)
        if task is None:
            raise OperationFailed(f"{TaskNotFound(options.id)}; looked in {place_of(queue)}")
        why = queue.explain(task_id)
        if options.json:
            screen.say_lines(json.dumps({**as_json(task, queue), "why": reasons_json(why)}, indent=2))
            return 0
        for line in as_lines(task, queue, screen, now_of(queue), why):
            screen.say(line)
    return 0


def _configure_why(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Say why a task is not running: each reason on a line, the one to see to first at the beginning.\n"
        "Of a task that runs: where, since when, and what has become of a cancellation or of its lease.",
        "omniq tasks why shop.tasks:queue 0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e\n"
        "omniq tasks why sqlite:///jobs.db 6d1a2b3c4d5e --json",
    )
    add_app(parser, or_url=True)
    parser.add_argument("id", type=text, metavar="ID", help="the task's id, or the last 12 characters of it")
    add_json(parser)


def _why(options: argparse.Namespace) -> int:
    screen = Screen()
    with open_queue(options.app) as queue:
        (task_id,) = whole_ids(queue, [options.id])
        try:
            reasons = queue.explain(task_id)
        except TaskNotFound as error:
            raise OperationFailed(f"{error}; looked in {place_of(queue)}") from error
        if options.json:
            screen.say_lines(json.dumps(reasons_json(reasons), indent=2))
            return 0
        for reason in reasons:
            screen.say(reason.text)
    return 0


ACTIONS = {
    "list": Action("show tasks, the latest first", _configure_list, _list),
    "show": Action("show everything about one task", _configure_show, _show),
    "why": Action("say why a task is not running", _configure_why, _why),
    "cancel": Action(
        "cancel tasks that wait; ask running ones to stop",
        lambda parser: add_verb(parser, CANCEL),
        lambda options: act(options, CANCEL),
    ),
    "retry": Action(
        "make failed or cancelled tasks ready again",
        lambda parser: add_verb(parser, RETRY),
        lambda options: act(options, RETRY),
    ),
    "run-now": Action(
        "make tasks ready that are scheduled for later",
        lambda parser: add_verb(parser, RUN_NOW),
        lambda options: act(options, RUN_NOW),
    ),
    "delete": Action(
        "remove tasks that are not running",
        lambda parser: add_verb(parser, DELETE),
        lambda options: act(options, DELETE),
    ),
}
"""The actions of this command."""
