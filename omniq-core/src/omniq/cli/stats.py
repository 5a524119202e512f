"""``omniq stats``: every queue in numbers, once or again and again."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

from omniq.cli.app import load_queue_or_url, require_shared
from omniq.cli.arguments import add_app, add_json, count, describe, seconds
from omniq.cli.terminal import Screen, human_duration, table
from omniq.errors import StorageError
from omniq.queue import TaskQueue
from omniq.storage import QueueStats
from omniq.task import TaskState

__all__ = ["as_json", "as_table", "configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    describe(
        parser,
        "Show for every queue how many tasks are in each state, whether it is paused, and for how long its\n"
        "oldest ready task has waited.",
        "omniq stats shop.tasks:queue\n"
        "omniq stats sqlite:///jobs.db --watch\n"
        "omniq stats 'redis://localhost?namespace=shop' --json",
    )
    add_app(parser, or_url=True)
    add_json(parser)
    parser.add_argument(
        "--watch", action="store_true", help="again and again until Ctrl-C; with --json a line each time"
    )
    parser.add_argument(
        "--interval", type=seconds, default=1.0, metavar="S", help="with --watch: pause in seconds (default 1)"
    )
    parser.add_argument("--count", type=count, metavar="N", help="with --watch: stop after N times")


def run(options: argparse.Namespace) -> int:
    """Show the numbers, once or until stopped."""
    queue = load_queue_or_url(options.app)
    require_shared(queue)
    screen = Screen()
    with queue:
        if options.watch:
            _watch(queue, screen, options)
        else:
            _show(queue.stats(), queue, screen, options)
    return 0


def _show(stats: Sequence[QueueStats], queue: TaskQueue, screen: Screen, options: argparse.Namespace) -> None:
    if options.json:
        screen.say(json.dumps(as_json(stats), indent=None if options.watch else 2))
        return
    lines = as_table(stats, screen) if stats else [f"no queue has been used on {queue.url} yet"]
    if options.watch:
        now = time.strftime("%H:%M:%S")
        lines = [screen.styled(f"{queue.url}  {now}", "dim"), "", *lines] if screen.is_terminal else [now, *lines, ""]
        screen.draw(lines)
    else:
        for line in lines:
            screen.say(line)


def _watch(queue: TaskQueue, screen: Screen, options: argparse.Namespace) -> None:
    # The first look fails as it would without --watch; a store that goes away later may come back.
    stats: Sequence[QueueStats] | StorageError = queue.stats()
    with screen.redrawing():
        for shown in itertools.count(1):
            if isinstance(stats, StorageError):
                screen.say(screen.styled(f"cannot read {queue.url} now: {stats}", "red"))
            else:
                _show(stats, queue, screen, options)
            if shown == options.count:
                return
            time.sleep(options.interval)
            stats = _try_to_read(queue)


def _try_to_read(queue: TaskQueue) -> Sequence[QueueStats] | StorageError:
    try:
        return queue.stats()
    except StorageError as error:
        return error


def as_json(stats: Sequence[QueueStats]) -> list[dict[str, Any]]:
    """Give the numbers as what ``--json`` prints."""
    return [
        {
            "queue": queue.queue,
            **{state.value: queue.counts.get(state, 0) for state in TaskState},
            "paused": queue.paused,
            "oldest_ready": None if queue.oldest_ready is None else round(queue.oldest_ready, 3),
        }
        for queue in stats
    ]


def as_table(stats: Sequence[QueueStats], screen: Screen) -> list[str]:
    """Give the numbers as a table's lines."""
    header = ["queue", *(state.value for state in TaskState), "paused", "oldest ready"]
    rows = [
        [
            queue.queue,
            *(f"{queue.counts.get(state, 0):,}" for state in TaskState),
            "yes" if queue.paused else "no",
            "-" if queue.oldest_ready is None else human_duration(queue.oldest_ready),
        ]
        for queue in stats
    ]
    first, *others = table(header, rows)
    return [screen.styled(first, "bold"), *others]
