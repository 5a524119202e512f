"""What a producer sees, on every store: handing over, results, and how tasks end."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from omniq import (
    Fixed,
    PayloadTooLarge,
    ResultTimeout,
    SerializationError,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    TaskQueue,
    TaskState,
    UnknownPlugin,
    UnknownScheme,
    current_task,
    hookimpl,
)
from omniq.ids import new_id
from omniq.plugins import Plugins
from omniq.serialization import ArgumentTypes, Serializer
from omniq.testing import wait_until
from tests.core.running import Gate, MakeQueue, working


class Broken(Exception):
    pass


def declare(queue: TaskQueue) -> None:
    """Declare what two queues on one store have in common, as two processes that import one module do."""

    @queue.task(name="add")
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @queue.task(name="join")
    def join(parts: list[str], separator: str = "") -> str:
        return separator.join(parts)


# Results


def test_a_call_of_either_kind_of_function_gives_what_the_function_returned(queue: TaskQueue) -> None:
    @queue.task
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @queue.task
    def pair(a: int, /, *rest: str, flag: bool = False, **named: float) -> tuple[int, int, bool, dict[str, float]]:
        return a, len(rest), flag, named

    with working(queue):
        assert add.enqueue(2).result(10) == 3
        assert add.enqueue(2, b=5).result(10) == 7
        assert pair.enqueue(1, "x", "y", flag=True, z=0.5).result(10) == (1, 2, True, {"z": 0.5})


async def test_a_coroutine_can_enqueue_and_await_the_result(queue: TaskQueue) -> None:
    @queue.task
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @queue.task
    def twice(a: int) -> int:
        return 2 * a

    async with queue.worker():
        assert await (await add.aenqueue(2)) == 3
        assert await (await queue.aenqueue(twice, 4)).aresult(10) == 8


def test_a_function_can_be_enqueued_through_the_queue(queue: TaskQueue) -> None:
    @queue.task
    def twice(a: int) -> int:
        return 2 * a

    handle = queue.enqueue(twice, a=4)
    with working(queue):
        assert handle.result(10) == 8


def test_a_thousand_and_more_calls_of_several_functions_give_their_handles_in_order(queue: TaskQueue) -> None:
    @queue.task
    async def same(n: int) -> int:
        return n

    @queue.task
    def negative(n: int) -> int:
        return -n

    handles = queue.enqueue_many((same if n % 2 else negative).call(n) for n in range(2500))

    assert len({handle.id for handle in handles}) == 2500
    with working(queue):
        assert [handle.result(30) for handle in handles[-7:]] == [2493, -2494, 2495, -2496, 2497, -2498, 2499]
        assert handles[0].result(30) == 0
        assert handles[1201].result(30) == 1201


def test_calls_can_come_from_a_generator_that_uses_the_queue(queue: TaskQueue) -> None:
    @queue.task
    def same(n: int) -> int:
        return n

    first = queue.enqueue_many(same.using(tags=[queue.enqueue(same, n).id]).call(n) for n in range(3))

    assert [handle.task().args for handle in first] == [(0,), (1,), (2,)]


async def test_no_calls_give_no_handles(queue: TaskQueue) -> None:
    assert await queue.aenqueue_many([]) == []


def test_one_call_that_cannot_be_encoded_keeps_all_from_being_stored(queue: TaskQueue) -> None:
    @queue.task
    def take(value: object) -> None: ...

    with pytest.raises(SerializationError, match=r"args\[0\]"):
        queue.enqueue_many([take.call(1), take.call(object())])

    assert list(queue.tasks()) == []


def test_a_result_can_be_read_many_times_and_by_whoever_knows_the_id(make_queue: MakeQueue) -> None:
    producer, elsewhere = make_queue(), make_queue()
    declare(producer)
    declare(elsewhere)
    handle = producer.functions["join"].enqueue(["a", "b"], separator="-")

    with working(elsewhere):
        assert handle.result(10) == "a-b"
        assert handle.result(10) == "a-b"

    assert elsewhere.handle(handle.id).result(0) == "a-b"
    assert make_queue().handle(handle.id).result(0) == "a-b"
    assert elsewhere.handle(handle.id) == handle
    assert len({elsewhere.handle(handle.id), handle}) == 1


async def test_several_can_wait_for_one_result(queue: TaskQueue) -> None:
    @queue.task
    async def answer() -> int:
        return 42

    handle = await answer.aenqueue()
    waiting = [asyncio.create_task(handle.aresult(10)) for _ in range(5)]
    async with queue.worker():
        assert await asyncio.gather(*waiting) == [42] * 5


def test_a_result_comes_back_as_the_type_that_the_function_names(queue: TaskQueue) -> None:
    @queue.task
    def parent(path: Path, at: datetime) -> tuple[Path, datetime]:
        return path.parent, at + timedelta(days=1)

    at = datetime(2030, 1, 1, tzinfo=UTC)
    handle = parent.enqueue(Path("/srv/a.png"), at)
    with working(queue):
        assert handle.result(10) == (Path("/srv"), at + timedelta(days=1))
    assert handle.task().args == (Path("/srv/a.png"), at)
    assert handle.task().result == (Path("/srv"), at + timedelta(days=1))


def test_a_function_that_returns_nothing_gives_none(queue: TaskQueue) -> None:
    @queue.task
    def nothing() -> None: ...

    handle = nothing.enqueue()
    with working(queue):
        handle.result(10)
    assert handle.task().state == "succeeded"


@pytest.mark.parametrize("timeout", [0, 0.05, timedelta(milliseconds=50)])
def test_a_task_that_has_not_ended_in_time_goes_on(queue: TaskQueue, timeout: float | timedelta) -> None:
    @queue.task
    def answer() -> int:
        return 42

    handle = answer.enqueue()

    with pytest.raises(ResultTimeout, match=handle.id) as caught:
        handle.result(timeout)

    assert isinstance(caught.value, TimeoutError)
    with working(queue):
        assert handle.result(10) == 42


async def test_a_coroutine_that_waits_for_a_result_can_be_cancelled(queue: TaskQueue) -> None:
    @queue.task
    async def answer() -> int:
        return 42

    handle = await answer.aenqueue()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await handle

    async with queue.worker():
        assert await handle.aresult(10) == 42


def test_an_id_that_is_not_in_the_store_is_a_lookup_error(queue: TaskQueue) -> None:
    handle = queue.handle(new_id())

    with pytest.raises(TaskNotFound, match=handle.id) as caught:
        handle.result(5)
    assert isinstance(caught.value, LookupError)
    with pytest.raises(TaskNotFound):
        handle.task()
    assert queue.get(handle.id) is None
    assert handle.cancel() is False


# Failures


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_a_failed_task_gives_the_error_with_the_workers_traceback(queue: TaskQueue, kind: str) -> None:
    async def raise_in_coroutine() -> None:
        raise Broken("no such shop")

    def raise_in_thread() -> None:
        raise Broken("no such shop")

    function = raise_in_coroutine if kind == "coroutine" else raise_in_thread
    task = queue.task(max_retries=0)(function)
    handle = task.enqueue()

    with working(queue), pytest.raises(TaskFailed) as caught:
        handle.result(10)

    text = str(caught.value)
    assert "test_queue.Broken: no such shop" in text
    assert f"in {function.__name__}" in text
    assert 'raise Broken("no such shop")' in text
    # From the task's own code on: what is ours above it says nothing to whoever wrote it.
    assert "omniq-core" not in text
    assert "asyncio" not in text
    assert caught.value.task_id == handle.id
    assert caught.value.error.message == "no such shop"
    record = handle.task()
    assert record.state is TaskState.FAILED
    assert record.error == caught.value.error
    assert record.attempt == 1


def test_a_task_runs_again_until_it_succeeds_and_keeps_the_last_error_meanwhile(queue: TaskQueue) -> None:
    @queue.task(max_retries=3, retry=Fixed(0))
    def third_time() -> int:
        if current_task().attempt < 3:
            raise Broken(f"attempt {current_task().attempt}")
        return current_task().attempt

    handle = third_time.enqueue()
    with working(queue):
        assert handle.result(10) == 3
    assert handle.task().attempt == 3


def test_a_task_fails_when_no_retries_are_left(queue: TaskQueue) -> None:
    attempts: list[int] = []

    @queue.task(max_retries=2, retry=Fixed(0))
    async def never() -> None:
        attempts.append(current_task().attempt)
        raise Broken(f"attempt {current_task().attempt}")

    handle = never.enqueue()
    with working(queue), pytest.raises(TaskFailed, match="attempt 3"):
        handle.result(10)
    assert attempts == [1, 2, 3]


def test_a_waiting_retry_is_kept_in_the_store_with_its_error(queue: TaskQueue) -> None:
    @queue.task(max_retries=1, retry=Fixed(3600))
    def fail() -> None:
        raise Broken("down")

    handle = fail.enqueue()
    with working(queue):
        wait_until(lambda: handle.task().state is TaskState.SCHEDULED)

    record = handle.task()
    assert record.error is not None
    assert record.error.message == "down"
    assert 3590 < (record.run_at - datetime.now(UTC)).total_seconds() < 3610
    assert record.attempt == 1


def test_another_queue_goes_on_with_a_retry_by_the_policy_that_travels_with_the_task(make_queue: MakeQueue) -> None:
    policy = Fixed(0)

    def flaky() -> str:
        if current_task().attempt == 1:
            raise Broken
        return "done"

    first, second = make_queue(), make_queue()
    # What the second declares is another policy: that of the task decides.
    task = first.task(name="flaky", retry=policy, max_retries=2)(flaky)
    second.task(name="flaky", retry=Fixed(3600), max_retries=0)(flaky)
    handle = task.enqueue()

    with working(second):
        assert handle.result(10) == "done"


def test_errors_that_are_not_to_be_retried_fail_at_once(queue: TaskQueue) -> None:
    @queue.task(max_retries=5, retry=Fixed(0), retry_on=(LookupError, Broken))
    def fail(how: str) -> None:
        attempt = f"attempt {current_task().attempt}"
        raise {"key": KeyError, "broken": Broken, "value": ValueError}[how](attempt)

    with working(queue):
        for how, last in (("key", 6), ("broken", 6), ("value", 1)):
            with pytest.raises(TaskFailed, match=f"attempt {last}"):
                fail.enqueue(how).result(10)


def test_what_a_function_cannot_take_is_refused_when_it_is_enqueued(queue: TaskQueue) -> None:
    @queue.task(name="shop.pay")
    def pay(amount: int, /, *, to: str) -> None: ...

    for args, kwargs in (
        ((), {}),
        ((1,), {}),
        ((1, 2), {"to": "x"}),
        ((), {"amount": 1, "to": "x"}),
        ((1,), {"at": 1}),
    ):
        with pytest.raises(TypeError, match=r"shop\.pay\("):
            pay.enqueue(*args, **kwargs)
        with pytest.raises(TypeError, match=r"shop\.pay\("):
            queue.enqueue(pay, *args, **kwargs)

    assert list(queue.tasks()) == []


def test_an_argument_that_cannot_be_encoded_is_named_by_its_place(queue: TaskQueue) -> None:
    @queue.task
    def take(value: object, *, other: object = None) -> None: ...

    with pytest.raises(SerializationError, match=r"args\[0\]\['a'\]\[1\]"):
        take.enqueue({"a": [1, object()]})
    with pytest.raises(SerializationError, match=r"kwargs\['other'\]"):
        take.enqueue(1, other=threading.Lock())
    assert list(queue.tasks()) == []


def test_arguments_over_the_limit_are_refused_when_enqueued(make_queue: MakeQueue) -> None:
    queue = make_queue(max_payload=1000)

    @queue.task
    def length(text: str) -> int:
        return len(text)

    with pytest.raises(PayloadTooLarge, match=r"1,0\d\d bytes.*limit is 1,000"):
        length.enqueue("x" * 1000)
    assert list(queue.tasks()) == []
    with working(queue):
        assert length.enqueue("x" * 900).result(10) == 900


def test_a_result_over_the_limit_fails_the_task_and_says_why(make_queue: MakeQueue) -> None:
    queue = make_queue(max_payload=1000)

    @queue.task
    def long(n: int) -> str:
        return "x" * n

    with working(queue):
        assert len(long.enqueue(900).result(10)) == 900
        handle = long.enqueue(1000)
        with pytest.raises(TaskFailed, match=r"PayloadTooLarge: the result take.* limit is 1,000"):
            handle.result(10)
    # Doing it again would end the same way.
    assert handle.task().attempt == 1


def test_a_result_that_cannot_be_encoded_fails_the_task_and_names_the_place(queue: TaskQueue) -> None:
    @queue.task
    def make() -> object:
        return [1, object()]

    handle = make.enqueue()
    with working(queue), pytest.raises(TaskFailed, match=r"SerializationError: result\[1\]"):
        handle.result(10)
    assert handle.task().attempt == 1


def test_arguments_that_do_not_fit_the_workers_function_fail_the_task_at_once(make_queue: MakeQueue) -> None:
    producer, consumer = make_queue(), make_queue()

    def of_old(n: str) -> None: ...

    def of_today(n: int) -> int:
        return n

    task = producer.task(name="count")(of_old)
    consumer.task(name="count")(of_today)
    handle = task.enqueue("many")

    with working(consumer), pytest.raises(TaskFailed, match="SerializationError"):
        handle.result(10)
    assert handle.task().attempt == 1


class Pickle:
    """A serializer of a plugin, and the reason why a worker does not decode whatever a store holds."""

    name = "pickle"

    def dump_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], types: ArgumentTypes) -> bytes:
        return pickle.dumps((args, dict(kwargs)))

    def load_arguments(self, data: bytes, types: ArgumentTypes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = pickle.loads(data)
        return args, kwargs

    def dump_result(self, value: Any, hint: Any) -> bytes:
        return pickle.dumps(value)

    def load_result(self, data: bytes, hint: Any) -> Any:
        return pickle.loads(data)


class PicklePlugin:
    @hookimpl
    def omniq_serializers(self) -> Mapping[str, Serializer | str]:
        return {"pickle": Pickle()}


@pytest.fixture
def with_pickle() -> Plugins:
    plugins = Plugins()
    plugins.register(PicklePlugin(), name="pickle")
    return plugins


class Trap:
    sprung = 0

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return spring, ()


def spring() -> None:
    Trap.sprung += 1


def test_a_serializer_that_is_not_accepted_is_never_read(make_queue: MakeQueue, with_pickle: Plugins) -> None:
    producer, consumer = make_queue(serializer="pickle", plugins=with_pickle), make_queue(plugins=with_pickle)

    def take(value: object) -> None: ...

    task = producer.task(name="take")(take)
    consumer.task(name="take")(take)
    handle = task.enqueue(Trap())
    payload = handle.task().payload

    with working(consumer), pytest.raises(TaskFailed, match=r"PayloadRejected: .*'pickle'.* was not read"):
        handle.result(10)

    assert Trap.sprung == 0
    assert handle.task().attempt == 1
    assert handle.task().payload == payload


def test_a_serializer_that_is_accepted_is_read(make_queue: MakeQueue, with_pickle: Plugins) -> None:
    producer = make_queue(serializer="pickle", plugins=with_pickle)
    consumer = make_queue(accept=["pickle"], plugins=with_pickle)

    def own_name(value: type) -> str:
        return value.__name__

    task = producer.task(name="own_name")(own_name)
    consumer.task(name="own_name")(own_name)
    handle = task.enqueue(Trap)

    with working(consumer):
        assert handle.result(10) == "Trap"
    assert handle.task().serializer == "pickle"


# Options


def test_of_two_ready_tasks_the_larger_priority_comes_first_and_then_the_older(queue: TaskQueue) -> None:
    order: list[str] = []

    @queue.task
    async def note(name: str) -> None:
        order.append(name)

    for name, priority in (("a", -5), ("b", 0), ("c", 10), ("d", 0), ("e", 10)):
        note.using(priority=priority).enqueue(name)
    with working(queue, concurrency=1):
        wait_until(lambda: len(order) == 5)
    assert order == ["c", "e", "b", "d", "a"]


@pytest.mark.parametrize("form", ["delay", "delay as timedelta", "run_at"])
def test_a_delayed_task_waits_as_scheduled_until_its_time(queue: TaskQueue, form: str) -> None:
    @queue.task
    async def answer() -> int:
        return 42

    later = {
        "delay": answer.using(delay=0.3),
        "delay as timedelta": answer.using(delay=timedelta(seconds=0.3)),
        "run_at": answer.using(run_at=datetime.now(UTC) + timedelta(seconds=0.3)),
    }[form]
    handle = later.enqueue()

    assert handle.task().state is TaskState.SCHEDULED
    with working(queue):
        assert handle.result(10) == 42
    record = handle.task()
    assert record.started_at is not None
    assert record.started_at >= record.run_at
    assert record.run_at - record.created_at > timedelta(seconds=0.1)


def test_a_task_that_expired_is_not_started(queue: TaskQueue) -> None:
    @queue.task
    async def note() -> None:
        raise AssertionError("it was started")

    handle = note.using(expires=0.01).enqueue()
    in_time = note.using(expires=datetime.now(UTC) + timedelta(hours=1), delay=3600).enqueue()
    wait_until(lambda: handle.task().expires_at < datetime.now(UTC))  # type: ignore[operator]  # it has one

    with working(queue), pytest.raises(TaskCancelled, match=handle.id):
        handle.result(10)
    assert in_time.task().state is TaskState.SCHEDULED


def test_at_most_one_live_task_has_a_unique_key(queue: TaskQueue) -> None:
    @queue.task
    async def note(n: int) -> int:
        return n

    first = note.using(unique="a").enqueue(1)
    second = note.using(unique="a").enqueue(2)
    other = note.using(unique="b").enqueue(3)

    assert (first.created, second.created, other.created) == (True, False, True)
    assert second.id == first.id
    assert first.task().unique == "a"
    with working(queue):
        assert second.result(10) == 1
        third = note.using(unique="a").enqueue(4)  # the first has ended
        assert third.created
        assert third.result(10) == 4


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_unique_key_is_free_after_any_end(queue: TaskQueue, end: str) -> None:
    @queue.task(max_retries=0, unique="only")
    def fail() -> None:
        raise Broken

    first = fail.enqueue()
    if end == "cancelled":
        first.cancel()
    else:
        with working(queue):
            wait_until(lambda: first.task().state is TaskState.FAILED)

    assert fail.enqueue().created


def test_unique_true_means_one_for_each_function_and_arguments(queue: TaskQueue) -> None:
    @queue.task(unique=True)
    def one(n: int, *, flag: bool = False) -> None: ...

    @queue.task(unique=True)
    def other(n: int) -> None: ...

    calls = [one.call(1), one.call(1), one.call(2), other.call(1), one.call(1, flag=True)]

    assert [handle.created for handle in queue.enqueue_many(calls)] == [True, False, True, True, True]
    assert one.using(unique=False).enqueue(1).created


def test_tags_find_a_task(queue: TaskQueue) -> None:
    @queue.task
    def note() -> None: ...

    tagged = note.using(tags=["red", "käse"]).enqueue()
    note.enqueue()

    assert [task.id for task in queue.tasks(tag="käse")] == [tagged.id]
    assert tagged.task().tags == ("red", "käse")


def test_a_record_and_its_result_are_dropped_after_their_time(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq.upkeep.PRUNE_EVERY", 0.05)

    @queue.task(result_ttl=0.05)
    def short() -> int:
        return 1

    @queue.task
    def long() -> int:
        return 2

    first, second = short.enqueue(), long.enqueue()
    with working(queue, recover_every=0.05):
        wait_until(lambda: queue.get(first.id) is None)
        with pytest.raises(TaskNotFound):
            first.result(10)
        assert second.result(10) == 2


def test_using_gives_a_copy_and_leaves_the_original_as_it_is(queue: TaskQueue) -> None:
    @queue.task(priority=1, max_retries=7, timeout=5, queue="mail")
    def send() -> None: ...

    copy = send.using(queue="slow", priority=9, max_retries=1, timeout=timedelta(minutes=1), tags=["x"]).using(delay=60)
    of_copy, of_original = copy.enqueue().task(), send.enqueue().task()

    assert (of_copy.queue, of_copy.priority, of_copy.max_retries, of_copy.timeout) == ("slow", 9, 1, 60)
    assert (of_copy.tags, of_copy.state) == (("x",), TaskState.SCHEDULED)
    assert (of_original.queue, of_original.priority, of_original.max_retries, of_original.timeout) == ("mail", 1, 7, 5)
    assert (of_original.tags, of_original.state) == ((), TaskState.READY)
    assert of_copy.name == of_original.name


def test_the_queues_own_options_are_the_defaults_of_its_tasks(make_queue: MakeQueue) -> None:
    queue = make_queue(max_retries=9, retry=Fixed(7), timeout=timedelta(minutes=2), result_ttl=60)

    @queue.task
    async def plain() -> None: ...

    @queue.task(max_retries=0, result_ttl=timedelta(hours=1))
    def own() -> None: ...

    record = plain.enqueue().task()
    assert (record.max_retries, record.retry, record.timeout, record.result_ttl) == (9, Fixed(7), 120, 60)
    assert record.is_async
    record = own.enqueue().task()
    assert (record.max_retries, record.retry, record.timeout, record.result_ttl) == (0, Fixed(7), 120, 3600)
    assert not record.is_async


# The queue itself


def test_two_namespaces_of_one_store_know_nothing_of_each_other(make_queue: MakeQueue, url: str) -> None:
    one = make_queue(namespace="one")
    with TaskQueue(f"{url}?namespace=two") as two:

        @one.task(name="note")
        def note() -> None: ...

        handle = note.enqueue()

        assert two.get(handle.id) is None
        assert list(two.tasks()) == []
        assert one.get(handle.id) is not None


def test_without_a_url_the_environment_names_the_store_or_else_a_file_in_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMNIQ_URL", raising=False)
    assert TaskQueue().url == "sqlite:///omniq.db"

    monkeypatch.setenv("OMNIQ_URL", "memory://from-environment")
    assert TaskQueue().url == "memory://from-environment"
    assert TaskQueue("memory://given").url == "memory://given"

    assert list(tmp_path.iterdir()) == [], "constructing a queue does no I/O"


def test_the_default_store_is_used_from_the_folder_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMNIQ_URL", raising=False)
    with TaskQueue() as queue:

        @queue.task
        def note() -> None: ...

        note.enqueue()
    assert (tmp_path / "omniq.db").exists()


def test_a_queue_can_be_used_again_after_it_was_closed(queue: TaskQueue) -> None:
    @queue.task
    async def answer() -> int:
        return 42

    for _ in range(2):
        with queue:
            handle = answer.enqueue()
            with working(queue):
                assert handle.result(10) == 42
            queue.close()
            assert handle.result(10) == 42
    queue.close()


async def test_a_queue_is_an_asynchronous_context_manager(queue: TaskQueue) -> None:
    @queue.task
    async def answer() -> int:
        return 42

    for _ in range(2):
        async with queue, queue.worker():
            assert await (await answer.aenqueue()) == 42


def test_a_queue_shows_its_url_without_the_password() -> None:
    with pytest.raises(UnknownScheme) as caught:
        TaskQueue("nowhere://me:hunter2@host/0")
    assert "hunter2" not in str(caught.value)
    assert repr(TaskQueue("memory://shown")) == "TaskQueue('memory://shown')"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"serializer": "nope"}, UnknownPlugin, "'nope'"),
        ({"accept": ["nope"]}, UnknownPlugin, "'nope'"),
        ({"accept": "json"}, TypeError, r"write \['json'\]"),
        ({"max_payload": 0}, ValueError, "max_payload"),
        ({"max_retries": -1}, ValueError, "max_retries"),
        ({"retry": 5}, TypeError, "retry must be a RetryPolicy"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"result_ttl": -1}, ValueError, "result_ttl"),
        ({"namespace": "a b"}, ValueError, "namespace 'a b'"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_at_once(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TaskQueue("memory://", **options)  # type: ignore[arg-type]  # the mistake that is tested


def run_program(program: str, folder: Path) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_importing_and_making_a_queue_says_nothing_and_starts_nothing(tmp_path: Path) -> None:
    program = """
import threading
import omniq

omniq.TaskQueue("sqlite:///jobs.db")
assert threading.active_count() == 1, threading.enumerate()
"""
    assert run_program(program, tmp_path) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_never_closes_its_queue_ends_in_silence(tmp_path: Path) -> None:
    program = """
from omniq import TaskQueue

queue = TaskQueue("sqlite:///jobs.db")

@queue.task
def note() -> None: ...

note.enqueue()
queue.enqueue_many([note.call()] * 10)
"""
    assert run_program(program, tmp_path) == (0, "", "")


# Tasks that use their own queue


def test_a_task_can_enqueue_and_wait_for_others(queue: TaskQueue) -> None:
    @queue.task
    def leaf(n: int) -> int:
        return n

    @queue.task
    async def branch(n: int) -> int:
        return sum([await handle for handle in await queue.aenqueue_many(leaf.call(i) for i in range(n))])

    @queue.task
    def root() -> int:
        return leaf.enqueue(1).result(10) + branch.enqueue(4).result(10)

    with working(queue):
        assert root.enqueue().result(20) == 7


# What the owner sees and does


def test_tasks_are_listed_newest_first_a_page_at_a_time(queue: TaskQueue) -> None:
    @queue.task(name="note")
    def note() -> None: ...

    ids = [handle.id for handle in queue.enqueue_many([note.call()] * 25)]

    seen: list[str] = []
    cursor = None
    while True:
        page = queue.tasks(limit=10, cursor=cursor)
        assert len(page) <= 10
        seen += [task.id for task in page]
        cursor = page.cursor
        if cursor is None:
            break

    assert seen == ids[::-1]
    assert [task.id for task in queue.tasks(name="note", queue="default", state="ready", limit=1)] == [ids[-1]]
    assert list(queue.tasks(state=TaskState.FAILED)) == []
    assert list(queue.tasks(name="other")) == []


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 1001}, {"state": "lost"}, {"cursor": "no cursor"}])
def test_a_listing_that_cannot_be_given_is_refused(queue: TaskQueue, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}|{next(iter(wrong.values()))}"):
        queue.tasks(**wrong)  # type: ignore[arg-type]  # the mistake that is tested


def test_numbers_say_how_many_tasks_stand_where(queue: TaskQueue) -> None:
    @queue.task
    def note() -> None: ...

    note.enqueue()
    note.using(delay=60).enqueue()
    note.using(queue="mail").enqueue().cancel()
    queue.pause("mail")

    default, mail = queue.stats()
    assert (default.queue, mail.queue) == ("default", "mail")
    assert (default.counts[TaskState.READY], default.counts[TaskState.SCHEDULED]) == (1, 1)
    assert default.counts[TaskState.FAILED] == 0
    assert mail.counts[TaskState.CANCELLED] == 1
    assert (default.paused, mail.paused) == (False, True)
    assert default.oldest_ready is not None
    assert mail.oldest_ready is None


def test_a_failed_task_can_be_made_to_run_again_with_all_its_attempts(queue: TaskQueue) -> None:
    works: list[bool] = []

    @queue.task(max_retries=1, retry=Fixed(0))
    def fail() -> int:
        if not works:
            raise Broken
        return current_task().attempt

    handle = fail.enqueue()
    with working(queue):
        with pytest.raises(TaskFailed):
            handle.result(10)
        works.append(True)
        assert queue.retry(handle.id) is True
        assert handle.result(10) == 1
        assert queue.retry(handle.id) is False


def test_a_waiting_task_can_be_deleted_and_a_running_one_cannot(queue: TaskQueue, gate: Gate) -> None:
    @queue.task
    def hold() -> None:
        gate.wait()

    running = hold.enqueue()
    with working(queue, concurrency=1):
        wait_until(lambda: running.task().state is TaskState.RUNNING)
        waiting = hold.using(delay=60).enqueue()
        assert queue.delete(waiting.id) is True
        assert queue.delete(running.id) is False
        assert queue.delete(new_id()) is False
        with pytest.raises(TaskNotFound):
            waiting.result(10)
        gate.open()


def test_all_tasks_of_a_queue_in_a_state_can_be_removed(queue: TaskQueue) -> None:
    @queue.task
    def note() -> None: ...

    queue.enqueue_many([note.call()] * 3)
    note.using(delay=60).enqueue()
    note.using(queue="mail").enqueue()

    assert queue.purge("default", state="ready") == 3
    assert queue.purge("default") == 1
    assert queue.purge("default") == 0
    assert [task.queue for task in queue.tasks()] == ["mail"]
    with pytest.raises(ValueError, match="lost"):
        queue.purge("default", state="lost")


def test_a_paused_queue_gives_no_tasks_until_it_is_resumed(queue: TaskQueue) -> None:
    @queue.task
    def note(name: str) -> str:
        return name

    assert queue.pause("mail") is True
    assert queue.pause("mail") is False
    held = note.using(queue="mail").enqueue("held")
    with working(queue, queues=["mail", "default"]):
        assert note.enqueue("free").result(10) == "free"
        assert held.task().state is TaskState.READY
        assert queue.resume("mail") is True
        assert queue.resume("mail") is False
        assert held.result(10) == "held"


def test_a_worker_is_seen_with_what_it_runs_until_it_signs_off(queue: TaskQueue, gate: Gate) -> None:
    @queue.task
    def hold() -> None:
        gate.wait()

    handle = hold.enqueue()
    with working(queue) as worker:
        seen = wait_until(lambda: [info for info in queue.workers() if info.running])
        assert [(info.id, info.running) for info in seen] == [(worker.id, (handle.id,))]
        assert handle.task().worker == worker.id
        gate.open()
        handle.result(10)
    assert queue.workers() == []
