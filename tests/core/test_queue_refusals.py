"""What cannot be handed over, decoded or recorded, and where that is said."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from omniq import (
    PayloadTooLarge,
    SerializationError,
    TaskFailed,
    TaskQueue,
    hookimpl,
)
from omniq.plugins import Plugins
from omniq.serialization import ArgumentTypes, Serializer
from tests.core.running import MakeQueue, working


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
        assert length.enqueue("x" * 900).result(30) == 900


def test_a_result_over_the_limit_fails_the_task_and_says_why(make_queue: MakeQueue) -> None:
    queue = make_queue(max_payload=1000)

    @queue.task
    def long(n: int) -> str:
        return "x" * n

    with working(queue):
        assert len(long.enqueue(900).result(30)) == 900
        handle = long.enqueue(1000)
        with pytest.raises(TaskFailed, match=r"PayloadTooLarge: the result take.* limit is 1,000"):
            handle.result(30)
    # Doing it again would end the same way.
    assert handle.task().attempt == 1


def test_a_result_that_cannot_be_encoded_fails_the_task_and_names_the_place(queue: TaskQueue) -> None:
    @queue.task
    def make() -> object:
        return [1, object()]

    handle = make.enqueue()
    with working(queue), pytest.raises(TaskFailed, match=r"SerializationError: result\[1\]"):
        handle.result(30)
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
        handle.result(30)

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
        assert handle.result(30) == "Trap"
    assert handle.task().serializer == "pickle"
