"""What is too large is refused before work is put into it."""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq import PayloadTooLarge, TaskFailed, TaskQueue, current_task
from omniq._worker.attempt import LONGEST_MESSAGE, LONGEST_TRACEBACK, describe_error
from omniq.serialization.json import exceeds, serializer
from tests.core.running import working

LIMIT = 1_000_000
MEGABYTE = "x" * 1_000_000


@attrs.frozen
class Report:
    title: str
    text: str


@dataclasses.dataclass
class Page:
    report: Report


class Pair(NamedTuple):
    first: object
    second: object


# Made by the tests that need them: collecting the tests needs none.
TOO_LARGE: list[Callable[[], Any]] = [
    lambda: MEGABYTE + "x",
    lambda: bytes(1_000_001),
    lambda: bytearray(1_000_001),
    lambda: [None] * 600_000,
    lambda: (0,) * 600_000,
    lambda: [MEGABYTE] * 1000,
    lambda: [[MEGABYTE], 1, [MEGABYTE]],
    lambda: ["x", 1, *["x" * 20_000] * 100],
    lambda: {"a": {"b": [1, {"c": MEGABYTE}, MEGABYTE]}},
    lambda: dict.fromkeys(range(300_000)),
    lambda: OrderedDict(a=MEGABYTE, b="x"),
    lambda: set(range(600_000)),
    lambda: deque([MEGABYTE, MEGABYTE]),
    lambda: Page(Report(title="x", text=MEGABYTE)),
    lambda: [Report(title="x", text="x" * 1_000)] * 1_000,
    lambda: Pair(MEGABYTE, MEGABYTE),
]


@pytest.mark.parametrize("make", TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_what_is_too_large_is_seen_before_it_is_encoded(make: Callable[[], Any]) -> None:
    assert exceeds((1, "x", make()), LIMIT)


def test_what_holds_itself_is_looked_at_no_longer_than_the_limit() -> None:
    value: list[Any] = [1]
    value.append(value)
    assert exceeds((value,), 10_000)


def values() -> st.SearchStrategy[Any]:
    flat = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    return st.recursive(
        flat,
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.text() | st.integers(), inner)
            | st.tuples(inner, inner)
            | st.frozensets(st.integers())
            | st.builds(deque, st.lists(inner))
        ),
    )


@given(values())
def test_nothing_is_refused_whose_encoded_form_fits(value: Any) -> None:
    assert not exceeds((value,), len(serializer.dump_result(value, Any)))


@pytest.mark.parametrize("value", [Report(title="", text=""), Page(Report(title="ä", text="b")), Pair(1, "x"), [], {}])
def test_nothing_is_refused_whose_encoded_form_just_fits(value: Any) -> None:
    assert not exceeds((value,), len(serializer.dump_result(value, type(value))))


@pytest.fixture
def queue() -> Iterator[TaskQueue]:
    queue = TaskQueue("memory://", max_retries=0)
    yield queue
    queue.close()


@pytest.mark.parametrize("name", ["json", "cloudpickle"])
def test_arguments_of_gigabytes_are_refused_at_once(name: str) -> None:
    queue = TaskQueue("memory://", serializer=name, max_payload=100_000)

    @queue.task
    def take(*texts: Any, **more: Any) -> None: ...

    # Encoded they would take 100 GB, which no machine of ours has.
    for args, kwargs in ((([MEGABYTE] * 100_000,), {}), ((), {"texts": {"a": [MEGABYTE] * 100_000}})):
        if name == "json":
            with pytest.raises(PayloadTooLarge, match="the arguments take more than 100,000 bytes, and the limit is"):
                take.enqueue(*args, **kwargs)
    with pytest.raises(PayloadTooLarge, match="the arguments take more than 100,000 bytes"):
        take.enqueue(MEGABYTE)
    # What is pickled once, however often it is there, fits.
    queue.close()


def test_what_a_pickle_holds_once_is_not_counted_twice() -> None:
    queue = TaskQueue("memory://", serializer="cloudpickle", max_payload=1_100_000)

    @queue.task
    def take(texts: Any, again: Any) -> None: ...

    take.enqueue([MEGABYTE] * 100, MEGABYTE)
    queue.close()


def test_a_result_of_gigabytes_fails_its_task_at_once(queue: TaskQueue) -> None:
    @queue.task
    def make() -> list[str]:
        return [MEGABYTE] * 100_000

    with (
        working(queue),
        pytest.raises(TaskFailed, match="PayloadTooLarge: the result takes more than 1,048,576 bytes"),
    ):
        make.enqueue().result(timeout=30)


# Errors


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_of_a_huge_error_text_a_part_is_kept_with_the_place_where_it_was_raised() -> None:
    # A traceback of Python's own would hold the text several times, and a line for each of its lines.
    error = describe_error(raised(ValueError("\n" * 20_000_000 + "the end")))
    assert len(error.message) < LONGEST_MESSAGE + 100
    assert error.message.endswith("the end")
    assert len(error.traceback) < LONGEST_TRACEBACK + 100
    assert "in raised" in error.traceback
    assert error.traceback.rstrip().endswith("the end")


def test_so_it_is_with_one_that_led_to_another_and_with_notes_and_groups() -> None:
    for error in (KeyError("x"), ExceptionGroup("several", [ValueError("\n" * 20_000_000)])):
        if isinstance(error, KeyError):
            error.__cause__ = ValueError("\n" * 20_000_000)
        described = describe_error(raised(error))
        assert len(described.traceback) < LONGEST_TRACEBACK + 100
        assert described.message in described.traceback
    noted = ValueError("short")
    noted.add_note("\n" * 20_000_000)
    assert describe_error(raised(noted)).traceback.endswith("ValueError: short\n")


def test_an_error_of_usual_size_keeps_what_led_to_it() -> None:
    error = KeyError("x")
    error.__cause__ = ValueError("the reason")
    assert "ValueError: the reason" in describe_error(raised(error)).traceback


# Progress


def test_a_note_of_progress_has_a_bound(queue: TaskQueue) -> None:
    @queue.task
    def work(size: int) -> None:
        current_task().progress(1, note="x" * size)

    with working(queue):
        work.enqueue(10_000).result(timeout=30)
        handle = work.enqueue(10_001)
        with pytest.raises(TaskFailed, match="progress: note has 10,001 characters, and the limit is 10,000"):
            handle.result(timeout=30)
    assert handle.task().progress is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 and later: the worker has threads
def test_progress_in_a_process_that_the_task_forked_is_an_error_that_says_what_to_do(queue: TaskQueue) -> None:
    @queue.task
    def work() -> str:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            said = "nothing"
            try:
                current_task().progress(1)
            except RuntimeError as error:
                said = str(error)
            finally:
                os.write(writing, said.encode())
                os._exit(0)
        os.waitpid(child, 0)
        current_task().progress(1)
        return os.read(reading, 1000).decode()

    with working(queue):
        assert "in a process that the task has forked" in work.enqueue().result(timeout=30)
