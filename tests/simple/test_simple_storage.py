"""What SimpleStorage does beside the verbs: it retries, but never past a commit; it waits and is woken; it ends."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from omniq.errors import StorageUnavailable
from omniq.storage import Enqueued, Finding, SimpleStorage, SqlTx, StorageConfig
from omniq.storage.base import Storage
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import NewTask, Succeeded
from omniq.testing import wait_until


def backend() -> Any:
    """Return the module of the store on the documentation's page."""
    return importlib.import_module("omniq_mystore.storage")


def storage(path: Path, **attributes: Any) -> Any:
    made = backend().MyStorage(parse_url(f"mystore://{path}/jobs.db"))
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def task() -> NewTask:
    return NewTask(id=new_id(), queue="q", name="n", body=b"")


def failing(real: Any, failures: int, *, at_commit: bool) -> Any:
    """Return a `transaction` that fails some times, before its block or as its commit is sent."""
    left = [failures]

    @contextmanager
    def transaction(connection: sqlite3.Connection, write: bool) -> Iterator[SqlTx]:
        if left[0] and write and not at_commit:
            left[0] -= 1
            raise sqlite3.OperationalError("the disk is away")
        with real(connection, write) as tx:
            yield tx
        if left[0] and write:
            left[0] -= 1
            raise sqlite3.OperationalError("the answer is lost")

    return transaction


async def test_what_passes_is_tried_again(tmp_path: Path) -> None:
    store = storage(tmp_path)
    await store.open()
    store.transaction = failing(store.transaction, 3, at_commit=False)
    new = task()
    assert await store.enqueue([new]) == [Enqueued(new.id, True)]
    await store.close()


async def test_what_may_have_been_committed_is_the_callers_to_repeat(tmp_path: Path) -> None:
    store = storage(tmp_path)
    await store.open()
    store.transaction = failing(store.transaction, 1, at_commit=True)
    new = task()
    with pytest.raises(StorageUnavailable, match="the answer is lost"):
        await store.enqueue([new])
    assert await store.enqueue([new]) == [Enqueued(new.id, False)]
    await store.close()


async def test_what_does_not_pass_ends_within_the_timeout(tmp_path: Path) -> None:
    store = storage(tmp_path, timeout=0.2)
    await store.open()
    store.transaction = failing(store.transaction, 1000, at_commit=False)
    with pytest.raises(StorageUnavailable, match="the disk is away"):
        await store.enqueue([task()])
    await store.close()


async def test_the_time_of_a_call_counts_while_it_is_behind_others(tmp_path: Path) -> None:
    store = storage(tmp_path)
    await store.open()
    begun, go_on = threading.Event(), threading.Event()
    real = store.transaction

    def slow(connection: sqlite3.Connection, write: bool) -> Any:
        begun.set()
        assert go_on.wait(60)
        return real(connection, write)

    store.transaction = slow
    first = asyncio.create_task(store.enqueue([task()]))
    await asyncio.to_thread(begun.wait, 60)
    store.timeout = 0.01
    second = asyncio.create_task(store.enqueue([task()]))
    await asyncio.sleep(0.05)  # by then it waits
    go_on.set()
    assert (await first)[0].created
    with pytest.raises(StorageUnavailable, match=r"not begun within 0\.01 s"):
        await second
    await store.close()


async def test_a_storage_that_is_not_open_says_so(tmp_path: Path) -> None:
    store = storage(tmp_path)
    with pytest.raises(StorageUnavailable, match="is not open"):
        await store.now()
    await store.open()
    await store.close()
    with pytest.raises(StorageUnavailable, match="is not open"):
        await store.now()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_closing_leaves_no_thread_and_no_connection(tmp_path: Path, cancelled: bool) -> None:
    before = set(threading.enumerate())
    store = storage(tmp_path)
    closed: list[sqlite3.Connection] = []
    real = store.disconnect
    begun, go_on = threading.Event(), threading.Event()

    def disconnect(connection: sqlite3.Connection) -> None:
        closed.append(connection)
        real(connection)

    def slow(tx: Any) -> None:
        begun.set()
        assert go_on.wait(60)

    store.disconnect = disconnect
    await store.open()
    await store.stats()
    writing = asyncio.create_task(store._run(slow))
    await asyncio.to_thread(begun.wait, 60)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)  # a turn of the loop, in which it begins to close
    if cancelled:
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    go_on.set()
    await writing
    if not cancelled:
        await closing
        assert len(closed) == 2
    await asyncio.to_thread(wait_until, lambda: not _new_threads(before), what="the end of the threads")
    assert len(closed) == 2


def _new_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one not in before and one.name.startswith("omniq-mystore")]


async def test_an_idle_wait_looks_once_a_second_at_most(tmp_path: Path) -> None:
    store = storage(tmp_path)
    await store.open()
    looks: list[bool] = []
    real = store.transaction

    def counting(connection: sqlite3.Connection, write: bool) -> Any:
        looks.append(write)
        return real(connection, write)

    store.transaction = counting
    await store.wait_for_work(["q"], 1.5)
    assert 1 <= len(looks) <= 3
    await store.close()


class Telling:
    """What tells other processes of a change, as a part of it."""

    def announce(self, tx: SqlTx) -> None:
        tx.change("UPDATE told SET n = n + 1")


class Listening:
    """What hears of it."""

    heard = 0

    def listen(self, connection: sqlite3.Connection, seconds: float) -> bool:
        for _ in range(int(seconds / 0.01)):
            ((n,),) = connection.execute("SELECT n FROM told")
            if n != self.heard:
                self.heard = n
                return True
            threading.Event().wait(0.01)
        return False


async def test_a_store_that_tells_wakes_those_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq.storage.simple.waiting.LOOK_SECONDS", 600.0)

    class Waiter(Listening, backend().MyStorage):  # type: ignore[misc]  # known at run time
        pass

    class Teller(Telling, backend().MyStorage):  # type: ignore[misc]  # known at run time
        pass

    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE told AS SELECT 0 AS n")
    config = parse_url(f"mystore://{tmp_path}/jobs.db")
    waiter, teller = Waiter(config), Teller(config)
    await waiter.open()
    await teller.open()
    waiting = asyncio.create_task(waiter.wait_for_work(["q"], 600))
    await asyncio.sleep(0)  # the wait begins
    await teller.enqueue([task()])
    async with asyncio.timeout(60):
        await waiting
    await waiter.close()
    await teller.close()


# The caller's transaction


class Joining:
    """What lets tasks be enqueued in a caller's own transaction."""

    connection_types = (sqlite3.Connection,)
    config: StorageConfig

    @contextmanager
    def joined(self, connection: sqlite3.Connection) -> Iterator[SqlTx]:
        if not connection.in_transaction:
            raise ValueError("begin a transaction first")
        tx = backend().MyTx(connection.cursor(), self.config.namespace, datetime.now(UTC))
        with tx.savepoint():
            yield tx


async def test_a_task_in_a_callers_transaction_exists_if_it_commits(tmp_path: Path) -> None:
    class Joinable(Joining, backend().MyStorage):  # type: ignore[misc]  # known at run time
        pass

    store = Joinable(parse_url(f"mystore://{tmp_path}/jobs.db"))
    await store.open()
    own = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    dropped, kept = task(), task()
    for new, end in ((dropped, "ROLLBACK"), (kept, "COMMIT")):
        own.execute("BEGIN IMMEDIATE")
        assert store.join(own).enqueue([new]) == [Enqueued(new.id, True)]
        own.execute(end)
    assert [one and one.id for one in await store.get([dropped.id, kept.id])] == [None, kept.id]
    with pytest.raises(ValueError, match="begin a transaction"):
        store.join(own).enqueue([task()])
    with pytest.raises(TypeError, match=r"no connection that mystore:// knows; give it a sqlite3\.Connection"):
        store.join(object())

    (claimed,) = await store.claim({"q": 1}, worker="w", lease=60)
    own.execute("BEGIN IMMEDIATE")
    joined = store.join(own)
    assert await joined.afinish(Succeeded(id=kept.id, delivery=claimed.delivery, result=b"1"))
    assert not joined.finish(Succeeded(id=kept.id, delivery=claimed.delivery, result=b"2"))
    own.execute("COMMIT")
    (stored,) = await store.get([kept.id])
    assert stored is not None
    assert stored.result_payload == b"1"
    await store.close()
    own.close()


def test_a_store_that_cannot_join_says_so(tmp_path: Path) -> None:
    from omniq import ConfigurationError

    with pytest.raises(ConfigurationError, match="cannot take part"):
        storage(tmp_path).join(object())


def test_what_is_missing_in_a_backend_is_named(tmp_path: Path) -> None:
    class Half(SimpleStorage):
        def findings(self, tx: Any) -> list[Finding]:
            return []

    with pytest.raises(TypeError, match=r"connect.*fault.*transaction"):
        Half(parse_url(f"mystore://{tmp_path}/x"))  # type: ignore[abstract]  # the mistake that the test is about
    assert issubclass(Half, Storage)
