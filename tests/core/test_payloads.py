"""Between Python values and what a store holds: limits, serializers that are not accepted, policies as text."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from omniq import (
    Exponential,
    Fixed,
    Linear,
    PayloadRejected,
    PayloadTooLarge,
    RetryPolicy,
    SerializationError,
    TaskQueue,
    UnknownPlugin,
)
from omniq._tasks.payloads import ANY_ARGUMENTS, Codec
from omniq.plugins import default_plugins
from omniq.storage.body import as_task
from omniq.task import StoredTask, Task
from tests.bodies import body_of


def codec(max_payload: int = 1000) -> Codec:
    return Codec(default_plugins(), serializer="json", accept=("json",), max_payload=max_payload)


def record(result_payload: bytes | None = None, **body: Any) -> Task:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    stored = StoredTask(
        id="1",
        queue="default",
        name="note",
        body=body_of(**body),
        created_at=moment,
        run_at=moment,
        result_payload=result_payload,
    )
    return as_task(stored)


def test_arguments_up_to_the_limit_are_encoded_and_one_byte_more_is_not() -> None:
    size = len(codec().dump_arguments(("x" * 100,), {}, ANY_ARGUMENTS))

    assert len(codec(size).dump_arguments(("x" * 100,), {}, ANY_ARGUMENTS)) == size
    with pytest.raises(PayloadTooLarge, match=f"the arguments take {size:,} bytes, and the limit is {size - 1:,}"):
        codec(size - 1).dump_arguments(("x" * 100,), {}, ANY_ARGUMENTS)


def test_a_payload_too_large_is_a_serialization_error() -> None:
    with pytest.raises(SerializationError, match="max_payload"):
        codec(10).dump_result(record(), "x" * 100, Any)


def test_a_task_of_a_foreign_serializer_is_named_with_what_is_accepted() -> None:
    foreign = record(serializer="pickle", payload=b"cos\nsystem\n", result_payload=b"cos\nsystem\n")

    for read in (
        lambda: codec().load_arguments(foreign, ANY_ARGUMENTS),
        lambda: codec().load_result(foreign, Any),
        lambda: codec().dump_result(foreign, 1, Any),
    ):
        with pytest.raises(PayloadRejected, match=r"task 1 is encoded with 'pickle'.*accept=json.*not read"):
            read()


def test_without_a_result_there_is_nothing_to_decode() -> None:
    assert codec().load_result(record(serializer="pickle"), Any) is None


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"\xff\xfe", b"[]", b"[1,2]"], ids=repr)
def test_bytes_that_are_no_arguments_are_a_serialization_error(data: bytes) -> None:
    with pytest.raises(SerializationError):
        codec().load_arguments(record(payload=data), ANY_ARGUMENTS)


@pytest.mark.parametrize("policy", [Fixed(3), Linear(1, step=2), Exponential(delay=5, factor=3, max_delay=None)])
def test_a_policy_comes_back_from_its_text(policy: RetryPolicy) -> None:
    text = codec().dump_policy(policy)

    assert codec().load_policy(text) == policy
    assert codec().load_policy("") is None


def test_a_policy_whose_kind_is_taken_by_another_class_does_not_travel() -> None:
    class Fixed(RetryPolicy):
        kind = "fixed"

        def next_delay(self, attempt: int, error: BaseException) -> float:
            return 0.0

    assert codec().dump_policy(Fixed()) == ""


def test_a_policy_that_is_not_installed_here_is_named() -> None:
    with pytest.raises(UnknownPlugin, match="'of-another-plugin'"):
        codec().load_policy('{"kind": "of-another-plugin"}')


# Records


@pytest.fixture
def private() -> Iterator[TaskQueue]:
    with TaskQueue("memory://") as queue:
        yield queue


def test_a_record_decodes_only_what_is_asked_for(private: TaskQueue) -> None:
    @private.task(name="note")
    def note(n: int) -> None: ...

    @private.task(name="note2", retry=Fixed(2))
    def note2(n: int) -> None: ...

    assert note2.enqueue(3).task().retry == Fixed(2)
    task = note.using(tags=["x"]).enqueue(3).task()
    assert (task.args, dict(task.kwargs), task.result) == ((3,), {}, None)


@pytest.mark.parametrize("name", ["args", "kwargs", "retry", "result"])
def test_a_record_straight_from_a_storage_says_that_it_cannot_decode(name: str) -> None:
    with pytest.raises(RuntimeError, match="no queue that could decode it"):
        getattr(record(), name)
