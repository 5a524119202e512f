"""``omniq flows``: which flows there are, how far they are, and cancelling and retrying them as wholes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from omniq._client.queue import TaskQueue
from omniq.cli.app import ask, now_of, place_of
from omniq.cli.arguments import add_json, count, text, value
from omniq.cli.columns import Column
from omniq.cli.failures import OperationFailed, each
from omniq.cli.groups import Action, answer_all, command_of
from omniq.cli.short_ids import short_id, whole_ids
from omniq.cli.terminal import Screen, picked
from omniq.cli.wording import ago, plural
from omniq.flow import Flow
from omniq.storage import Storage, TaskQuery
from omniq.storage.flows import no_flows
from omniq.task import TaskState

__all__ = ["ACTIONS", "LOOKED_AT", "configure", "latest_flows", "run", "state_of"]

LOOKED_AT = 10_000
"""The latest tasks that are looked through for flows."""
AT_A_TIME = 1000


def _list(queue: TaskQueue, options: argparse.Namespace) -> None:
    flows = ask(queue, lambda storage: latest_flows(_holding(storage), options.limit))
    answer_all(queue, options, flows, _as_json, _columns(now_of(queue)), "flows")


def _show(queue: TaskQueue, options: argparse.Namespace) -> int:
    ids = whole_ids(queue, options.ids)
    found = dict(zip(ids, ask(queue, lambda storage: _holding(storage).get_flows(ids)), strict=True))
    flows, now = [flow for flow in found.values() if flow is not None], now_of(queue)
    Screen().answer(
        options.json,
        lambda: [_as_json(flow) for flow in flows],
        lambda: (line for flow in flows for line in _lines(flow, now)),
    )

    def check(flow_id: str) -> None:
        if found[flow_id] is None:
            raise OperationFailed(f"there is no flow {flow_id}; looked in {place_of(queue)}")

    return each(ids, check)


def _cancel(queue: TaskQueue, options: argparse.Namespace) -> int:
    def cancel(flow_id: str) -> None:
        if not queue.run(queue.flows.acancel(flow_id)):
            raise OperationFailed(f"flow {flow_id} is not there, has ended, or was cancelled before")
        Screen().say(f"flow {flow_id} is cancelled")

    return each(whole_ids(queue, options.ids), cancel)


def _retry(queue: TaskQueue, options: argparse.Namespace) -> int:
    def retry(flow_id: str) -> None:
        number = queue.run(queue.flows.aretry(flow_id))
        if not number:
            raise OperationFailed(f"flow {flow_id} is not there, or nothing of it failed or was cancelled")
        Screen().say(f"flow {flow_id}: {plural(number, 'task')} to run again, and what waits for them")

    return each(whole_ids(queue, options.ids), retry)


def _holding(storage: Storage) -> Storage:
    if not storage.limits.flows:
        raise no_flows(storage)
    return storage


async def latest_flows(storage: Storage, limit: int) -> list[Flow]:
    """Return the flows of the latest tasks, the latest first.

    :param limit: how many at most.
    """
    ids: dict[str, None] = {}
    cursor: str | None = None
    for _ in range(LOOKED_AT // AT_A_TIME):
        page = await storage.list_tasks(TaskQuery(limit=AT_A_TIME, bare=True), cursor)
        ids |= dict.fromkeys(task.flow for task in page if task.flow is not None)
        cursor = page.cursor
        if cursor is None or len(ids) >= limit:
            break
    return [flow for flow in await storage.get_flows(list(ids)[:limit]) if flow is not None]


def state_of(flow: Flow) -> str:
    """Return in a word how a flow is."""
    if flow.finished_at is None:
        return "cancelling" if flow.cancelled else "running"
    good = flow.counts[TaskState.SUCCEEDED] == sum(flow.counts.values())
    return "succeeded" if good else "cancelled" if flow.cancelled else "failed"


def _columns(now: datetime) -> list[Column[Flow]]:
    states = (TaskState.BLOCKED, TaskState.READY, TaskState.RUNNING, *(one for one in TaskState if one.is_final))
    return [
        Column(title="id", cell=lambda flow: short_id(flow.id)),
        Column(title="state", cell=state_of),
        *(_state_column(state) for state in states),
        Column(title="enqueued", cell=lambda flow: ago(flow.created_at, now), right=True),
    ]


def _state_column(state: TaskState) -> Column[Flow]:
    return Column(title=state.value, cell=lambda flow: f"{flow.counts[state]:,}", right=True, dull="0")


def _lines(flow: Flow, now: datetime) -> Iterator[str]:
    counts = ", ".join(f"{number:,} {state}" for state, number in flow.counts.items() if number)
    yield f"flow {flow.id}: {state_of(flow)}, enqueued {ago(flow.created_at, now)}"
    yield f"  tasks: {counts or 'none'}"
    for gate in flow.gates:
        if gate.state != "open":
            why = f": {gate.error}" if gate.error else ""
            yield f"  gate {gate.n} is {gate.state} and waits for {plural(gate.unmet, 'task')}{why}"


def _as_json(flow: Flow) -> dict[str, Any]:
    return {
        **picked(flow, "id", "unique", "created_at", "finished_at", "cancelled"),
        "state": state_of(flow),
        "counts": dict(flow.counts),
        "gates": [picked(gate, "n", "state", "unmet", "failed", "error") for gate in flow.gates],
    }


_IDS = value("ids", text, "ID", "the flows' ids, or the last 12 characters of them", nargs="+")

ACTIONS = {
    "list": Action(
        "show the latest flows",
        f"Show the flows of the latest {LOOKED_AT:,} tasks, the latest first.",
        "omniq flows list shop.tasks:queue\nomniq flows list shop.tasks:queue --limit 5 --json",
        (value("--limit", count, "N", "how many at most (default 20)", default=20), add_json),
        _list,
    ),
    "show": Action(
        "show how far a flow is",
        "Show one flow: how many of its tasks are in each state, and its gates that are not open.",
        "omniq flows show shop.tasks:queue 6d1a2b3c4d5e",
        (_IDS, add_json),
        _show,
    ),
    "cancel": Action(
        "cancel whole flows",
        "Cancel whole flows: what waits ends, what runs is asked to stop.",
        "omniq flows cancel shop.tasks:queue 6d1a2b3c4d5e",
        (_IDS,),
        _cancel,
    ),
    "retry": Action(
        "run again what failed in flows",
        "Run again what failed or was cancelled in flows, and then what waits for it.",
        "omniq flows retry shop.tasks:queue 6d1a2b3c4d5e",
        (_IDS,),
        _retry,
    ),
}
"""The actions of this command."""

configure, run = command_of(
    "List, show, cancel and retry flows: tasks that need each other's results.",
    ACTIONS,
)
