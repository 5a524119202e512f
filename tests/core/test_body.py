"""The body of a task: what a store keeps unread, and what becomes of one that is damaged."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq import PayloadRejected, TaskQueue, current_task
from omniq.errors import CorruptRecord
from omniq.storage.body import (
    LARGEST_HEADER,
    Header,
    as_task,
    dump_header,
    join_body,
    load_content,
    make_content,
    payload_size,
    split_body,
)
from omniq.task import StoredTask
from tests.bodies import body_of
from tests.core.running import working

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HEADERS = st.builds(
    Header,
    serializer=st.text(),
    retry=st.text(),
    timeout=st.none() | st.floats(min_value=0.001, max_value=1e9),
    is_async=st.booleans(),
    headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4),
    scheduled_for=st.none() | st.datetimes(timezones=st.just(UTC)),
)


def stored(body: bytes) -> StoredTask:
    return StoredTask(id="1", queue="q", name="n", body=body, created_at=NOON, run_at=NOON)


@given(header=HEADERS, payload=st.binary(), signature=st.binary(max_size=255))
def test_a_body_comes_back_as_it_was_made(header: Header, payload: bytes, signature: bytes) -> None:
    content = make_content(dump_header(header), payload)
    body = join_body(content, signature)

    assert split_body(body) == (signature, content)
    assert load_content(content) == (header, payload)
    assert payload_size(content) == len(payload)
    task = as_task(stored(body))
    assert (task.serializer, task.retry_spec, task.payload) == (header.serializer, header.retry, payload)
    assert (task.timeout, task.is_async, task.headers) == (header.timeout, header.is_async, header.headers)


def test_what_has_its_default_takes_no_room() -> None:
    assert dump_header(Header()) == b"{}"


def test_a_field_of_a_newer_version_is_passed_over() -> None:
    content = make_content(b'{"timeout":3,"of a newer version":{"x":1}}', b"arguments")

    assert load_content(content) == (Header(timeout=3), b"arguments")


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda rest: b"1\n" + rest))
def test_bytes_of_any_kind_are_a_task_that_can_be_listed(body: bytes) -> None:
    task = as_task(stored(body))

    assert task.body == body
    assert attrs.asdict(task, recurse=False).keys() == {field.name for field in attrs.fields(type(task))}


@pytest.mark.parametrize(
    "header",
    [
        "{",
        "[]",
        "null",
        '{"serializer": 5}',
        '{"retry": null}',
        '{"timeout": "3"}',
        '{"timeout": 0}',
        '{"timeout": NaN}',
        '{"timeout": 1e999}',
        '{"timeout": true}',
        '{"async": 1}',
        '{"headers": []}',
        '{"headers": {"a": 1}}',
        '{"scheduled_for": 5}',
        '{"scheduled_for": "noon"}',
        '{"scheduled_for": "2030-01-01T00:00:00"}',
        "[" * 60_000,
    ],
    ids=lambda text: text[:30],
)
def test_a_header_that_makes_no_sense_is_a_corrupt_record_and_its_task_is_rejected(header: str) -> None:
    content = make_content(header.encode(), b"[[],{}]")

    with pytest.raises(CorruptRecord):
        load_content(content)
    with TaskQueue("memory://") as queue, pytest.raises(PayloadRejected, match="task 1 cannot be read"):
        queue.codec.admit(stored(join_body(content)))


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 70_000, b"{" + b" " * 70_000 + b"}\n[[],{}]"])
def test_a_body_that_is_cut_short_is_rejected(content: bytes) -> None:
    with TaskQueue("memory://") as queue, pytest.raises(PayloadRejected, match="task 1 cannot be read"):
        queue.codec.admit(stored(join_body(content)))


@pytest.mark.parametrize("first", [b"", b"2", b"1 no hexadecimal", b"1 abc", b"\xff"], ids=repr)
def test_a_first_line_that_makes_no_sense_is_rejected(first: bytes) -> None:
    with TaskQueue("memory://") as queue, pytest.raises(PayloadRejected, match="task 1 cannot be read"):
        queue.codec.admit(stored(first + b"\n{}\n[[],{}]"))


def test_a_header_has_a_limit() -> None:
    with pytest.raises(ValueError, match=f"the limit is {LARGEST_HEADER:,}"):
        dump_header(Header(retry="x" * LARGEST_HEADER))


def test_the_task_of_a_record_is_like_one_that_its_class_makes() -> None:
    task = as_task(stored(body_of(b"[[1],{}]", timeout=2.0)))
    fields: dict[str, Any] = {one.alias: getattr(task, one.name) for one in attrs.fields(type(task))}

    assert type(task)(**fields) == task
    assert attrs.evolve(task, attempt=3).attempt == 3
    assert repr(task) == repr(type(task)(**fields))


def test_to_read_a_part_of_a_task_leaves_the_task_and_its_record_as_they_were() -> None:
    with TaskQueue("memory://") as queue:
        record = stored(body_of(b"[[1],{}]"))
        task = as_task(record, queue.decoder)
        before = attrs.asdict(record, recurse=False)

        for _ in range(2):  # what reads one part takes nothing from the next
            assert task.args == (1,)
            assert task.kwargs == {}
            assert task.retry is None
        assert attrs.asdict(record, recurse=False) == before
        assert vars(record).keys() == before.keys()


# Headers


def test_headers_travel_with_a_task_to_its_code_and_its_record() -> None:
    seen: list[dict[str, str]] = []
    with TaskQueue("memory://", max_retries=1) as queue:

        @queue.task(name="note", retry_on=ValueError)
        def note() -> None:
            seen.append(dict(current_task().headers))
            if current_task().attempt == 1:
                current_task().retry(delay=0)

        handle = note.using(headers={"request-id": "r1", "tenant": "größe"}).enqueue()
        with working(queue):
            handle.result(timeout=20)

        assert seen == [{"request-id": "r1", "tenant": "größe"}] * 2
        assert handle.task().headers == {"request-id": "r1", "tenant": "größe"}
        assert note.enqueue().task().headers == {}


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"Request": "x"}, "lower-case"),
        ({"": "x"}, "lower-case"),
        ({"a" * 65: "x"}, "lower-case"),
        ({f"h{number}": "x" for number in range(33)}, "at most 32"),
        ({"a": "x" * 8192}, "8,192 bytes"),
    ],
    ids=["upper case", "empty", "long", "many", "large"],
)
def test_headers_that_cannot_travel_are_refused_where_they_are_written(headers: dict[str, str], error: str) -> None:
    with TaskQueue("memory://") as queue:
        task = queue.task(name="note")(lambda: None)
        with pytest.raises(ValueError, match=error):
            task.using(headers=headers)


@pytest.mark.parametrize("headers", ["text", {"a": 1}, {1: "a"}, [("a", "b")]], ids=repr)
def test_headers_of_another_kind_are_a_type_error(headers: Any) -> None:
    with TaskQueue("memory://") as queue:
        task = queue.task(name="note")(lambda: None)
        with pytest.raises(TypeError, match="header"):
            task.using(headers=headers)


def test_a_body_is_plain_to_read_with_any_tool() -> None:
    with TaskQueue("memory://") as queue:

        @queue.task(name="add", timeout=5)
        async def add(a: int, b: int) -> int:
            return a + b

        body = queue.order(add.call(1, b=2)).body

    version, text, payload = body.split(b"\n")
    header = json.loads(text)
    assert version == b"1"
    assert header.pop("retry")
    assert header == {"timeout": 5.0, "async": True}
    assert json.loads(payload) == [[1], {"b": 2}]


def test_a_field_that_no_store_acts_on_is_written_in_six_files_at_most() -> None:
    # Of those that there are, one that nothing but tasks' own code reads: plugins read the headers, too.
    root = Path(__file__).parents[2]
    using = [
        path.name
        for path in root.glob("omniq-*/src/**/*.*")
        if path.suffix in (".py", ".sql", ".lua") and re.search(r"\bscheduled_for\b", path.read_text(encoding="utf-8"))
    ]

    assert len(using) <= 6, using
