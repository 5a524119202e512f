"""``omniq flows``: which flows there are, how far they are, and cancelling and retrying them as wholes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from omniq._client.queue import TaskQueue
from omniq.cli.app import now_of, open_queue, store_of
from omniq.cli.arguments import add_app, add_json, count, describe, text
from omniq.cli.columns import Column, Table
from omniq.cli.failures import FAILED, complain
from omniq.cli.groups import Action, add_actions, run_action
from omniq.cli.short_ids import short_id, whole_ids
from omniq.cli.terminal import Screen
from omniq.cli.wording import ago, plural
from omniq.flow import Flow
from omniq.storage import Storage, TaskQuery
from omniq.storage.flows import no_flows
from omniq.task import TaskState

__all__ = ["ACTIONS", "configure", "run"]

LOOKED_AT = 10_000
"""The latest tasks that ``list`` looks through for flows."""
AT_A_TIME = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    describe(
        parser,
        "List, show, cancel and retry flows: tasks that need each other's results.",
        "omniq flows list shop.tasks:queue\n"
        "omniq flows show shop.tasks:queue 6d1a2b3c4d5e\n"
        "omniq flows retry shop.tasks:queue 0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e",
    )
    add_actions(parser, ACTIONS)


def run(options: argparse.Namespace) -> int:
    """Do what was asked."""
    return run_action(options)


def _configure_list(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        f"Show the flows of the latest {LOOKED_AT:,} tasks, the latest first.",
        "omniq flows list shop.tasks:queue\nomniq flows list shop.tasks:queue --limit 5 --json",
    )
    add_app(parser, or_url=True)
    parser.add_argument("--limit", type=count, default=20, metavar="N", help="how many at most (default 20)")
    add_json(parser)


def _configure_show(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Show one flow: how many of its tasks are in each state, and its gates that are not open.",
        "omniq flows show shop.tasks:queue 6d1a2b3c4d5e",
    )
    _add_ids(parser)
    add_json(parser)


def _configure_cancel(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Cancel whole flows: what waits ends, what runs is asked to stop.",
        "omniq flows cancel shop.tasks:queue 6d1a2b3c4d5e",
    )
    _add_ids(parser)


def _configure_retry(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Run again what failed or was cancelled in flows, and then what waits for it.",
        "omniq flows retry shop.tasks:queue 6d1a2b3c4d5e",
    )
    _add_ids(parser)


def _add_ids(parser: argparse.ArgumentParser) -> None:
    add_app(parser, or_url=True)
    parser.add_argument(
        "ids", nargs="+", type=text, metavar="ID", help="the flows' ids, or the last 12 characters of them"
    )


def _list(options: argparse.Namespace) -> int:
    screen = Screen()
    with open_queue(options.app) as queue:
        flows = queue.run(_latest(queue, options.limit))
        now = now_of(queue)
        if options.json:
            screen.say_lines(json.dumps([_as_json(flow) for flow in flows], indent=2))
        elif flows:
            for line in _table(screen, now).lines(flows):
                screen.say(line)
        else:
            screen.say("there are no flows")
    return 0


def _show(options: argparse.Namespace) -> int:
    screen, code = Screen(), 0
    with open_queue(options.app) as queue:
        ids = whole_ids(queue, options.ids)
        found = queue.run(_found(queue, ids))
        flows = [flow for flow in found if flow is not None]
        if options.json:
            screen.say_lines(json.dumps([_as_json(flow) for flow in flows], indent=2))
        else:
            for flow in flows:
                _say(screen, flow, now_of(queue))
        for flow_id, one in zip(ids, found, strict=True):
            if one is None:
                complain(f"there is no flow {flow_id}")
                code = FAILED
    return code


def _cancel(options: argparse.Namespace) -> int:
    code = 0
    with open_queue(options.app) as queue:
        for flow_id in whole_ids(queue, options.ids):
            if queue.run(queue.flows.acancel(flow_id)):
                Screen().say(f"flow {flow_id} is cancelled")
            else:
                complain(f"flow {flow_id} is not there, has ended, or was cancelled before")
                code = FAILED
    return code


def _retry(options: argparse.Namespace) -> int:
    code = 0
    with open_queue(options.app) as queue:
        for flow_id in whole_ids(queue, options.ids):
            number = queue.run(queue.flows.aretry(flow_id))
            if number:
                Screen().say(f"flow {flow_id}: {plural(number, 'task')} to run again, and what waits for them")
            else:
                complain(f"flow {flow_id} is not there, or nothing of it failed or was cancelled")
                code = FAILED
    return code


ACTIONS = {
    "list": Action("show the latest flows", _configure_list, _list),
    "show": Action("show how far a flow is", _configure_show, _show),
    "cancel": Action("cancel whole flows", _configure_cancel, _cancel),
    "retry": Action("run again what failed in flows", _configure_retry, _retry),
}


async def _holding(queue: TaskQueue) -> Storage:
    storage = await store_of(queue)
    if not storage.limits.flows:
        raise no_flows(storage)
    return storage


async def _found(queue: TaskQueue, ids: Sequence[str]) -> list[Flow | None]:
    return await (await _holding(queue)).get_flows(ids)


async def _latest(queue: TaskQueue, limit: int) -> list[Flow]:
    storage = await _holding(queue)
    ids: dict[str, None] = {}
    cursor: str | None = None
    for _ in range(LOOKED_AT // AT_A_TIME):
        page = await storage.list_tasks(TaskQuery(limit=AT_A_TIME, bare=True), cursor)
        ids |= dict.fromkeys(task.flow for task in page if task.flow is not None)
        cursor = page.cursor
        if cursor is None or len(ids) >= limit:
            break
    return [flow for flow in await storage.get_flows(list(ids)[:limit]) if flow is not None]


def _state(flow: Flow) -> str:
    if flow.finished_at is None:
        return "cancelling" if flow.cancelled else "live"
    good = flow.counts[TaskState.SUCCEEDED] == sum(flow.counts.values())
    return "succeeded" if good else "cancelled" if flow.cancelled else "ended"


def _table(screen: Screen, now: datetime) -> Table[Flow]:
    states = (TaskState.BLOCKED, TaskState.READY, TaskState.RUNNING, *(one for one in TaskState if one.is_final))
    columns: list[Column[Flow]] = [
        Column(title="id", cell=lambda flow: short_id(flow.id)),
        Column(title="state", cell=_state),
        *(_state_column(state) for state in states),
        Column(title="enqueued", cell=lambda flow: ago(flow.created_at, now), right=True),
    ]
    return Table(columns, screen)


def _state_column(state: TaskState) -> Column[Flow]:
    return Column(title=state.value, cell=lambda flow: f"{flow.counts[state]:,}", right=True, dull="0")


def _say(screen: Screen, flow: Flow, now: datetime) -> None:
    counts = ", ".join(f"{number:,} {state}" for state, number in flow.counts.items() if number)
    screen.say(f"flow {flow.id}: {_state(flow)}, enqueued {ago(flow.created_at, now)}")
    screen.say(f"  tasks: {counts or 'none'}")
    for gate in flow.gates:
        if gate.state != "open":
            why = f": {gate.error}" if gate.error else ""
            screen.say(f"  gate {gate.n} is {gate.state} and waits for {plural(gate.unmet, 'task')}{why}")


def _as_json(flow: Flow) -> dict[str, Any]:
    return {
        "id": flow.id,
        "unique": flow.unique,
        "state": _state(flow),
        "created_at": flow.created_at.isoformat(),
        "finished_at": None if flow.finished_at is None else flow.finished_at.isoformat(),
        "cancelled": flow.cancelled,
        "counts": {state.value: number for state, number in flow.counts.items()},
        "gates": [
            {"n": gate.n, "state": gate.state.value, "unmet": gate.unmet, "failed": gate.failed, "error": gate.error}
            for gate in flow.gates
        ],
    }
