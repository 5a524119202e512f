"""However many look at the dashboard, the store is looked at once a second; and not at all while nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from omniq import QueueStats, TaskQueue, TaskState
from omniq.dashboard import Dashboard, Visitor, looks
from omniq.dashboard.looks import History, Look
from omniq.errors import StorageUnavailable
from omniq.storage.ids import new_id
from omniq.task import StoredTask
from tests.dashboard.support import client_of
from tests.reading import bytes_read

MANY = 500


async def test_a_hundred_browsers_are_one_look(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "FRESH", 3600.0)
    dashboard = Dashboard(queue, access=lambda request: Visitor(name="ada"))
    assert dashboard.looks.taken == 0
    storage = (await queue.connections.current()).storage
    get_limit_usage, of_limits = storage.get_limit_usage, []

    async def noted(*scopes: Any) -> Any:
        of_limits.append(scopes)
        return await get_limit_usage(*scopes)

    monkeypatch.setattr(storage, "get_limit_usage", noted)
    async with client_of(queue, app=dashboard) as client:
        answers = await asyncio.gather(*(client.get("/queues") for _ in range(100)))
        assert {answer.status_code for answer in answers} == {200}
        assert (dashboard.looks.taken, len(of_limits)) == (1, 1)
        await client.get("/workers")
        assert dashboard.looks.taken == 1
        monkeypatch.setattr(looks, "FRESH", 0.0)
        await client.get("/workers")
        assert dashboard.looks.taken == 2


async def test_one_who_goes_away_takes_nobodys_look_along(queue: TaskQueue) -> None:
    shared = looks.Looks(queue)
    goes_on, read = asyncio.Event(), 0

    async def slow() -> str:
        nonlocal read
        read += 1
        await goes_on.wait()
        return "seen"

    first = asyncio.create_task(shared.shared("it", 60, slow))
    second = asyncio.create_task(shared.shared("it", 60, slow))
    await asyncio.sleep(0)  # both begin
    first.cancel()
    goes_on.set()
    assert await second == "seen"
    assert read == 1


async def test_a_page_that_has_not_changed_is_not_sent_again(queue: TaskQueue) -> None:
    async with client_of(queue) as client:
        first = await client.get("/schedules")
        again = await client.get("/schedules", headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304
        assert again.content == b""

        @queue.task
        async def job() -> None: ...

        await job.aenqueue()
        await client.send_form("/queues/pause", {"queue": "default"})
        live = {"if-none-match": first.headers["etag"], "x-omniq-live": "1"}
        assert (await client.get("/schedules", headers=live)).status_code == 304, "what was done is said to a new page"
        said = await client.get("/schedules", headers={"if-none-match": first.headers["etag"]})
        assert said.status_code == 200
        assert "Queue default is paused." in said.text
        after = await client.get("/schedules")
        assert "is paused" not in after.text


async def test_a_store_that_does_not_answer_is_said_so_and_the_page_comes_back(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> Any:
        raise StorageUnavailable("connection refused by 127.0.0.1:6379")

    async with client_of(queue) as client:
        with monkeypatch.context() as broken:
            broken.setattr(queue, "astats", away)
            answer = await client.get("/")
            assert answer.status_code == 503
            assert "connection refused by 127.0.0.1:6379" in answer.text
        assert (await client.get("/")).status_code == 200


async def test_the_page_of_what_failed_reads_nothing_of_the_many_that_ended(queue: TaskQueue) -> None:
    @queue.task(name="job", max_retries=0)
    async def job(fails: bool) -> None:
        if fails:
            raise RuntimeError("it fails")

    handles = await queue.aenqueue_many([job.call(number in (10, 20, 300)) for number in range(MANY)])
    async with queue.worker():
        await asyncio.gather(*handles, return_exceptions=True)
    dashboard = Dashboard(queue, access=lambda request: Visitor(name="ada"))
    async with client_of(queue, app=dashboard) as client:
        page = (await client.get("/tasks?state=failed")).text
        assert page.count("it fails") == 3
        is_seeded = [dashboard.looks.history.is_seeded]
        await client.get("/")
        is_seeded.append(dashboard.looks.history.is_seeded)
        assert is_seeded == [False, True]
    buckets = dashboard.looks.history.buckets((await dashboard.looks.latest()).now)
    assert sum(bucket.ended[TaskState.FAILED] for bucket in buckets) == 3


A_MILLION = 1_000_000
MULTIPLY = """
WITH RECURSIVE number(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM number WHERE i < {many})
INSERT INTO "{table}" (seq, id, {columns})
SELECT 1000 + i, printf('00000000-0000-7000-8000-%012x', i), {columns} FROM "{table}", number WHERE seq = {seq};
INSERT INTO "{counter}" SELECT queue, state, {many} FROM "{table}" WHERE seq = {seq}
ON CONFLICT (queue, state) DO UPDATE SET n = n + excluded.n;
UPDATE "{counter}" SET n = 1000 + {many} WHERE state = -1;
"""


def multiply(file: Path) -> None:
    """Store a million copies of the task that succeeded, behind all others."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        (table,) = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE '%.task'").fetchone()
        ((seq,),) = connection.execute(f'SELECT seq FROM "{table}" WHERE state = 4').fetchall()
        names = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
        columns = ", ".join(name for name in names if name not in ("seq", "id"))
        counter = table.replace(".task", ".counter")
        script = MULTIPLY.format(table=table, counter=counter, columns=columns, seq=seq, many=A_MILLION)
        connection.executescript(f"PRAGMA synchronous = OFF; BEGIN; {script} COMMIT")


@pytest.mark.long
async def test_beside_a_million_that_ended_a_page_reads_no_more_than_it_shows(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    queue = TaskQueue(f"sqlite:///{file}")

    @queue.task(name="job", max_retries=0)
    async def job(fails: bool) -> None:
        if fails:
            raise RuntimeError("it fails")

    handles = await queue.aenqueue_many([job.call(number < 3) for number in range(4)])
    async with queue.worker():
        await asyncio.gather(*handles, return_exceptions=True)
    await job.aenqueue(False)
    await queue.aclose()
    multiply(file)
    read: dict[str, int] = {}
    async with queue, client_of(queue) as client:  # connections of its own, whose caches are empty
        for path in ("/tasks?state=failed", "/tasks", "/queues", "/"):
            before = bytes_read()
            page = (await client.get(path)).text
            read[path] = bytes_read() - before
            assert f"{A_MILLION + 1:,}" in page or path == "/", path
            assert page.count("it fails") == (3 if path == "/tasks?state=failed" else 0)
        before = bytes_read()
        storage = (await queue.connections.current()).storage
        assert len(await storage.claim({"default": 9}, worker="w", lease=60)) == 1
        read["claim"] = bytes_read() - before
    assert max(read.values()) < 8_000_000, f"{read} of {file.stat().st_size:,}"


async def test_what_is_the_matter_with_many_queues_is_one_line(queue: TaskQueue) -> None:
    @queue.task(name="job")
    async def job() -> None: ...

    async with client_of(queue) as client:
        for number in range(1, 7):
            await job.using(queue=f"customer-{number}").aenqueue()
            await queue.apause(f"customer-{number}")
            page = (await client.get("/")).text
            queue_lines = len(re.findall(r"Queue customer-\d is paused: 1 ready task\.", page))
            many = f"{number} queues are paused (customer-1, customer-2, customer-3, …): {number} ready tasks."
            assert (queue_lines, many in page) == ((number, False) if number <= 4 else (0, True))
            await client.send_form("/queues/resume", {"queue": "none"})  # has everything read anew


def _look(now: datetime, **counts: int) -> Look:
    states = {state: counts.get(state.value, 0) for state in TaskState}
    return Look(now=now, stats=[QueueStats(queue="a", counts=states)], workers=(), schedules=())


def _ended(moment: datetime) -> StoredTask:
    return StoredTask(
        id=new_id(),
        queue="a",
        name="job",
        body=b"",
        state=TaskState.SUCCEEDED,
        created_at=moment,
        run_at=moment,
        finished_at=moment,
    )


def test_the_history_counts_what_ended_between_looks_and_nothing_while_nobody_looked() -> None:
    start = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
    history = History()
    history.add(_look(start, succeeded=100))
    history.add(_look(start + timedelta(seconds=2), succeeded=110, failed=2, ready=7))
    rates = [history.rate]
    history.add(_look(start + timedelta(seconds=4), succeeded=50))  # old results were removed
    history.add(_look(start + timedelta(minutes=20), succeeded=5000))
    rates.append(history.rate)
    assert rates == [6.0, None]
    buckets = history.buckets(start + timedelta(minutes=20))
    assert [dict(one.ended) for one in buckets if one.ended] == [{TaskState.SUCCEEDED: 10, TaskState.FAILED: 2}]
    assert [one.waiting for one in buckets if one.waiting is not None] == [7, 0]


def test_what_ended_since_the_first_look_is_counted_once() -> None:
    start = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
    history = History()
    history.add(_look(start, succeeded=1))
    history.add(_look(start + timedelta(seconds=2), succeeded=2))
    history.seed([_ended(start + timedelta(seconds=seconds)) for seconds in (-60, 1)], is_all=True)
    assert sum(one.ended.total() for one in history.buckets(start)) == 2


def test_what_ended_before_the_first_look_is_in_the_history_as_far_as_it_is_known() -> None:
    now = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)

    def ended(minutes: float) -> StoredTask:
        return _ended(now - timedelta(minutes=minutes))

    whole, cut = History(), History()
    whole.seed([ended(1), ended(30), ended(90)], is_all=True)
    cut.seed([ended(1), ended(30), ended(31)], is_all=False)
    assert sum(one.ended.total() for one in whole.buckets(now)) == 2
    assert sum(one.ended.total() for one in cut.buckets(now)) == 2, "what shares the earliest half minute is left out"
