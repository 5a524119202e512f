"""What is stored comes back as it was, whatever it is; and a row that cannot be read harms nobody but itself."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq.errors import PayloadTooLarge
from omniq.flow import NewFlow, NewGate
from omniq.schedule import Schedule
from omniq.storage import Enqueued, Lease, TaskQuery
from omniq.storage.ids import new_id
from omniq.storage.times import from_micros, span
from omniq.task import Failed, Feed, Progress, Released, Retry, Succeeded, TaskError, TaskState
from omniq_local.sqlite.encoding import microseconds
from tests.local.sqlite_support import count, of_queue, only, opened, raw, take
from tests.local.support import Clock, new_task

# Times


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_datetime_comes_back_exactly(at: datetime) -> None:
    assert from_micros(microseconds(at, 0)) == at


@given(st.timedeltas(min_value=timedelta(0)))
def test_every_timedelta_gives_a_time_that_a_datetime_can_name(after: timedelta) -> None:
    now = microseconds(datetime(2030, 1, 1, tzinfo=UTC), 0)
    assert from_micros(microseconds(after, now)) >= from_micros(now)


@given(st.floats(min_value=0, allow_nan=False))
def test_every_duration_can_be_added_to_a_time(seconds: float) -> None:
    assert 0 <= span(seconds) <= 100 * 366 * 86400 * 1_000_000
    if seconds < 1e9:
        assert math.isclose(span(seconds) / 1e6, seconds, abs_tol=1e-6)


def test_the_stores_times_are_the_clocks(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with opened(tmp_path / "jobs.db", clock=clock) as store:
            began = from_micros(clock.microseconds)
            assert await store.now() == began
            await store.enqueue([new_task(id="a", result_ttl=10.000001, expires=timedelta(seconds=77))])
            clock.advance(1.000001)
            (task,) = await take(store, lease=30.000001)
            assert (task.created_at, task.run_at) == (began, began)
            assert task.started_at == began + timedelta(seconds=1.000001)
            assert task.lease_until == began + timedelta(seconds=31.000002)
            assert task.expires_at == began + timedelta(seconds=77)
            assert task == await only(store, "a")
            clock.advance(2)
            await store.finish([Succeeded(id="a", delivery=1, result=b"")])
            assert (await only(store, "a")).finished_at == began + timedelta(seconds=3.000001)
            clock.advance(10)
            assert await store.prune(10) == 0
            clock.advance(0.000001)
            assert await store.prune(10) == 1

    asyncio.run(scenario())


def test_a_clock_that_is_put_back_lets_no_task_pass_those_that_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with (
            opened(tmp_path / "jobs.db", clock=clock) as store,
            opened(tmp_path / "jobs.db", clock=clock) as other,
        ):
            store.enqueue_blocking([new_task(id="1")])
            clock.advance(-3600)
            store.enqueue_blocking([new_task(id="2")])
            await other.enqueue([new_task(id="3"), new_task(id="4")])
            clock.advance(10)
            store.enqueue_blocking([new_task(id="5")])
            tasks = await take(store)
            assert [task.id for task in tasks] == ["1", "2", "3", "4", "5"]
            assert tasks == await store.get(["1", "2", "3", "4", "5"])
            (stats,) = await store.stats()
            assert stats.oldest_ready is None

    asyncio.run(scenario())


def test_a_clock_that_is_put_back_keeps_nobody_waiting_for_a_dead_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with opened(tmp_path / "jobs.db", clock=clock) as store:
            await store.enqueue([new_task(id="dead", max_retries=5), new_task(id="alive", max_retries=5)])
            await take(store, lease=30)
            clock.advance(-86400)
            assert await store.recover(10) == []
            # The worker that lives has the time of a lease to say so.
            clock.advance(20)
            await store.heartbeat("w", [Lease("alive", 1)], 30)
            assert await store.recover(10) == []
            clock.advance(11)
            assert [task.id for task in await store.recover(10)] == ["dead"]

    asyncio.run(scenario())


# Values

ODD = "snowman ☃ \N{PILE OF POO} \x01\x7f \"quotes\" 'more' \\ % ? :x {ns}"
AWKWARD: list[dict[str, Any]] = [
    {"body": b""},
    {"body": bytes(range(256)) * 3},
    {"body": bytes(range(256)) * 4096},
    {"body": b"x" * 1000},
    {"body": b"x" * 1001},
    {"id": ODD, "queue": ODD, "name": ODD, "unique": ODD, "tags": (ODD, "", ODD)},
    {"result_ttl": 0.1 + 0.2},
    {"result_ttl": 3},
    {"priority": -100, "max_retries": 2**40},
    {"run_at": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)},
    {"run_at": timedelta.max, "expires": timedelta.max},
    {"run_at": datetime(1, 1, 1, tzinfo=UTC)},
]


@pytest.mark.parametrize("options", AWKWARD, ids="-".join)
def test_a_task_comes_back_as_it_was(tmp_path: Path, options: dict[str, Any]) -> None:
    async def scenario() -> None:
        order = new_task(**options)
        async with opened(tmp_path / "jobs.db") as store:
            store.enqueue_blocking([order])
            task = await only(store, order.id)
            assert as_ordered(task) == as_ordered(order)
            (listed,) = (await store.list_tasks(TaskQuery(queue=order.queue, name=order.name))).tasks
            assert listed == task
            if task.state is TaskState.READY:
                (claimed,) = await take(store, order.queue)
                assert as_ordered(claimed) == as_ordered(order)
                assert claimed == await only(store, order.id)
                assert await store.finish([Succeeded(id=order.id, delivery=1, result=order.body)]) == [True]
                assert (await only(store, order.id)).result_payload == order.body

    asyncio.run(scenario())


def as_ordered(task: Any) -> tuple[Any, ...]:
    fields = ("id", "queue", "name", "body", "priority", "max_retries", "unique", "tags", "result_ttl")
    values = [getattr(task, field) for field in fields]
    return (*values, *map(type, values))


def test_a_large_payload_is_written_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        path, log = tmp_path / "jobs.db", tmp_path / "jobs.db-wal"
        async with opened(path) as store:
            await store.enqueue([new_task(id="a", body=b"x" * 1_000_000)])
            before = log.stat().st_size
            for _ in range(3):
                (task,) = await take(store)
                assert len(task.body) == 1_000_000
                await store.heartbeat("w", [Lease("a", task.delivery)], 300)
                await store.finish([Retry(id="a", delivery=task.delivery, delay=0)])
            assert log.stat().st_size - before < 500_000

    asyncio.run(scenario())


def test_a_large_payload_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        tasks = [new_task(body=b"x" * 5000, tags=("a", "b"), result_ttl=0) for _ in range(4)]
        async with opened(path) as store:
            await store.enqueue(tasks)
            for task in await take(store, n=2):
                await store.finish([Succeeded(id=task.id, delivery=1, result=b"")])
            assert await store.delete([tasks[2].id]) == [True]
            assert await store.purge("q") == 1 + 2 - await store.prune(10)
        with raw(path) as connection:
            for table in ("task", "body", "tag"):
                assert connection.execute(f'SELECT count(*) FROM "omniq.{table}"').fetchone() == (0,)
            assert connection.execute('SELECT count(*) FROM "omniq.counter" WHERE n != 0').fetchone() == (0,)

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["", ODD, "\udc80 of a file name", "a\0b", "x" * 100_000])
def test_an_error_and_a_note_come_back_as_they_were(tmp_path: Path, text: str) -> None:
    async def scenario() -> None:
        error = TaskError(type=text, message=text, traceback=text)
        async with opened(tmp_path / "jobs.db") as store:
            await store.enqueue([new_task(id="a")])
            await take(store)
            await store.set_progress({Lease("a", 1): Progress(done=1 / 3, total=2, note=text)})
            assert (await only(store, "a")).progress == Progress(done=1 / 3, total=2, note=text)
            await store.finish([Retry(id="a", delivery=1, delay=0, error=error)])
            (task,) = await take(store)
            assert task.error == error
            await store.finish([Failed(id="a", delivery=2, error=error)])
            assert (await only(store, "a")).error == error

    asyncio.run(scenario())


def test_a_schedule_comes_back_as_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        at = datetime(2031, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)
        for order in (
            new_task(run_at=at, expires=timedelta(days=3, microseconds=1), body=bytes(range(256)), tags=("a", ODD)),
            new_task(run_at=timedelta(microseconds=1), expires=at, unique=ODD, body=b"\0\xff"),
        ):
            schedule = Schedule(
                id=ODD, task=order, trigger=ODD, next_run=at, start=at, end=None, last_run=at, jitter=1 / 3
            )
            async with opened(tmp_path / "jobs.db") as store:
                stored = await store.put_schedule(schedule)
                assert await store.get_schedules([ODD]) == [stored]
                assert stored is not None
                assert stored.task == order

    asyncio.run(scenario())


def test_a_value_of_a_wrong_type_is_the_callers_mistake(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            for wrong in ({"name": None}, {"queue": object()}, {"priority": "high"}):
                with pytest.raises(TypeError, match="cannot be stored"):
                    await store.enqueue([new_task(), new_task(**wrong)])
            assert await store.stats() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("endless", [math.inf, math.nan])
def test_a_result_that_is_to_be_kept_for_no_number_of_seconds_is_refused(tmp_path: Path, endless: float) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            with pytest.raises(ValueError, match="result_ttl must be a number of seconds"):
                await store.enqueue([new_task(), new_task(result_ttl=endless)])
            assert await store.stats() == []

    asyncio.run(scenario())


def test_a_value_that_is_larger_than_sqlite_can_store_is_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            await store.resume("q")
            connection = store._database._main.connection
            assert connection is not None
            category = 0  # SQLITE_LIMIT_LENGTH: a gigabyte is more than a test should move
            connection.setlimit(category, 100_000)
            with pytest.raises(PayloadTooLarge):
                await store.enqueue([new_task(body=b"x" * 200_000), new_task()])
            assert await store.stats() == []

    asyncio.run(scenario())


# Rows that cannot be read

DAMAGE = [
    "options = 'no JSON'",
    "options = '[1, 2]'",
    "options = '[1, 2, 3, 4]'",
    "error = 'no JSON'",
    "created_at = 9000000000000000000",
    "name = CAST(x'ff80' AS TEXT)",
    "id = CAST(x'ff80' AS TEXT)",
    "body = NULL",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_row_that_cannot_be_read_ends_as_failed_and_stops_nobody(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        tasks = [new_task(body=b"body %d" % number) for number in range(5)]
        async with opened(path) as store:
            await store.enqueue(tasks)
            with raw(path) as connection:
                (seq,) = connection.execute('SELECT seq FROM "omniq.task" WHERE id = ?', (tasks[2].id,)).fetchone()
                connection.execute(f'UPDATE "omniq.task" SET {damage} WHERE seq = ?', (seq,))
            assert [task.id for task in await take(store)] == [tasks[n].id for n in (0, 1, 3, 4)]
            assert (await of_queue(store)).counts[TaskState.FAILED] == 1
            with raw(path) as connection:
                state, kept, error = connection.execute(
                    'SELECT state, body, error FROM "omniq.task" WHERE seq = ?', (seq,)
                ).fetchone()
            assert state == 5
            assert "CorruptRecord" in error
            assert kept == (None if "body" in damage else b"body 2")
            assert await take(store) == []
            assert await store.recover(10) == []
            assert await store.purge("q", TaskState.FAILED) == 1

    asyncio.run(scenario())
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("number", [2**31, 2**62, 2**63 - 1])
def test_a_number_that_overflows_undoes_the_claim_and_the_end_of_no_other(tmp_path: Path, number: int) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            await store.enqueue([new_task(id=name) for name in ("attempt", "good", "delivery", "ttl", "created_at")])
            with raw(path) as connection:
                for column in ("attempt", "delivery", "ttl", "created_at"):
                    connection.execute(f'UPDATE "omniq.task" SET {column} = ? WHERE id = ?', (number, column))
            # Nor does one that seems to be of the far future pass its time on to those that come after it.
            store.enqueue_blocking([new_task(id="next")])
            await store.enqueue([new_task(id="last"), new_task(id="late", run_at=timedelta(hours=1))])
            claimed = await take(store)
            assert {"good", "ttl", "next", "last"} <= {task.id for task in claimed}
            assert all(await store.finish([Succeeded(id=t.id, delivery=t.delivery, result=b"") for t in claimed]))
            (good, new) = await store.get(["good", "last"])
            assert good is not None
            assert new is not None
            assert new.created_at - good.created_at < timedelta(days=1)

    asyncio.run(scenario())


def test_a_task_whose_id_is_no_text_is_deleted_by_its_place(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            await store.enqueue([new_task(id="good"), new_task(id="bad")])
            with raw(path) as connection:
                connection.execute("UPDATE \"omniq.task\" SET id = CAST(x'ff80' AS TEXT) WHERE id = 'bad'")
            (bad, _) = (await store.list_tasks(TaskQuery())).tasks
            assert (bad.id, bad.state) == ("row 2", TaskState.FAILED)
            (finding,) = await store.check()
            assert finding.message.endswith("omniq tasks delete 'row 2'")
            assert await store.delete(["row 2", "row 1", "row 7"]) == [True, False, False]
            assert await store.check() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", [entry for entry in DAMAGE if "x'ff" not in entry])
def test_a_row_that_cannot_be_read_is_shown_for_what_it_is(tmp_path: Path, damage: str) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            await store.enqueue([new_task(id="good"), new_task(id="bad")])
            with raw(path) as connection:
                connection.execute(f"UPDATE \"omniq.task\" SET {damage} WHERE id = 'bad'")
            good, bad = await store.get(["good", "bad"])
            assert good is not None
            assert good.error is None
            assert bad is not None
            assert bad.error is not None
            assert bad.error.type == "CorruptRecord"
            assert [task.id for task in (await store.list_tasks(TaskQuery())).tasks] == ["bad", "good"]
            assert await store.delete(["bad"]) == [True]

    asyncio.run(scenario())


def test_a_row_that_became_unreadable_while_it_ran_is_recovered_and_then_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        clock = Clock()
        async with opened(path, clock=clock) as store:
            await store.enqueue([new_task(id="bad", max_retries=0)])
            await take(store, lease=1)
            with raw(path) as connection:
                connection.execute("UPDATE \"omniq.task\" SET options = '{'")
            clock.advance(2)
            assert [task.id for task in await store.recover(10)] == ["bad"]
            assert await take(store) == []
            assert await count(store, TaskState.FAILED) == 1

    asyncio.run(scenario())


def test_a_schedule_that_cannot_be_read_keeps_no_other_from_firing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        due = datetime(2001, 1, 1, tzinfo=UTC)
        async with opened(path) as store:
            for name in ("a", "b", "c"):
                await store.put_schedule(Schedule(id=name, task=new_task(), trigger="t", next_run=due))
            with raw(path) as connection:
                connection.execute("UPDATE \"omniq.schedule\" SET body = '{' WHERE id = 'b'")
            assert [schedule.id for schedule in await store.due_schedules(10)] == ["a", "c"]
            assert await store.delete_schedule("b")

    asyncio.run(scenario())
    assert "schedule 'b' cannot be read" in caplog.text


# Lateness of counting


def test_tasks_that_are_not_counted_yet_are_seen_by_everybody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store, opened(tmp_path / "jobs.db") as reader:
            ids = [new_id() for _ in range(7)]
            for number, task_id in enumerate(ids):
                store.enqueue_blocking([new_task(id=task_id, queue="ab"[number % 2])])
                assert (await reader.get([task_id])) != [None]
            for queue, expected in (("a", ids[::2]), ("b", ids[1::2])):
                stats = await of_queue(reader, queue)
                assert stats.counts[TaskState.READY] == len(expected)
                assert stats.oldest_ready is not None
                for states in (None, [TaskState.READY]):
                    page = await reader.list_tasks(TaskQuery(queue=queue, states=states))
                    assert [task.id for task in page.tasks] == expected[::-1]
            page = await reader.list_tasks(TaskQuery(states=[TaskState.READY], limit=3))
            assert [task.id for task in page.tasks] == ids[:3:-1]
            await asyncio.wait_for(reader.wait_for_work(["b"], 30), 10)
            assert await reader.cancel([ids[0]]) == [True]
            assert await reader.delete([ids[6]]) == [True]
            assert [task.id for task in await take(reader, "a")] == [ids[2], ids[4]]
            assert await store.purge("b") == 3
            assert await count(reader, TaskState.READY, "b") == 0

    asyncio.run(scenario())


def test_a_burst_of_single_tasks_is_counted_now_and_then(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            for _ in range(1000):
                store.enqueue_blocking([new_task()])
            with raw(path) as connection:
                (fresh,) = connection.execute('SELECT count(*) FROM "omniq.task" WHERE state = 0').fetchone()
            assert fresh < 300
            assert await count(store, TaskState.READY) == 1000
            assert len(await take(store)) == 1000

    asyncio.run(scenario())


def test_a_number_that_sqlite_gives_again_is_counted_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            for _ in range(3):
                store.enqueue_blocking([new_task(id="a")])
                assert await store.delete(["a"]) == [True]
                assert await store.stats() == []
            store.enqueue_blocking([new_task(id="a")])
            assert await count(store, TaskState.READY) == 1
            assert [task.id for task in await take(store)] == ["a"]
            await store.finish([Released(id="a", delivery=1)])
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())


def test_single_tasks_with_one_key_or_id_are_stored_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            first = new_task(unique="k")
            assert [entry.created for entry in await store.enqueue([first])] == [True]
            assert [entry.created for entry in await store.enqueue([first])] == [False]
            assert store.enqueue_blocking([new_task(unique="k")]) == [Enqueued(first.id, False)]
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())


def test_flows_and_gates_that_cannot_be_read_are_found_and_hinder_no_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            flows = [NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),)) for _ in range(3)]
            for flow in flows:
                tasks = [new_task(flow=flow.id, feeds=(Feed(0),)), new_task(flow=flow.id, behind=0, queue="last")]
                await store.enqueue(tasks, flow)
            with raw(tmp_path / "jobs.db") as connection:
                connection.execute("UPDATE \"omniq.flow\" SET body = '[', due = 0 WHERE id = ?", (flows[0].id,))
                connection.execute("UPDATE \"omniq.gate\" SET body = '[]' WHERE flow = ?", (flows[1].id,))
            named = "\n".join(finding.message for finding in await store.check())
            assert [flow.id in named for flow in flows] == [True, True, False]
            taken = await take(store)
            assert await store.finish([Succeeded(id=task.id, delivery=1, result=b"1") for task in taken]) == [True] * 3
            assert [task.flow for task in await take(store, "last")] == [flows[2].id]

    asyncio.run(scenario())


def test_a_task_in_a_line_that_is_not_that_of_its_key_is_named_and_hinders_no_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            bad, good = new_task(key="a"), new_task(key="a")
            await store.enqueue([bad, good])
            with raw(tmp_path / "jobs.db") as connection:
                connection.execute('UPDATE "omniq.task" SET line = ? WHERE id = ?', ("x", bad.id))
            assert any(bad.id in finding.message for finding in await store.check())
            assert [task.id for task in await take(store)] == [good.id]
            assert await store.delete([bad.id]) == [True]
            assert await store.check() == []

    asyncio.run(scenario())
