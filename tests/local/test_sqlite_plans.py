"""No statement reads tasks that it is not about, by SQLite's own query plans; and a whole batch is one step."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omniq.limit import Limit
from omniq.storage.ids import new_id
from omniq.task import Succeeded
from omniq_local.sqlite.encoding import columns_of
from omniq_local.sqlite.statements import LARGEST_GROUP, Statements, schema
from tests.local.sqlite_support import opened, take
from tests.local.support import new_task

SQL = Statements("ns")
PLANNED = sorted(name for name in SQL if not SQL[name].startswith("CREATE"))
TASK = re.compile(r'(SCAN|SEARCH) "?ns\.task"?(?P<how>.*)')
FEW = {"ns.running": "only running tasks are in it"}
"""Indexes that may be read from end to end, and why."""
FIRST_ROW_ONLY = {"transaction.glance": "the last row of the table, and no other (LIMIT 1)"}


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    with sqlite3.connect(":memory:") as connection:
        connection.executescript(schema("ns"))
        yield connection
    connection.close()


def parameters_of(statement: str) -> dict[str, None] | list[None]:
    names = re.findall(r":(\w+)", statement)
    return dict.fromkeys(names) if names else [None] * statement.count("?")


def plan_of(connection: sqlite3.Connection, name: str) -> list[str]:
    statement = SQL.sized(name, 3)
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters_of(statement))]


@pytest.mark.parametrize("name", PLANNED)
def test_no_statement_reads_all_tasks(connection: sqlite3.Connection, name: str) -> None:
    for step in plan_of(connection, name):
        found = TASK.match(step)
        if found is None or found[1] == "SEARCH" or name in FIRST_ROW_ONLY:
            continue
        index = found["how"].rpartition(" USING INDEX ")[2].rpartition(" USING COVERING INDEX ")[2]
        assert index in FEW, step


HOT = [name for name in PLANNED if name.split(".")[0] in ("claim", "enqueue", "finish", "transaction", "single")]


@pytest.mark.parametrize(
    "name",
    [
        *HOT,
        "reading.list_ended",
        "reading.list_blocked",
        "control.doomed_ended",
        "flows.due",
        "flows.members_behind",
        "limits.ready",
        "limits.ready_plain",
        "maintenance.lapsed",
        "maintenance.outdated",
    ],
)
def test_no_frequent_statement_sorts_tasks(connection: sqlite3.Connection, name: str) -> None:
    if name == "transaction.tail":
        return  # it groups a few hundred tasks at most
    plan = plan_of(connection, name)
    assert not [step for step in plan if "TEMP B-TREE" in step and "DISTINCT" not in step]


def test_the_plans_say_what_the_indexes_are_for(connection: sqlite3.Connection) -> None:
    expected = {
        "claim.pick": "USING INDEX ns.ready (queue=?)",
        "claim.promote": "USING INDEX ns.scheduled (queue=? AND run_at<?)",
        "claim.expired": "USING INDEX ns.expiry (expires_at>? AND expires_at<?)",
        "maintenance.lapsed": "USING INDEX ns.running (lease_until<?)",
        "maintenance.outdated": "USING INDEX ns.retention (delete_at>? AND delete_at<?)",
        "enqueue.holder": "USING INDEX ns.unique (unique_key=?)",
        "reading.list_ended": "USING INDEX ns.apart (queue=? AND state=? AND rowid>? AND rowid<?)",
        "reading.list_blocked": "USING INDEX ns.apart (queue=? AND state=? AND rowid>? AND rowid<?)",
        "reading.list_members": "INDEX ns.member (flow=?",
        "flows.members_behind": "USING INDEX ns.member (flow=? AND state=? AND behind=?)",
        "flows.count": "USING COVERING INDEX ns.member (flow=?)",
        "limits.ready": "USING INDEX ns.lined (line=? AND state=?)",
        "limits.ready_plain": "USING INDEX ns.ready (queue=?)",
        "limits.running": "USING INDEX ns.running",
        "reading.list_lined": "INDEX ns.lined (line=? AND state=?",
        "control.doomed_lined": "INDEX ns.lined (line=? AND state=?",
        "flows.due": "USING INDEX ns.flow_due (ended=? AND due<?)",
        "schedules.due": "USING INDEX ns.due (next_run>? AND next_run<?)",
    }
    for name, index in expected.items():
        assert any(index in step for step in plan_of(connection, name)), name


def test_the_trigger_of_single_tasks_looks_at_no_more_than_one_other(connection: sqlite3.Connection) -> None:
    connection.create_function("omniq_notice", 0, lambda: None)
    connection.execute(SQL["single.trigger"])
    values = columns_of(new_task(), 1, 1, 0)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {SQL.sized('enqueue.insert', 1)}", values)]
    assert not [step for step in plan if "SCAN ns.task" in step]


# A batch is a fixed number of steps of SQLite, however many tasks are in it: at each Python lets go of its lock.


def steps_of(calls: list[str]) -> int:
    return len([call for call in calls if not call.lstrip().startswith("--")])


def test_claiming_and_finishing_many_tasks_takes_as_many_statements_as_two(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            numbers = []
            for size in (2, LARGEST_GROUP):
                await store.enqueue([new_task() for _ in range(size)])
                connection = store._database._main.connection
                assert connection is not None
                calls: list[str] = []
                connection.set_trace_callback(calls.append)
                tasks = await take(store)
                outcomes = [Succeeded(id=task.id, delivery=task.delivery, result=b"1") for task in tasks]
                assert all(await store.finish(outcomes))
                connection.set_trace_callback(None)
                assert len(tasks) == size
                numbers.append(steps_of(calls))
            assert numbers[0] == numbers[1]

    asyncio.run(scenario())


def test_a_claim_takes_as_many_steps_whatever_waits_at_a_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
            costs = []
            for number in (10, 3000):
                await store.enqueue([new_task(key="big") for _ in range(number)])
                await take(store)  # one of them runs, and their line is parked
                await store.enqueue([new_task(key=f"small {number}")])
                connection = store._database._main.connection
                assert connection is not None
                steps = 0

                def count() -> None:
                    nonlocal steps
                    steps += 1

                calls: list[str] = []
                connection.set_trace_callback(calls.append)
                connection.set_progress_handler(count, 1)  # each instruction of SQLite's machine
                tasks = await take(store)
                connection.set_progress_handler(None, 1)
                connection.set_trace_callback(None)
                for call in calls:
                    if call.startswith(("SELECT", "UPDATE", "DELETE")):
                        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {call}")]
                        assert not [step for step in plan if step.startswith(("SCAN omniq.line", "SCAN omniq.bucket"))]
                assert [task.key for task in tasks] == [f"small {number}"]
                costs.append(steps)
            assert costs[1] < 1.2 * costs[0]

    asyncio.run(scenario())


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 127, 128, 129, 1000])
def test_a_batch_is_cut_into_groups_that_leave_nothing_out(rows: int) -> None:
    values: list[tuple[Any, ...]] = [(new_id(), number) for number in range(rows)]
    groups = list(SQL.in_groups("enqueue.add_tag", values))
    assert [value for _, parameters in groups for value in parameters] == [value for row in values for value in row]
    for statement, parameters in groups:
        assert statement.count("?") == len(parameters)
    assert len({statement for statement, _ in groups}) <= LARGEST_GROUP.bit_length()
