"""Tasks that are enqueued, and that complete themselves, in a transaction of the application's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from omniq import (
    ConfigurationError,
    Cron,
    Fixed,
    LeaseLost,
    SerializationError,
    TaskFailed,
    TaskFunction,
    TaskHandle,
    TaskQueue,
    TaskState,
    current_task,
    hookimpl,
)
from omniq.plugins import Plugins
from omniq.storage import Enqueued
from omniq.storage.transactions import CallerTransaction
from omniq.storage.urls import parse_url
from omniq.task import NewTask, Outcome, Task, TaskError
from omniq.testing import await_until, wait_until
from omniq_local.memory.storage import MemoryStorage
from tests.core.running import Gate, working


class Listener:
    """Notes what becomes of tasks."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Mapping[str, Any]]] = []

    def names(self) -> list[str]:
        return [name for name, _ in list(self.heard)]

    @hookimpl
    def omniq_task_enqueued(self, task: NewTask) -> None:
        self.heard.append(("enqueued", {"task": task}))

    @hookimpl
    def omniq_task_succeeded(self, task: Task, seconds: float) -> None:
        self.heard.append(("succeeded", {"task": task, "seconds": seconds}))

    @hookimpl
    def omniq_task_retrying(self, task: Task, error: TaskError) -> None:
        self.heard.append(("retrying", {"task": task, "error": error}))

    @hookimpl
    def omniq_task_failed(self, task: Task, error: TaskError) -> None:
        self.heard.append(("failed", {"task": task, "error": error}))


class Shop:
    """An application that keeps its orders, and its queue, in one database.

    :param path: of the database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = Listener()
        plugins = Plugins()
        plugins.register(self.listener, name="listener")
        url = f"sqlite:///{path}?foreign=allow"
        self.queue = TaskQueue(url, plugins=plugins, retry=Fixed(0), max_retries=2)
        self.queue.stats()  # makes its tables
        with self.connection() as connection:
            connection.execute("CREATE TABLE sold (n INTEGER)")

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection of the application's; what is not committed at its end is rolled back."""
        connection = sqlite3.connect(self.path)
        try:
            yield connection
        finally:
            connection.close()

    def sold(self) -> list[int]:
        with self.connection() as connection:
            return [row[0] for row in connection.execute("SELECT n FROM sold ORDER BY rowid")]


@pytest.fixture
def gate(shop: Shop) -> Iterator[Gate]:
    """Yield a gate that opens before the queue is closed, so that no thread stays behind it."""
    gate = Gate()
    yield gate
    gate.open()


def sell(connection: sqlite3.Connection, n: int) -> None:
    connection.execute("INSERT INTO sold VALUES (?)", (n,))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path / "shop.db")
    yield shop
    shop.queue.close()


# Enqueueing


Enqueue = Callable[[TaskFunction[[int], int], sqlite3.Connection, int], list[TaskHandle[int]]]


def one(function: TaskFunction[[int], int], connection: sqlite3.Connection, n: int) -> list[TaskHandle[int]]:
    return [function.using(connection=connection).enqueue(n)]


def one_by_queue(function: TaskFunction[[int], int], connection: sqlite3.Connection, n: int) -> list[TaskHandle[int]]:
    queue = function.owner
    assert isinstance(queue, TaskQueue)
    return [queue.enqueue(function.using(connection=connection), n)]


def many(function: TaskFunction[[int], int], connection: sqlite3.Connection, n: int) -> list[TaskHandle[int]]:
    queue = function.owner
    assert isinstance(queue, TaskQueue)
    return queue.enqueue_many([function.call(n + index) for index in range(2500)], connection=connection)


def on_a_loop(function: TaskFunction[[int], int], connection: sqlite3.Connection, n: int) -> list[TaskHandle[int]]:
    async def enqueue() -> list[TaskHandle[int]]:
        queue = function.owner
        assert isinstance(queue, TaskQueue)
        return [
            await function.using(connection=connection).aenqueue(n),
            await queue.aenqueue(function.using(connection=connection), n),
            *await queue.aenqueue_many([function.call(n), function.call(n)], connection=connection),
        ]

    return asyncio.run(enqueue())


@pytest.mark.parametrize("enqueue", [one, one_by_queue, many, on_a_loop])
def test_a_task_exists_if_and_only_if_the_callers_transaction_commits(shop: Shop, enqueue: Enqueue) -> None:
    @shop.queue.task
    def double(n: int) -> int:
        return 2 * n

    with shop.connection() as connection:
        sell(connection, 1)
        handles = enqueue(double, connection, 1)
        assert shop.queue.get(handles[0].id) is None, "it is seen before the commit"
        connection.rollback()
        assert [shop.queue.get(handle.id) for handle in handles] == [None] * len(handles)
        assert shop.sold() == []

        sell(connection, 2)
        handles = enqueue(double, connection, 2)
        connection.commit()

    (stats,) = shop.queue.stats()
    assert stats.counts[TaskState.READY] == len(handles), "something of what was rolled back is counted"
    with working(shop.queue):
        assert handles[0].result(30) == 4
        assert handles[-1].result(30) == 2 * (2 + len(handles) - 1 if enqueue is many else 2)
    assert shop.sold() == [2]


def test_the_task_may_be_the_first_thing_in_the_transaction(shop: Shop) -> None:
    task = shop.queue.task(sell_nothing)

    with shop.connection() as connection:
        with connection:
            handle = task.using(connection=connection).enqueue()
            sell(connection, 1)
        assert shop.queue.get(handle.id) is not None
        with contextlib.suppress(KeyError), connection:
            handle = task.using(connection=connection).enqueue()
            raise KeyError
    assert shop.queue.get(handle.id) is None


def sell_nothing() -> None: ...


def test_a_task_of_a_transaction_has_the_options_of_any_other(shop: Shop) -> None:
    task = shop.queue.task(queue="slow", max_retries=7)(sell_nothing)

    with shop.connection() as connection:
        bound = task.using(connection=connection, priority=5, tags=["a"], expires=1000)
        later = bound.using(delay=60, unique="key", timeout=3, result_ttl=10).enqueue()
        record = bound.using(unique=True).enqueue()
        assert [shop.queue.get(handle.id) for handle in (later, record)] == [None, None]
        connection.commit()
    now, then = later.task(), record.task()

    assert (now.state, now.queue, now.priority, now.tags) == (TaskState.SCHEDULED, "slow", 5, ("a",))
    assert (now.max_retries, now.timeout, now.result_ttl, now.unique) == (7, 3, 10, "key")
    assert (now.run_at - now.created_at).total_seconds() == pytest.approx(60)
    assert now.expires_at is not None
    assert then.state is TaskState.READY
    assert then.unique is not None


def test_a_unique_key_holds_within_the_transaction_and_is_free_after_a_rollback(shop: Shop) -> None:
    task = shop.queue.task(unique="key")(sell_nothing)

    with shop.connection() as connection:
        bound = task.using(connection=connection)
        first, second = bound.enqueue(), bound.enqueue()
        assert (first.created, second.created) == (True, False)
        assert second == first
        connection.rollback()
        third = task.enqueue()
        assert third.created
        assert bound.enqueue() == third


def test_a_connection_binds_the_copy_alone(shop: Shop) -> None:
    task = shop.queue.task(sell_nothing)

    with shop.connection() as connection:
        task.using(connection=connection)
        handle = task.enqueue()
        assert not connection.in_transaction
    assert shop.queue.get(handle.id) is not None


def test_a_call_cannot_keep_a_connection(shop: Shop) -> None:
    task = shop.queue.task(sell_nothing)

    with shop.connection() as connection:
        bound = task.using(connection=connection)
        with pytest.raises(TypeError, match=r"cannot keep a connection: .*enqueue_many\(\[…\], connection=…\)"):
            shop.queue.schedule(bound.call(), Cron("0 9 * * *"), id="daily")
    assert shop.queue.schedules() == []


def test_wrong_arguments_are_refused_before_anything_is_done(shop: Shop) -> None:
    @shop.queue.task
    def double(n: int) -> int:
        return 2 * n

    with shop.connection() as connection:
        with pytest.raises(TypeError, match="missing a required argument"):
            double.using(connection=connection).enqueue()  # type: ignore[call-arg]  # the mistake that is tested
        with pytest.raises(SerializationError):
            shop.queue.enqueue_many([double.call(1), double.call(object())], connection=connection)  # type: ignore[arg-type]  # likewise
        assert not connection.in_transaction


class Stamp:
    """Adds a header to what is enqueued, and notes each call."""

    def __init__(self) -> None:
        self.answers: list[Sequence[Enqueued]] = []

    @hookimpl
    def omniq_around_enqueue(
        self, tasks: Sequence[NewTask]
    ) -> Generator[Sequence[Mapping[str, str]], Sequence[Enqueued], None]:
        self.answers.append((yield [{"trace": str(len(tasks))}] * len(tasks)))


@pytest.mark.parametrize("enqueue", [one, one_by_queue, many, on_a_loop])
def test_the_hooks_around_enqueueing_stand_around_what_joins_a_transaction(shop: Shop, enqueue: Enqueue) -> None:
    @shop.queue.task
    def same(n: int) -> int:
        return n

    stamp = Stamp()
    shop.queue.plugins.register(stamp, name="stamp")

    with shop.connection() as connection:
        handles = enqueue(same, connection, 1)
        connection.commit()

    assert [entry.id for answer in stamp.answers for entry in answer] == [handle.id for handle in handles]
    for answer in stamp.answers:
        last = shop.queue.get(answer[-1].id)
        assert last is not None
        assert last.headers == {"trace": str(len(answer))}


def test_it_is_told_of_as_soon_as_it_is_stored(shop: Shop) -> None:
    task = shop.queue.task(unique="key")(sell_nothing)

    with shop.connection() as connection:
        handle = task.using(connection=connection).enqueue()
        task.using(connection=connection).enqueue()
        assert [heard["task"].id for _, heard in shop.listener.heard] == [handle.id]


def test_the_queue_can_be_used_first_within_the_transaction_if_its_tables_are_there(shop: Shop) -> None:
    shop.queue.close()
    task = shop.queue.task(sell_nothing)

    with shop.connection() as connection, connection:
        sell(connection, 1)
        handle = task.using(connection=connection).enqueue()
    assert shop.queue.get(handle.id) is not None


# Stores and connections that cannot


@pytest.mark.parametrize("url", ["memory://", "file:///{tmp_path}/jobs"])
def test_a_store_without_transactions_refuses(url: str, tmp_path: Path) -> None:
    with TaskQueue(url.format(tmp_path=tmp_path), max_retries=0) as queue:
        task = queue.task(sell_nothing)

        @queue.task
        async def complete() -> None:
            with pytest.raises(ConfigurationError, match="cannot take part"):
                current_task().complete_in(object())
            await current_task().acomplete_in(object())

        refused = pytest.raises(ConfigurationError, match=r"cannot take part in your transaction.*postgresql://")
        with refused:
            task.using(connection=object()).enqueue()
        with refused:
            queue.enqueue_many([task.call()], connection=object())
        with refused:
            asyncio.run(queue.aenqueue_many([task.call()], connection=object()))
        assert queue.stats() == []
        with working(queue), pytest.raises(TaskFailed, match=r"ConfigurationError: .*cannot take part"):
            complete.enqueue().result(30)


class AsyncTransaction(CallerTransaction):
    """A transaction on a connection of an asynchronous driver."""

    is_async = True

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage

    def enqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        raise AssertionError("the core asks first")

    async def aenqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        return await self._storage.enqueue(tasks)

    def finish(self, outcome: Outcome) -> bool:
        raise AssertionError("the core asks first")

    async def afinish(self, outcome: Outcome) -> bool:
        return (await self._storage.finish([outcome]))[0]


class AsyncStorage(MemoryStorage):
    """A store in memory that pretends to be a database with an asynchronous driver."""

    def join(self, connection: object) -> CallerTransaction:
        return AsyncTransaction(self)


def test_with_an_asynchronous_connection_a_synchronous_call_names_its_twin() -> None:
    with TaskQueue(AsyncStorage(parse_url("memory://async")), max_retries=0) as queue:

        @queue.task
        async def complete() -> str:
            with pytest.raises(TypeError, match="acomplete_in"):
                current_task().complete_in(object())
            await current_task().acomplete_in(object(), "of the transaction")
            return "of the function"

        bound = complete.using(connection=object())
        with pytest.raises(TypeError, match="aenqueue"):
            bound.enqueue()
        with pytest.raises(TypeError, match="aenqueue"):
            queue.enqueue(bound)
        with pytest.raises(TypeError, match="aenqueue_many"):
            queue.enqueue_many([complete.call()], connection=object())

        async def enqueue() -> list[TaskHandle[str]]:
            return [await bound.aenqueue(), *await queue.aenqueue_many([complete.call()], connection=object())]

        handles = asyncio.run(enqueue())
        with working(queue):
            assert [handle.result(30) for handle in handles] == ["of the transaction"] * 2


# Completion


def declare(
    shop: Shop, kind: str, work: Callable[[sqlite3.Connection], None], **options: Any
) -> TaskFunction[[], object]:
    """Declare a task that works on a connection of its own and returns, as a coroutine or on a thread."""

    def run() -> object:
        with shop.connection() as connection:
            work(connection)
        return "of the function"

    async def arun() -> object:
        return run()

    if kind == "coroutine":
        declared: TaskFunction[[], object] = shop.queue.task(name="work", **options)(arun)
        return declared
    return shop.queue.task(name="work", **options)(run)


both_kinds = pytest.mark.parametrize("kind", ["coroutine", "thread"])


@both_kinds
def test_effects_and_completion_are_committed_together(shop: Shop, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def work(connection: sqlite3.Connection) -> None:
        sell(connection, 1)
        current_task().complete_in(connection, {"sold": 1})
        connection.commit()

    task = declare(shop, kind, work)
    with caplog.at_level(logging.INFO, "omniq"), working(shop.queue) as worker:
        handle = task.enqueue()
        result = handle.result(30)
        wait_until(lambda: "succeeded" in shop.listener.names())
    record = handle.task()

    assert result == {"sold": 1}
    assert shop.sold() == [1]
    assert (record.state, record.attempt, record.error) == (TaskState.SUCCEEDED, 1, None)
    assert shop.listener.names() == ["enqueued", "succeeded"]
    assert shop.listener.heard[1][1]["task"].id == handle.id
    assert worker.completer.rejected == 0
    assert [line.getMessage() for line in caplog.records if line.levelno > logging.INFO] == []
    assert f"task {handle.id} (work) succeeded" in caplog.text


@both_kinds
def test_without_a_commit_the_effects_are_undone_and_the_task_runs_again(shop: Shop, kind: str) -> None:
    def work(connection: sqlite3.Connection) -> None:
        attempt = current_task().attempt
        sell(connection, attempt)
        current_task().complete_in(connection, attempt)
        if attempt == 3:
            connection.commit()

    # That the task's errors are not to be retried says nothing of this.
    task = declare(shop, kind, work, retry_on=())
    with working(shop.queue):
        handle = task.enqueue()
        result = handle.result(30)
        wait_until(lambda: "succeeded" in shop.listener.names())

    assert result == 3
    assert shop.sold() == [3]
    assert shop.listener.names() == ["enqueued", "retrying", "retrying", "succeeded"]
    assert shop.listener.heard[1][1]["error"].type == "NotCommitted"


def test_without_a_commit_in_the_last_attempt_the_task_fails(shop: Shop) -> None:
    def work(connection: sqlite3.Connection) -> None:
        sell(connection, 1)
        current_task().complete_in(connection)

    task = declare(shop, "thread", work, max_retries=1)
    with working(shop.queue), pytest.raises(TaskFailed, match=r"complete_in was called .* was not committed"):
        task.enqueue().result(30)

    assert shop.sold() == []


@both_kinds
def test_what_is_raised_after_the_commit_changes_nothing(
    shop: Shop, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def work(connection: sqlite3.Connection) -> None:
        sell(connection, 1)
        current_task().complete_in(connection, "sold")
        connection.commit()
        raise ValueError("too late")

    task = declare(shop, kind, work)
    with caplog.at_level(logging.INFO, "omniq"), working(shop.queue) as worker:
        handle = task.enqueue()
        assert handle.result(30) == "sold"
        wait_until(lambda: "succeeded" in shop.listener.names())

    assert shop.sold() == [1]
    assert shop.listener.names() == ["enqueued", "succeeded"]
    assert worker.completer.rejected == 0
    assert "too late" in caplog.text
    assert [line.getMessage() for line in caplog.records if line.levelno > logging.INFO] == []


def test_what_is_raised_before_the_commit_is_the_attempts_error(shop: Shop) -> None:
    def work(connection: sqlite3.Connection) -> None:
        sell(connection, 1)
        current_task().complete_in(connection)
        raise ValueError("in time")

    task = declare(shop, "thread", work, max_retries=0)
    with working(shop.queue), pytest.raises(TaskFailed, match="ValueError: in time"):
        task.enqueue().result(30)

    assert shop.sold() == []


def test_a_task_that_has_completed_itself_cannot_do_so_again(shop: Shop) -> None:
    raised: list[LeaseLost] = []

    def work(connection: sqlite3.Connection) -> None:
        current_task().complete_in(connection, "first")
        connection.commit()
        sell(connection, 1)
        try:
            current_task().complete_in(connection, "second")
        except LeaseLost as error:
            raised.append(error)
            raise

    task = declare(shop, "thread", work)
    with working(shop.queue):
        handle = task.enqueue()
        result = handle.result(30)
        wait_until(lambda: "succeeded" in shop.listener.names())

    assert result == "first"
    assert shop.sold() == []
    assert [error.task_id for error in raised] == [handle.id]


def test_a_task_can_complete_itself_in_a_second_transaction_if_the_first_came_to_nothing(shop: Shop) -> None:
    def work(connection: sqlite3.Connection) -> None:
        for n in (1, 2):
            sell(connection, n)
            current_task().complete_in(connection, n)
            if n == 1:
                connection.rollback()
        connection.commit()

    task = declare(shop, "thread", work)
    with working(shop.queue):
        handle = task.enqueue()
        result = handle.result(30)

    assert (result, handle.task().attempt, shop.sold()) == (2, 1, [2])


def test_a_result_that_cannot_be_encoded_undoes_the_effects(shop: Shop) -> None:
    def work(connection: sqlite3.Connection) -> None:
        sell(connection, 1)
        current_task().complete_in(connection, object())
        connection.commit()

    task = declare(shop, "thread", work)
    with working(shop.queue), pytest.raises(TaskFailed, match="SerializationError"):
        task.enqueue().result(30)

    assert shop.sold() == []


def test_a_result_that_is_recorded_in_a_transaction_is_signed_as_any_is(shop: Shop) -> None:
    with TaskQueue(f"sqlite:///{shop.path}", signing_key="k" * 40) as queue:

        @queue.task
        def work() -> int:
            with shop.connection() as connection, connection:
                current_task().complete_in(connection, 7)
            return 0

        with working(queue):
            handle = work.enqueue()
            assert handle.result(30) == 7


def test_a_transaction_that_was_left_open_holds_up_no_other_task() -> None:
    left_open = threading.Event()
    left_open.set()

    class Transaction(AsyncTransaction):
        async def afinish(self, outcome: Outcome) -> bool:
            return True  # and nothing is committed

    class Rows(AsyncStorage):
        """A store that waits, as a database does, for the end of the transaction that has changed a row."""

        def join(self, connection: object) -> CallerTransaction:
            return Transaction(self)

        async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
            if any(outcome.id == handle.id for outcome in outcomes):
                await await_until(lambda: not left_open.is_set())
            return await super().finish(outcomes)

    with TaskQueue(Rows(parse_url("memory://rows")), max_retries=0) as queue:
        other = queue.task(sell_nothing)

        @queue.task
        async def forget_to_commit() -> None:
            await current_task().acomplete_in(object())

        handle = forget_to_commit.enqueue()
        with working(queue):
            for _ in range(5):
                other.enqueue().result(30)
            assert handle.task().state is TaskState.RUNNING
            left_open.clear()
            with pytest.raises(TaskFailed, match="NotCommitted"):
                handle.result(30)


def test_a_task_that_goes_on_after_its_commit_is_left_alone_and_frees_its_unique_key(
    shop: Shop, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bool] = []

    def work(connection: sqlite3.Connection) -> None:
        current_task().complete_in(connection, "done")
        connection.commit()
        gate.wait()
        seen.append(current_task().cancelled)

    def beats_pass(count: int) -> None:
        for _ in range(count):
            before = shop.queue.workers()
            wait_until(lambda before=before: shop.queue.workers() != before)  # type: ignore[misc]  # a default is no capture

    task = declare(shop, "thread", work, unique="key")
    with caplog.at_level(logging.INFO, "omniq"), working(shop.queue, lease=1.5):
        handle = task.enqueue()
        assert handle.result(30) == "done"
        beats_pass(4)
        assert task.using(delay=60).enqueue().created
        gate.open()
        wait_until(lambda: "succeeded" in shop.listener.names())

    assert seen == [False]
    assert [line.getMessage() for line in caplog.records if line.levelno > logging.INFO] == []


def test_a_task_that_is_interrupted_after_its_commit_has_succeeded(shop: Shop) -> None:
    @shop.queue.task
    async def work() -> str:
        with shop.connection() as connection:
            current_task().complete_in(connection, "done")
            connection.commit()
        await asyncio.Event().wait()
        return "never"

    with working(shop.queue) as worker:
        assert work.enqueue().result(30) == "done"
        assert worker._loop is not None
        worker._loop.call_soon_threadsafe(
            worker._interrupter.abandon_all
        )  # as when the store was not heard of for too long
        wait_until(lambda: "succeeded" in shop.listener.names())

    assert shop.listener.names() == ["enqueued", "succeeded"]


def test_a_thread_whose_timeout_is_over_cannot_complete_the_task_any_more(shop: Shop, gate: Gate) -> None:
    raised: list[LeaseLost] = []

    def work(connection: sqlite3.Connection) -> None:
        gate.wait()
        sell(connection, 1)
        try:
            current_task().complete_in(connection)
        except LeaseLost as error:
            raised.append(error)
            raise
        connection.commit()

    task = declare(shop, "thread", work, timeout=0.05, max_retries=0)
    with working(shop.queue):
        with pytest.raises(TaskFailed, match="TaskTimeout"):
            task.enqueue().result(30)
        gate.open()
        wait_until(lambda: raised)

    assert shop.sold() == []


in_processes = TaskQueue("memory://", max_retries=0)


@in_processes.task(executor="process")
def complete_in_a_process() -> None:
    current_task().complete_in(object())


def test_a_task_in_a_process_of_its_own_is_told_that_it_cannot() -> None:
    with (
        in_processes,
        working(in_processes),
        pytest.raises(TaskFailed, match=r"ConfigurationError: .*executor='process'"),
    ):
        complete_in_a_process.enqueue().result(30)
