"""No statement reads rows that it is not about: by the server's own account of how it ran each, on a full store.

``OMNIQ_PLAN_ROWS=1000000`` fills it with a million finished and a million scheduled tasks, and a tenth of that ready.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest

from omniq.flow import NewFlow, NewGate
from omniq.limit import Limit, line_id
from omniq.schedule import Schedule
from omniq.storage import Lease, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Cancelled, Failed, Feed, Progress, Released, Retry, StoredTask, TaskError, TaskState
from omniq_postgres import claiming, control, enqueueing, finishing, maintenance, reading, schedules, waiting
from omniq_postgres.claiming import Claim
from omniq_postgres.dead_tuples import Age, Frontier
from omniq_postgres.encoding import LINED
from omniq_postgres.operations import Context, Job, Steps
from omniq_postgres.statements import Statements
from tests.postgres.support import Explained, connection_of, done, explained, new_task, opened, settings_of, take
from tests.servers.postgres import PostgresServer

# One process fills a store for all of them.
pytestmark = pytest.mark.xdist_group("plans")

ROWS = int(os.environ.get("OMNIQ_PLAN_ROWS", "100000"))
BATCH = 100
FLOW = new_id()
"""That of the blocked tasks."""
SMALL = frozenset(
    {"delta", "counter", "paused", "worker", "schedule", "revision", "migration", "flow", "gate"}
    | {"limits", "lane", "line", "bucket", "wake"}
)
"""Tables whose size has nothing to do with how many tasks there are."""


def fill(server: PostgresServer, url: str, rows: int) -> None:
    """Fill a store with finished and scheduled tasks, half as many blocked, and a tenth of that of ready ones."""
    names = settings_of(url).names.of_all()
    blocks = {
        # state, number, run_at
        0: (rows // 2, "now() - interval '1 hour'"),
        1: (rows, "now() + interval '1 day' + n * interval '1 second'"),
        2: (rows // 10, "now() - interval '1 hour' + n * interval '1 microsecond'"),
        4: (rows, "now()"),
    }
    with psycopg.connect(server.url, autocommit=True) as connection:
        for state, (number, run_at) in blocks.items():
            member = "NULL::uuid, NULL" if state else f"'{FLOW}'::uuid, 0"
            rest = (
                f"INSERT INTO {names['ended']} (run_at, finished_at, delete_at, seq, delivery, attempt, state, cancel, "
                "id, queue, worker, result) "
                "SELECT run_at, now(), now() + n * interval '1 day', seq, 1, 1, 4, false, id, queue, 'w', '1' FROM new"
                if state == 4
                else f"INSERT INTO {names['live']} (run_at, result_ttl, seq, state, priority, id, queue, flow, behind) "
                f"SELECT run_at, 86400, seq, {state}, 0, id, queue, {member} FROM new"
            )
            connection.execute(
                f"""
                WITH new AS MATERIALIZED (
                    SELECT n, nextval('{names["order"]}') AS seq, gen_random_uuid() AS id,
                           CASE WHEN n % 20 = 0 THEN 'other' ELSE 'q' END AS queue, {run_at} AS run_at
                    FROM generate_series(1, {number}) AS n
                ), kept AS (
                    INSERT INTO {names["task"]} (id, seq, created_at, result_ttl, max_retries, priority,
                        queue, name, body)
                    SELECT id, seq, now(), 86400, 3, 0, queue, 'n', '[]' FROM new
                ) {rest}
                """.encode()
            )
            connection.execute(
                f"INSERT INTO {names['delta']} SELECT {number if state == 1 else 0}, {number if state == 2 else 0}, 0, "
                f"{number if state == 4 else 0}, 0, 0, 'q'".encode()
            )
        # A tenant at its limit.
        connection.execute(
            f"""
            WITH new AS MATERIALIZED (
                SELECT n, nextval('{names["order"]}') AS seq, gen_random_uuid() AS id
                FROM generate_series(1, {rows}) AS n
            ), kept AS (
                INSERT INTO {names["task"]} (id, seq, created_at, result_ttl, max_retries, priority, queue, name, body,
                    member)
                SELECT id, seq, now(), 86400, 3, 0, 'limited', 'n', '[]', '[null,null,[],0,"big",null,null]' FROM new
            )
            INSERT INTO {names["live"]} (run_at, result_ttl, seq, state, priority, id, queue, line, limit_key)
            SELECT now(), 86400, seq, {LINED}, 0, id, 'limited', '{line_id("limited", "big", None)}', 'big' FROM new
            """.encode()
        )
        for table in ("task", "live", "ended"):
            connection.execute(f"VACUUM ANALYZE {names[table]}".encode())


@pytest.fixture(scope="module")
def full(server: PostgresServer) -> str:
    """Return the URL of a store that is full."""
    return prepared(server, ROWS)


@pytest.fixture(scope="module")
def empty(server: PostgresServer) -> str:
    """Return the URL of one with hardly more in it than the statements are about."""
    return prepared(server, 2000)


def prepared(server: PostgresServer, rows: int) -> str:
    url = f"{server.url}?namespace=plans-{new_id()[-8:]}"

    async def create() -> None:
        async with opened(url) as store:
            await store.put_schedule(SCHEDULE)
            await store.put_limit(Limit(queue="limited", per_key=Limit(concurrency=1)))
            await store.enqueue([new_task(queue="limited", key="big") for _ in range(2)])
            assert len(await take(store, 2, queue="limited", lease=3600)) == 1
            await store.enqueue([new_task(queue="limited", key=f"small {number}") for number in range(20)])

    asyncio.run(create())
    fill(server, url, rows)
    return url


async def held(url: str) -> tuple[list[StoredTask], list[StoredTask]]:
    """Return tasks that run, of queues of their own: some of no flow, and others of one that waits for more."""
    flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),))
    inputs = [new_task(queue="inputs", flow=flow.id, feeds=(Feed(0, needs_success=True),)) for _ in range(2 * BATCH)]
    async with opened(url) as store:
        await store.enqueue([new_task(queue="running") for _ in range(BATCH)])
        await store.enqueue([*inputs, new_task(queue="inputs", flow=flow.id, behind=0)], flow)
        running = await take(store, BATCH, queue="running", lease=3600)
        return running, await take(store, BATCH, queue="inputs", lease=3600)


SCHEDULE = Schedule(id="s", task=new_task(), trigger="t", next_run=None, revision=1)
CLAIM = Claim(demand={"q": BATCH, "none": BATCH}, worker="w", lease=3600, limit=BATCH)


def frontier() -> Frontier:
    """Return one that never asks for dead rows: to explain a claim takes longer than to do it."""
    return Frontier(asked_at=float("inf"))


def claim_onward(context: Context) -> Steps[object]:
    mine = frontier()
    mine.pinned_until = float("inf")
    yield from claiming.claim(CLAIM, mine, context)
    mine.claims.looked_at = mine.waits.looked_at = float("inf")
    yield from waiting.prospects(["q", "none"], mine, context)
    return (yield from claiming.claim(CLAIM, mine, context))


def outcomes_of(tasks: list[StoredTask]) -> list[Any]:
    """Return outcomes of every kind."""
    boom = TaskError(type="ValueError", message="")
    kinds: list[Callable[[StoredTask], Any]] = [
        done,
        lambda task: Failed(id=task.id, delivery=task.delivery, error=boom),
        lambda task: Cancelled(id=task.id, delivery=task.delivery),
        lambda task: Retry(id=task.id, delivery=task.delivery, delay=9, error=boom),
        lambda task: Released(id=task.id, delivery=task.delivery),
    ]
    return [kinds[number % 5](task) for number, task in enumerate(tasks)]


def jobs(running: list[StoredTask], inputs: list[StoredTask]) -> dict[str, Job[Any]]:
    """Return every operation, by what is said of it."""
    ids = [task.id for task in running]
    leases = [Lease(task.id, task.delivery) for task in running]
    some = [new_task() for _ in range(BATCH)]
    return {
        "enqueue": partial(enqueueing.store, some),
        "enqueue one": partial(enqueueing.store, some[:1]),
        "enqueue with keys": partial(enqueueing.enqueue, [new_task(unique=str(number)) for number in range(BATCH)]),
        "claim": partial(claiming.claim, CLAIM, frontier()),
        "claim onward": claim_onward,
        "claim from nothing": partial(
            claiming.claim, Claim(demand={"none": 1}, worker="w", lease=3600, limit=1), frontier()
        ),
        "claim in lines": partial(
            claiming.claim, Claim(demand={"limited": 10}, worker="w", lease=3600, limit=10), frontier()
        ),
        "wait for work in lines": partial(waiting.prospects, ["limited"], frontier()),
        "finish": partial(finishing.finish, [done(task) for task in running]),
        "finish in many ways": partial(finishing.finish, outcomes_of(running)),
        "finish in a flow": partial(finishing.finish, [done(task) for task in inputs]),
        "heartbeat": partial(finishing.heartbeat, "w", leases, 3600, None),
        "progress": partial(finishing.set_progress, dict.fromkeys(leases, Progress(done=1))),
        "recover": partial(maintenance.recover, BATCH, Age()),
        "prune": partial(maintenance.prune, BATCH, Age()),
        "wait for work": partial(waiting.prospects, ["none", "others"], frontier()),
        "wait for an end": partial(waiting.find_ended, ids),
        "get": partial(reading.get, ids),
        "list": partial(reading.list_tasks, TaskQuery(limit=BATCH), 2**62),
        "list a queue": partial(reading.list_tasks, TaskQuery(queue="running", limit=BATCH), 2**62),
        "list a state": partial(reading.list_tasks, TaskQuery(states=[TaskState.SUCCEEDED], limit=BATCH), 2**62),
        "list what is rare": partial(reading.list_tasks, TaskQuery(states=[TaskState.FAILED], limit=BATCH), 2**62),
        "list a flow": partial(
            reading.list_tasks, TaskQuery(flow=inputs[0].flow if inputs else None, limit=BATCH), 2**62
        ),
        "list a tag": partial(reading.list_tasks, TaskQuery(tag="rare", limit=BATCH), 2**62),
        "stats": reading.stats,
        "workers": reading.workers,
        "cancel": partial(control.cancel, ids),
        "retry": partial(control.retry, ids),
        "run now": partial(control.run_now, ids),
        "delete": partial(control.delete, ids),
        "fire": partial(schedules.fire, SCHEDULE, [new_task(unique=f"fired {number}") for number in range(BATCH)]),
        "due schedules": partial(schedules.due_schedules, BATCH),
    }


NAMES = sorted(jobs([], []))


@pytest.fixture(scope="module")
def plans(full: str, empty: str) -> dict[tuple[str, str, bool], list[Explained]]:
    """Return how each operation was done: on which store, and whether with the settings that our connections have."""
    found: dict[tuple[str, str, bool], list[Explained]] = {}

    async def explain(kind: str, url: str, plain: bool) -> None:
        operations = jobs(*await held(url))
        statements = Statements(settings_of(url).names)
        async with connection_of(url, plain=plain) as connection:
            for name, job in operations.items():
                found[name, kind, plain] = await explained(connection, job, statements)

    for plain in (False, True):
        asyncio.run(explain("full", full, plain))
    asyncio.run(explain("empty", empty, False))
    return found


@pytest.mark.parametrize("plain", [False, True], ids=["our settings", "behind a proxy"])
@pytest.mark.parametrize("name", NAMES)
def test_no_table_of_tasks_is_read_from_end_to_end(
    plans: dict[tuple[str, str, bool], list[Explained]], name: str, plain: bool
) -> None:
    for plan in plans[name, "full", plain]:
        scanned = {table.rpartition("_")[2] for table in plan.scanned} - SMALL
        assert not scanned, plan


@pytest.mark.parametrize("plain", [False, True], ids=["our settings", "behind a proxy"])
@pytest.mark.parametrize("name", NAMES)
def test_few_rows_are_read_for_a_batch(
    plans: dict[tuple[str, str, bool], list[Explained]], name: str, plain: bool
) -> None:
    for plan in plans[name, "full", plain]:
        assert plan.rows_read <= 15 * BATCH, plan


@pytest.mark.parametrize("name", NAMES)
def test_a_full_store_costs_no_more_than_an_empty_one(
    plans: dict[tuple[str, str, bool], list[Explained]], name: str
) -> None:
    full, empty = plans[name, "full", False], plans[name, "empty", False]
    assert [plan.name for plan in full] == [plan.name for plan in empty]
    for mine, other in zip(full, empty, strict=True):
        # An index of a million rows is one or two levels higher than one of a thousand.
        assert mine.pages <= 2 * other.pages + 8 * BATCH, (mine, other.pages)


@pytest.fixture(scope="module")
def lean(server: PostgresServer) -> dict[str, list[Explained]]:
    """Return how each operation was done on a store that holds next to nothing, as the planner knows, but did before.

    Then every index looks like a short one, though it may be full of what is dead.
    """
    url = prepared(server, 20)
    found: dict[str, list[Explained]] = {}

    async def explain() -> None:
        operations = jobs(*await held(url))
        statements = Statements(settings_of(url).names)
        async with connection_of(url) as connection:
            for name, job in operations.items():
                found[name] = await explained(connection, job, statements)

    asyncio.run(explain())
    return found


@pytest.mark.parametrize("name", ["finish", "finish in many ways", "heartbeat", "progress", "cancel", "delete", "get"])
def test_a_task_is_found_by_its_id_however_short_other_indexes_look(
    lean: dict[str, list[Explained]], name: str
) -> None:
    for plan in lean[name]:
        used = {node["Index Name"].rpartition("_")[2] for node in plan.nodes() if "Index Name" in node}
        assert used <= {"pkey"}, plan


@pytest.mark.parametrize("name", ["claim", "claim onward"])
def test_a_claim_goes_down_the_index_of_ready_tasks_once(lean: dict[str, list[Explained]], name: str) -> None:
    for plan in lean[name]:
        if plan.name in ("claim.claim", "claim.settling", "claim.onward"):
            ready = [node for node in plan.nodes() if node.get("Index Name", "").endswith("_ready")]
            assert len(ready) == 1, plan
            assert "Tid Scan" in {node["Node Type"] for node in plan.nodes()}, plan
