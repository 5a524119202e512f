"""``omniq stats``: every queue in numbers, once or again and again."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

from omniq._client.queue import TaskQueue
from omniq.cli.app import note_place, open_queue
from omniq.cli.arguments import add_json, add_store, configuring, count, flag, seconds, value
from omniq.cli.columns import Column, Table
from omniq.cli.live import Frame, Look, look, nobody_works, worker_lines
from omniq.cli.terminal import Screen, human_duration, picked, to_json
from omniq.cli.wording import plural
from omniq.limit import LimitUsage
from omniq.storage import QueueStats
from omniq.storage.outages import error_text
from omniq.task import TaskState

__all__ = ["as_json", "as_table", "configure", "held_back", "run", "running_of_limit", "show", "usage_as_json"]


configure = configuring(
    "Show for every queue how many tasks are in each state, whether it is paused, and for how long its\n"
    "oldest ready task has waited. --watch adds how many tasks come and end a second, and who runs what.",
    "omniq stats shop.tasks:queue\n"
    "omniq stats sqlite:///jobs.db --watch\n"
    "omniq stats 'redis://localhost?namespace=shop' --json",
    add_store,
    add_json,
    flag("--watch", "again and again until Ctrl-C; with --json a line each time"),
    value("--interval", seconds, "S", "with --watch: pause in seconds (default 1)", default=1.0),
    value("--count", count, "N", "with --watch: stop after N times"),
)


def run(options: argparse.Namespace) -> int:
    """Show the numbers, once or until stopped."""
    with open_queue(options.app) as queue:
        (_watch if options.watch else show)(queue, options)
    return 0


def show(queue: TaskQueue, options: argparse.Namespace) -> None:
    """Show the numbers; and where tasks wait, that no worker serves them."""
    screen, stats, usage = Screen(), queue.stats(), queue.limit_usage()

    def lines() -> Iterator[str]:
        yield from as_table(stats, screen, usage=usage) if stats else [_unused(queue)]
        if not stats:
            note_place(queue)
        waiting = sum(one.counts.get(TaskState.READY, 0) for one in stats)
        if waiting and not queue.workers():
            yield from ["", nobody_works(waiting, screen)]

    screen.answer(options.json, lambda: as_json(stats, usage), lines)


def _unused(queue: TaskQueue) -> str:
    return f"no queue has been used on {queue.url} yet"


def _watch(queue: TaskQueue, options: argparse.Namespace) -> None:
    screen = Screen()
    # The first look fails as it would without --watch; a store that goes away later may come back.
    looked: Look | Exception = queue.run(look(queue))
    before: Look | None = None
    with screen.redrawing():
        for shown in itertools.count(1):
            if isinstance(looked, Exception):
                screen.say(screen.styled(f"cannot read {queue.url} now: {error_text(looked)}", "red"))
            else:
                _show_again(Frame(looked, before), queue, screen, options)
                before = looked
            if shown == options.count:
                return
            time.sleep(options.interval)
            looked = _try_to_look(queue)


def _try_to_look(queue: TaskQueue) -> Look | Exception:
    try:
        return queue.run(look(queue))
    except Exception as error:  # a store may hold anything; the next look may work
        return error


def _show_again(frame: Frame, queue: TaskQueue, screen: Screen, options: argparse.Namespace) -> None:
    looked = frame.looked
    if options.json:
        screen.say(to_json(as_json(looked.stats, looked.usage)))
        return
    time_of_day = time.strftime("%H:%M:%S")
    title = f"{queue.url}  {time_of_day}" if screen.is_terminal else time_of_day
    queues = as_table(looked.stats, screen, frame, looked.usage) if looked.stats else [_unused(queue)]
    workers = worker_lines(looked, screen)
    if screen.height is not None:
        # Neither part may push the other off the screen.
        room = max(screen.height - 3, 4)
        workers = _cut(workers, max(room // 2, room - len(queues)))
        queues = _cut(queues, room - len(workers))
    lines = [screen.styled(title, "dim"), "", *queues, "", *workers]
    screen.draw(lines if screen.is_terminal else [*lines, ""])


def _cut(lines: list[str], most: int) -> list[str]:
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], f"… and {len(lines) - most + 1} more"]


def as_json(stats: Sequence[QueueStats], usage: Sequence[LimitUsage] = ()) -> list[dict[str, Any]]:
    """Return the numbers as what ``--json`` prints.

    :param usage: how the limits of the queues stand.
    """
    limits = {one.scope.queue: usage_as_json(one) for one in usage}
    return [
        {
            "queue": queue.queue,
            **{state: queue.counts.get(state, 0) for state in TaskState},
            "paused": queue.paused,
            "oldest_ready": None if queue.oldest_ready is None else round(queue.oldest_ready, 3),
            "limit": limits.get(queue.queue),
        }
        for queue in stats
    ]


def usage_as_json(usage: LimitUsage) -> dict[str, Any]:
    """Return how a limit stands as what ``--json`` prints."""
    return {
        "running": usage.running,
        "concurrency": usage.limit and usage.limit.concurrency,
        **picked(usage, "next_start", "held_keys"),
    }


def as_table(
    stats: Sequence[QueueStats], screen: Screen, frame: Frame | None = None, usage: Sequence[LimitUsage] = ()
) -> list[str]:
    """Return the numbers as a table's lines.

    :param frame: adds how many tasks come and end a second.
    :param usage: how limits stand; adds those of the queues.
    """
    limits = {one.scope.queue: one for one in usage}
    columns = [
        Column[QueueStats](title="queue", cell=lambda queue: queue.queue, least=10),
        # Those who have no flows need not be told of what only tasks of flows can be.
        *(_state_column(state) for state in TaskState if state is not BLOCKED or any(map(_has_blocked, stats))),
        Column[QueueStats](
            title="paused",
            cell=lambda queue: "yes" if queue.paused else "no",
            styles=lambda queue: ("yellow",) if queue.paused else (),
            right=True,
            rank=1,
            dull="no",
        ),
    ]
    if any(queue.queue in limits for queue in stats):
        columns += [
            Column[QueueStats](
                title="limit", cell=lambda queue: running_of_limit(limits.get(queue.queue)), right=True, rank=1
            ),
            Column[QueueStats](
                title="held back", cell=lambda queue: held_back(limits.get(queue.queue)), right=True, rank=1
            ),
        ]
    if frame is not None:
        columns += [
            Column[QueueStats](title="in/s", cell=lambda queue: frame.incoming(queue.queue), right=True),
            Column[QueueStats](title="done/s", cell=lambda queue: frame.ending(queue.queue), right=True),
        ]
    columns.append(
        Column[QueueStats](
            title="oldest ready",
            cell=lambda queue: "-" if queue.oldest_ready is None else human_duration(queue.oldest_ready),
            right=True,
        )
    )
    return Table(columns, screen).lines(stats)


def running_of_limit(usage: LimitUsage | None) -> str:
    """Return how many tasks run of how many; a dash if there is no limit of that."""
    most = usage and usage.limit and usage.limit.concurrency
    return "-" if usage is None or most is None else f"{usage.running:,}/{most:,}"


def held_back(usage: LimitUsage | None) -> str:
    """Return what a limit holds back."""
    if usage is None:
        return "-"
    if usage.scope.queue is not None and (usage.is_full or usage.next_start is not None):
        return "all"
    return plural(usage.held_keys, "key") if usage.held_keys else "-"


BLOCKED = TaskState.BLOCKED


def _has_blocked(queue: QueueStats) -> bool:
    return queue.counts.get(BLOCKED, 0) > 0


def _state_column(state: TaskState) -> Column[QueueStats]:
    # Where there is no room for all, those that ended in a good way are missed least.
    ranks = {TaskState.CANCELLED: 4, TaskState.SCHEDULED: 3, TaskState.SUCCEEDED: 2, TaskState.FAILED: 1}
    return Column(
        title=state.value,
        cell=lambda queue: f"{queue.counts.get(state, 0):,}",
        styles=lambda queue: ("red",) if state is TaskState.FAILED and queue.counts.get(state) else (),
        right=True,
        rank=ranks.get(state, 0),
        dull="0",
    )
