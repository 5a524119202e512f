"""What a task is given beside its arguments: made within its attempt, and left before its outcome is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest

from omniq import (
    Depends,
    Fixed,
    TaskCancelled,
    TaskFailed,
    TaskHandle,
    TaskQueue,
    TaskState,
    TaskTimeout,
    Worker,
    WorkerState,
    current_task,
)
from omniq._worker.attempt import Interruption
from omniq.testing import await_until, trial
from tests.core.running import MakeQueue

State = dict[str, Any]
LOG: list[Any] = []


@pytest.fixture(autouse=True)
def _no_log() -> None:
    LOG.clear()


@contextlib.asynccontextmanager
async def resources(queue: TaskQueue) -> AsyncIterator[State]:
    LOG.append("open")
    yield {"pool": "pool", "queue": queue}
    LOG.append("closed")


@pytest.fixture
def queue() -> TaskQueue:
    return TaskQueue("memory://", lifespan=resources, max_retries=0)


def plain(state: State = WorkerState()) -> str:
    LOG.append("plain")
    return f"plain of {state['pool']}"


def generator(below: str = Depends(plain)) -> Iterator[str]:
    LOG.append("generator")
    try:
        yield f"generator over {below}"
    except BaseException as error:
        LOG.append(error)
        raise
    finally:
        LOG.append("generator left")


async def coroutine(state: State = WorkerState()) -> str:
    LOG.append("coroutine")
    return f"coroutine of {state['pool']}"


async def async_generator(below: str = Depends(generator), word: str = "over") -> AsyncIterator[str]:
    LOG.append("async generator")
    try:
        yield f"async {word} {below}"
    except BaseException as error:
        LOG.append(error)
        raise
    finally:
        LOG.append("async generator left")


def cancel(worker: Worker, handle: TaskHandle[Any]) -> None:
    """Do what the worker does when it hears of a cancellation."""
    (attempt,) = [attempt for attempt in worker.completer.attempts if attempt.task.id == handle.id]
    attempt.interrupt(Interruption.CANCEL)


def outcome(queue: TaskQueue, handle: TaskHandle[Any]) -> Any:
    task = handle.task()
    return task.result if task.state is TaskState.SUCCEEDED else (task.state, task.error and task.error.type)


@dataclass
class Address:
    host: str

    def __post_init__(self) -> None:
        LOG.append(self.host)


# What is injected


def test_a_coroutine_is_given_what_factories_of_every_kind_make_and_they_are_left_in_reverse(queue: TaskQueue) -> None:
    @queue.task
    async def send(
        user: int,
        *,
        first: str = Depends(async_generator),
        second: str = Depends(coroutine),
        state: State = WorkerState(),
    ) -> list[Any]:
        LOG.append("function")
        assert current_task().state is state
        assert state["queue"] is queue
        return [user, first, second]

    with trial(queue) as tried:
        handle = send.enqueue(7)
        tried.drain()
        assert handle.result() == [7, "async over generator over plain of pool", "coroutine of pool"]
    assert LOG == [
        "open", "plain", "generator", "async generator", "coroutine", "function",
        "async generator left", "generator left", "closed",
    ]  # fmt: skip


def test_a_plain_function_is_given_what_plain_factories_make_on_its_own_thread(queue: TaskQueue) -> None:
    threads = set()

    def where(state: State = WorkerState()) -> Iterator[str]:
        threads.add(threading.get_ident())
        yield state["pool"]
        threads.add(threading.get_ident())

    @queue.task
    def send(user: int, db: str = Depends(where), width: int = 3) -> list[Any]:
        threads.add(threading.get_ident())
        return [user, db, width, current_task().state["pool"]]

    async def result() -> None:
        async with queue.worker():
            assert await (await send.aenqueue(7, width=4)) == [7, "pool", 4, "pool"]

    asyncio.run(result())
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_what_two_parameters_need_is_made_once_for_each_attempt(queue: TaskQueue) -> None:
    made = []

    def connection() -> object:
        made.append(object())
        return made[-1]

    def repository(db: object = Depends(connection)) -> object:
        return db

    @queue.task(max_retries=1, retry=Fixed(0))
    async def send(one: object = Depends(connection), other: object = Depends(repository)) -> bool:
        if len(made) == 1:
            current_task().retry()
        return one is other

    with trial(queue) as tried:
        handle = send.enqueue()
        tried.drain()
        assert handle.result() is True
    assert len(made) == 2


def test_what_contextlib_has_decorated_is_meant_as_the_generator_that_it_was(queue: TaskQueue) -> None:
    one = contextlib.contextmanager(generator)

    @queue.task
    async def send(
        db: str = Depends(one), other: str = Depends(contextlib.asynccontextmanager(async_generator))
    ) -> str:
        return db + other

    with trial(queue) as tried:
        handle = send.enqueue()
        tried.drain()
        assert handle.result() == "generator over plain of poolasync over generator over plain of pool"
    assert "generator left" in LOG


def test_classes_partials_and_objects_with_a_call_are_factories(queue: TaskQueue) -> None:
    class Settings:
        def __init__(self, state: State = WorkerState()) -> None:
            self.pool = state["pool"]

    class Greeting:
        def __call__(self, settings: Settings = Depends(Settings)) -> str:
            return f"hello {settings.pool}"

    @queue.task
    def send(
        greeting: str = Depends(Greeting()),
        other: str = Depends(functools.partial(str, "x")),
        none: Any = Depends(dict),
    ) -> list[Any]:
        return [greeting, other, none]

    with trial(queue) as tried:
        handle = send.enqueue()
        tried.drain()
        assert handle.result() == ["hello pool", "x", {}]


def test_parameters_that_are_injected_may_be_of_types_that_no_store_could_hold(queue: TaskQueue) -> None:
    @queue.task
    async def send(user: int, lock: threading.Lock = Depends(threading.Lock)) -> bool:
        return lock.acquire(blocking=False)

    with trial(queue) as tried:
        handle = send.enqueue(7)
        tried.drain()
        assert handle.result() is True


# Errors


@pytest.mark.parametrize("is_async", [True, False])
def test_an_error_of_the_function_is_raised_where_a_generator_stands(queue: TaskQueue, is_async: bool) -> None:
    error = ValueError("no such user")

    if is_async:

        @queue.task
        async def send(db: str = Depends(async_generator)) -> None:
            raise error
    else:

        @queue.task
        def send(db: str = Depends(generator)) -> None:
            raise error

    with trial(queue) as tried:
        handle = send.enqueue()
        tried.drain()
        failed = handle.task().error
    assert failed is not None
    assert failed.type == "ValueError"
    assert "injection.py" not in failed.traceback
    left = ["generator left", "closed"]
    expected = [error, "async generator left", error, *left] if is_async else [error, *left]
    assert LOG[-len(expected) :] == expected


@pytest.mark.parametrize("is_async", [True, False])
def test_an_error_in_leaving_fails_the_attempt(queue: TaskQueue, is_async: bool) -> None:
    class CommitFailed(Exception):
        pass

    def connection() -> Iterator[str]:
        yield "connection"
        if len(LOG) == 1:
            raise CommitFailed

    def send(db: str = Depends(connection)) -> str:
        LOG.append("function")
        return db

    async def asend(db: str = Depends(connection)) -> str:
        return send(db)

    task: Any = queue.task(max_retries=1, retry=Fixed(0))(asend if is_async else send)
    queue.lifespan = None
    with trial(queue) as tried:
        handle = task.enqueue()
        tried.drain()
        assert handle.result() == "connection"
        assert handle.task().attempt == 2
    assert LOG == ["function", "function"]


@pytest.mark.parametrize("is_async", [True, False])
def test_a_dependency_cannot_turn_a_failure_into_a_success(queue: TaskQueue, is_async: bool) -> None:
    def hiding() -> Iterator[None]:
        with contextlib.suppress(BaseException):
            yield

    def send(db: None = Depends(hiding)) -> None:
        raise KeyError("user")

    async def asend(db: None = Depends(hiding)) -> None:
        raise KeyError("user")

    task: Any = queue.task(asend if is_async else send)
    with trial(queue) as tried:
        handle = task.enqueue()
        tried.drain()
        assert outcome(queue, handle) == (TaskState.FAILED, "KeyError")


@pytest.mark.parametrize("is_async", [True, False])
def test_an_error_in_making_fails_the_attempt_and_leaves_what_was_made(queue: TaskQueue, is_async: bool) -> None:
    def broken(below: str = Depends(generator)) -> None:
        raise ConnectionError("no connection left")

    def send(db: None = Depends(broken)) -> None:
        LOG.append("function")

    async def asend(db: None = Depends(broken)) -> None:
        LOG.append("function")

    task: Any = queue.task(asend if is_async else send)
    with trial(queue) as tried:
        handle = task.enqueue()
        tried.drain()
        assert outcome(queue, handle) == (TaskState.FAILED, "ConnectionError")
    assert "generator left" in LOG
    assert "function" not in LOG


def test_a_task_that_asks_to_run_again_does_so_and_its_dependencies_see_that_it_did_not_succeed(
    queue: TaskQueue,
) -> None:
    @queue.task(max_retries=1)
    def send(db: str = Depends(generator)) -> str:
        if current_task().attempt == 1:
            current_task().retry(delay=0)
        return "sent"

    with trial(queue) as tried:
        handle = send.enqueue()
        tried.drain()
        assert handle.result() == "sent"
    (seen,) = [entry for entry in LOG if isinstance(entry, BaseException)]
    assert not isinstance(seen, Exception)


async def test_dependencies_are_made_and_left_inside_the_timeout(queue: TaskQueue) -> None:
    async def slow() -> AsyncIterator[None]:
        try:
            await asyncio.sleep(3600)  # until it is cancelled
            yield
        finally:
            LOG.append("slow left")

    async def slow_to_leave() -> AsyncIterator[None]:
        yield
        await asyncio.sleep(3600)  # until it is cancelled

    @queue.task(timeout=0.05)
    async def send(db: None = Depends(slow)) -> None: ...

    @queue.task(timeout=0.05)
    async def send_late(db: None = Depends(slow_to_leave)) -> None: ...

    async with queue.worker():
        for task in (send, send_late):
            with pytest.raises(TaskFailed) as failed:
                await (await task.aenqueue())
            assert failed.value.error.type == TaskTimeout.__name__
    assert "slow left" in LOG


async def test_a_plain_factory_that_blocks_holds_no_other_task_up_and_is_left_though_the_task_was_cancelled(
    queue: TaskQueue,
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def blocking(below: str = Depends(generator)) -> Iterator[str]:
        entered.set()
        go_on.wait(60)
        try:
            yield "connection"
        finally:
            LOG.append("left")

    @queue.task
    async def send(db: str = Depends(blocking)) -> None:
        LOG.append("function")

    @queue.task
    async def other() -> str:
        return "not held up"

    async with queue.worker() as worker:
        handle = await send.aenqueue()
        await await_until(entered.is_set)
        assert await (await other.aenqueue()) == "not held up"
        cancel(worker, handle)
        go_on.set()
        with pytest.raises(TaskCancelled):
            await handle
    assert "function" not in LOG
    assert LOG[-4:-1] == ["left", LOG[-3], "generator left"]
    assert isinstance(LOG[-3], asyncio.CancelledError)


async def test_plain_factories_of_a_coroutine_share_a_context(queue: TaskQueue) -> None:
    tenant: ContextVar[str] = ContextVar("tenant")

    def acting() -> Iterator[None]:
        token = tenant.set("ada")
        yield
        tenant.reset(token)

    def whose(acts: None = Depends(acting)) -> str:
        return f"{tenant.get()} in {current_task().name}"

    @queue.task(name="send")
    async def send(who: str = Depends(whose)) -> str:
        return who

    async with queue.worker():
        assert await (await send.aenqueue()) == "ada in send"


# Scope "worker"


async def test_tasks_that_need_it_at_once_make_a_dependency_of_the_worker_once(queue: TaskQueue) -> None:
    made: list[str] = []
    go_on = threading.Event()

    def client(state: State = WorkerState()) -> Iterator[str]:
        made.append("client")
        go_on.wait(60)
        yield f"client of {state['pool']}"
        LOG.append("client left")

    async def session(below: str = Depends(client, scope="worker")) -> AsyncIterator[str]:
        made.append("session")
        async with asyncio.timeout(3600):  # left by the task that entered it
            yield f"session of {below}"
        LOG.append("session left")

    @queue.task
    def on_thread(one: str = Depends(client, scope="worker")) -> str:
        LOG.append("thread")
        return one

    @queue.task
    async def on_loop(one: str = Depends(session, scope="worker")) -> str:
        LOG.append("loop")
        return one

    async with queue.worker() as worker:
        calls = [on_thread.call(), on_loop.call(), on_thread.call(), on_loop.call()]
        handles: Any = await queue.aenqueue_many(calls)
        await await_until(lambda: [one.started_at > 0 for one in worker.completer.attempts] == [True] * 4)
        go_on.set()
        results = [await handle for handle in handles]
    assert results == ["client of pool", "session of client of pool"] * 2
    assert made == ["client", "session"]
    assert LOG[-3:] == ["session left", "client left", "closed"]
    assert sorted(LOG[1:-3]) == ["loop", "loop", "thread", "thread"]


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_dependency_of_the_worker_that_could_not_be_made_is_tried_again(
    queue: TaskQueue, is_async: bool
) -> None:
    def client() -> str:
        LOG.append("made")
        if LOG.count("made") == 1:
            raise ConnectionError
        return "client"

    def send(one: str = Depends(client, scope="worker")) -> str:
        return one

    async def asend(one: str = Depends(client, scope="worker")) -> str:
        return one

    task: Any = queue.task(asend if is_async else send)
    async with queue.worker():
        with pytest.raises(TaskFailed, match="ConnectionError"):
            await (await task.aenqueue())
        assert await (await task.aenqueue()) == "client"
        assert await (await task.aenqueue()) == "client"
    assert LOG.count("made") == 2


async def test_a_task_that_is_cancelled_takes_a_dependency_of_the_worker_from_no_other(queue: TaskQueue) -> None:
    go_on = asyncio.Event()

    async def client() -> str:
        LOG.append("made")
        await go_on.wait()
        return "client"

    @queue.task
    async def send(one: str = Depends(client, scope="worker")) -> str:
        return one

    async with queue.worker() as worker:
        first = await send.aenqueue()
        await await_until(lambda: "made" in LOG)
        second = await send.aenqueue()
        cancel(worker, first)
        with pytest.raises(TaskCancelled):
            await first
        go_on.set()
        assert await second == "client"
    assert LOG.count("made") == 1


# What is refused


@pytest.mark.parametrize("is_async", [True, False])
def test_an_injected_argument_cannot_be_given_to_a_task(queue: TaskQueue, is_async: bool) -> None:
    def send(user: int, db: str = Depends(plain), width: int = 3) -> None: ...
    async def asend(user: int, db: str = Depends(plain), width: int = 3) -> None: ...

    task: Any = queue.task(name="send")(asend if is_async else send)
    refused: list[Callable[[], object]] = [
        lambda: task.enqueue(7, "connection"),
        lambda: task.enqueue(7, db="connection"),
        lambda: task.call(7, db="connection"),
        lambda: task.using(priority=3).enqueue(7, "connection", 3),
        lambda: queue.enqueue(task, 7, "connection"),
    ]
    for call in refused:
        with pytest.raises(
            TypeError, match=r"send\(user: .*int.*, width: .*\) -> .*: 'db' is injected where the task runs"
        ):
            call()
    with pytest.raises(TypeError, match=r"missing a required argument: 'user'"):
        task.enqueue()


async def test_a_call_here_and_now_is_given_everything_by_hand(queue: TaskQueue) -> None:
    @queue.task(name="send")
    def send(user: int, db: str = Depends(plain), state: Any = WorkerState()) -> str:
        return f"{user} {db}"

    @queue.task(name="asend")
    async def asend(user: int, db: str = Depends(plain)) -> str:
        return f"{user} {db}"

    assert send(7, "by hand", state=None) == "7 by hand"
    assert await asend(7, db="by hand") == "7 by hand"
    with pytest.raises(TypeError, match=r"^send: only a worker that runs the task injects 'state'; .* give state=…$"):
        send(7, "by hand")
    with pytest.raises(TypeError, match=r"^asend: only a worker .* injects 'db'"):
        asend(7).close()


def test_a_plain_function_cannot_depend_on_what_needs_an_event_loop(queue: TaskQueue) -> None:
    def over(below: str = Depends(coroutine)) -> str:
        return below

    for factory in (coroutine, async_generator, over):

        def send(db: Any = Depends(factory)) -> None: ...

        with pytest.raises(TypeError, match=r"send is a plain function.*cannot depend on (async_gen|corout)"):
            queue.task(send)


def test_a_dependency_of_the_worker_cannot_depend_on_one_of_a_task(queue: TaskQueue) -> None:
    def send(db: str = Depends(generator, scope="worker")) -> None: ...

    with pytest.raises(TypeError, match="generator has the scope 'worker', and would outlive plain"):
        queue.task(send)


def test_a_factory_whose_parameters_nobody_gives_is_refused_where_the_task_is_declared(queue: TaskQueue) -> None:
    def connection(host: str) -> str:
        return host

    def send(db: str = Depends(connection)) -> None: ...

    def positional(db: str = Depends(plain), /) -> None: ...

    with pytest.raises(TypeError, match="connection cannot make a dependency: nothing gives it 'host'"):
        queue.task(send)
    with pytest.raises(TypeError, match="'db' is injected, and so cannot be positional only"):
        queue.task(positional)
    with pytest.raises(TypeError, match="takes a function that makes the dependency, not 'connection'"):
        Depends("connection")  # type: ignore[call-overload]  # the mistake
    with pytest.raises(ValueError, match="must be 'task' or 'worker', not 'app'"):
        Depends(plain, scope="app")  # type: ignore[call-overload]  # the mistake


def test_a_state_that_no_lifespan_yields_is_missed_with_a_hint() -> None:
    queue = TaskQueue("memory://", max_retries=0)

    @queue.task
    def send(state: Any = WorkerState()) -> None: ...

    @queue.task
    def look() -> bool:
        return current_task().state is None

    with trial(queue) as tried:
        handle, looked = send.enqueue(), look.enqueue()
        tried.drain()
        error = handle.task().error
        assert looked.result() is True
    assert error is not None
    assert "give the queue a lifespan=…" in error.message


def test_a_function_that_travels_in_the_payload_is_given_nothing() -> None:
    queue = TaskQueue("memory://", serializer="cloudpickle")

    def send(db: str = Depends(plain)) -> None: ...

    with pytest.raises(TypeError, match="has injected parameters, and only a registered function is given any"):
        queue.enqueue(send)


def test_arguments_in_the_store_that_name_what_is_injected_now_make_nothing(make_queue: MakeQueue) -> None:
    def send(user: int, db: dict[str, str]) -> None: ...

    before = make_queue()
    handle = before.task(name="send")(send).enqueue(7, db={"host": "hostile"})
    after = make_queue(lifespan=resources)

    def injected(user: int, db: Address = Depends(generator)) -> None:
        LOG.append("function")

    after.task(name="send")(injected)

    async def run() -> None:
        async with after.worker():
            await await_until(lambda: _was_put_back(after, handle.id))

    asyncio.run(run())
    assert LOG == ["open", "closed"]


async def _was_put_back(queue: TaskQueue, task_id: str) -> bool:
    task = await queue.aget(task_id)
    return task is not None and task.error is not None and "'db' is injected" in task.error.message


# In the place of dependencies


def test_a_test_puts_others_in_the_place_of_dependencies(queue: TaskQueue) -> None:
    def fake_plain(state: State = WorkerState()) -> str:
        return f"fake of {state['pool']}"

    @queue.task
    async def send(db: str = Depends(async_generator), state: State = WorkerState()) -> str:
        return db

    def sent() -> Any:
        handle = send.enqueue()
        tried.drain()
        return handle.result()

    with trial(queue) as tried:
        with queue.override({plain: fake_plain}):
            assert sent() == "async over generator over fake of pool"
            with queue.override({generator: "a value"}):
                assert sent() == "async over a value"
            assert sent() == "async over generator over fake of pool"
        assert sent() == "async over generator over plain of pool"


async def test_overrides_hold_in_workers_of_this_process(queue: TaskQueue) -> None:
    @queue.task
    def send(db: str = Depends(plain), other: str = Depends(plain, scope="worker")) -> list[str]:
        return [db, other]

    async with queue.worker():
        assert await (await send.aenqueue()) == ["plain of pool"] * 2
        with queue.override({plain: lambda: "fake"}):
            assert await (await send.aenqueue()) == ["fake"] * 2
        assert await (await send.aenqueue()) == ["plain of pool"] * 2


def test_an_override_that_cannot_take_the_place_is_refused_before_anything_runs(queue: TaskQueue) -> None:
    @queue.task
    def send(db: str = Depends(plain)) -> None: ...

    def over_itself(db: str = Depends(plain)) -> str:
        return db

    with pytest.raises(TypeError, match="cannot depend on coroutine"), queue.override({plain: coroutine}):
        raise AssertionError("not reached")
    with pytest.raises(TypeError, match="over_itself depends on itself"), queue.override({plain: over_itself}):
        raise AssertionError("not reached")
    assert queue.overrides == {}
