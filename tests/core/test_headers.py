"""Headers: short texts that travel beside a task's arguments, the same over all of its attempts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from omniq import Every, Fixed, TaskQueue, current_task
from omniq.storage.ids import new_id
from omniq.testing import trial
from tests.core import cpu_tasks
from tests.core.running import MakeQueue, working


@pytest.fixture
def url() -> str:
    """Return the URL of one store: the kit holds that each keeps what was enqueued."""
    return f"memory://{new_id()}"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"a": ""},
        {"0": "x"},
        {"a" * 64: "x"},
        {"a.b_c-9": "größe ☂\n\x00"},
        {f"h{number}": "x" for number in range(32)},
        {"abcd": "x" * 8188},
        {"abc": "ß" * 4094 + "x"},
    ],
)
def test_headers_within_the_limits_come_back_as_they_were_given(
    make_queue: MakeQueue, headers: Mapping[str, str]
) -> None:
    queue = make_queue(signing_key="0123456789abcdef")

    @queue.task
    def read() -> dict[str, str]:
        return dict(current_task().headers)

    handle = read.using(headers=headers).enqueue()
    assert handle.task().headers == headers
    with working(queue):
        assert handle.result(30) == headers


@pytest.mark.parametrize(
    ("headers", "error", "message"),
    [
        ({"": "x"}, ValueError, "header '' cannot be used: take 1 to 64 lower-case letters"),
        ({"a" * 65: "x"}, ValueError, "cannot be used"),
        ({"A": "x"}, ValueError, "header 'A' cannot be used"),
        ({"-a": "x"}, ValueError, "the first a letter or digit"),
        ({"a b": "x"}, ValueError, "cannot be used"),
        ({"a\n": "x"}, ValueError, "cannot be used"),
        ({"ä": "x"}, ValueError, "cannot be used"),
        ({f"h{number}": "x" for number in range(33)}, ValueError, "at most 32 headers, not 33"),
        ({"abcd": "x" * 8189}, ValueError, "at most 8,192 bytes in all, not 8,193"),
        ({"abcd": "ß" * 4095}, ValueError, "not 8,194"),
        ({"a": 1}, TypeError, "headers must be texts, not 'a': 1"),
        ({1: "a"}, TypeError, "headers must be texts, not 1: 'a'"),
        ([("a", "b")], TypeError, "headers must be a mapping of names to texts"),
    ],
)
def test_what_can_be_no_header_is_refused_where_it_is_written(
    make_queue: MakeQueue, headers: Any, error: type[Exception], message: str
) -> None:
    @make_queue().task
    def note() -> None: ...

    with pytest.raises(error, match=message):
        note.using(headers=headers)


def test_they_are_the_same_in_every_attempt_and_in_every_run_of_a_schedule(make_queue: MakeQueue) -> None:
    queue = make_queue()
    seen: list[tuple[int, Mapping[str, str]]] = []

    @queue.task(max_retries=2, retry=Fixed(1))
    async def note() -> None:
        seen.append((current_task().attempt, current_task().headers))
        if current_task().attempt < 3:
            raise ValueError

    headers = {"request-id": "r1"}
    with trial(queue) as running:
        note.using(headers=headers).enqueue()
        running.run_for(timedelta(seconds=5))
        assert seen == [(1, headers), (2, headers), (3, headers)]

        queue.schedule(note.using(headers=headers, max_retries=0).call(), Every(60), id="minutely")
        running.run_for(timedelta(seconds=121))
        assert seen[3:] == [(1, headers), (1, headers)]


def test_a_copy_with_other_headers_has_those_alone(make_queue: MakeQueue) -> None:
    @make_queue().task
    def note() -> None: ...

    first = note.using(headers={"a": "1"})

    assert first.using(queue="slow").options.headers == {"a": "1"}
    assert first.using(headers={"b": "2"}).options.headers == {"b": "2"}
    with pytest.raises(TypeError):
        first.options.headers["c"] = "3"  # type: ignore[index]  # that it cannot be changed is the point


def test_a_task_in_a_process_of_its_own_reads_them() -> None:
    queue: TaskQueue = cpu_tasks.queue
    with queue, working(queue, processes=1):
        handle = cpu_tasks.headers_here.using(headers={"request-id": "r1"}).enqueue()
        assert handle.result(60) == {"request-id": "r1"}
