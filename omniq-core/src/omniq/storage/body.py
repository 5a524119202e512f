"""The body of a task: the arguments, and how to run them, as one string of bytes that no store looks into.

A store acts on a task's queue, priority, times, key and tags, which are fields of :class:`~omniq.task.NewTask`. All
else is here, so that a new option of a task costs no store a column. The layout, in lines that a person can read::

    body    = version [space signature, in hexadecimal digits] newline content
    content = header (a JSON object) newline encoded arguments

A signature covers the content as it stands, so that it is checked before any of it is read. The header leaves out what
has its default value; a reader passes over names that it does not know, such as those of a newer version.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple

from attrs import evolve, field, frozen

from omniq.errors import CorruptRecord
from omniq.storage.attempts import history_of
from omniq.task import NewTask, Reference, StoredTask, Task, TaskDecoder, record_of

__all__ = [
    "LARGEST_HEADER",
    "Header",
    "as_task",
    "dump_header",
    "is_unsigned",
    "join_body",
    "load_content",
    "make_content",
    "make_task",
    "parts_of",
    "payload_size",
    "preview",
    "split_body",
    "with_header",
]

LARGEST_HEADER = 65_536
"""Bytes that a header may take."""
_VERSION = b"1"
_UNSIGNED = _VERSION + b"\n"


@frozen(kw_only=True)
class Header:
    """How to run a task's arguments."""

    serializer: str = "json"
    retry: str = ""
    """The encoded retry policy; empty: the function's own."""
    timeout: float | None = None
    """Seconds that one attempt may take."""
    is_async: bool = False
    headers: Mapping[str, str] = field(factory=dict)
    scheduled_for: datetime | None = None
    """The fire time that a schedule's run is for."""
    references: tuple[Reference, ...] = ()

    @functools.cached_property
    def fields(self) -> Mapping[str, Any]:
        """The fields of a :class:`~omniq.task.Task` that are read from here."""
        return {"retry_spec" if name == "retry" else name: getattr(self, name) for name in _PARTS}


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _are_headers(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _aware(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("scheduled_for in its header has no time zone")
    return moment


def _references(stored: list[Any]) -> tuple[Reference, ...]:
    return tuple(
        Reference(tuple(path), kind, tuple((str(first), int(count)) for first, count in runs))
        for path, kind, runs in stored
    )


class _Part(NamedTuple):
    """How a field of a header stands in its text, unless it has its default."""

    name: str
    is_right: Callable[[object], bool]
    dump: Callable[[Any], Any] | None = None
    load: Callable[[Any], Any] | None = None


_PARTS: Mapping[str, _Part] = {
    "serializer": _Part("serializer", _is_text),
    "retry": _Part("retry", _is_text),
    "timeout": _Part("timeout", _is_duration),
    "is_async": _Part("async", lambda value: isinstance(value, bool)),
    "headers": _Part("headers", _are_headers, dict),
    "scheduled_for": _Part("scheduled_for", _is_text, datetime.isoformat, _aware),
    "references": _Part(
        "references",
        lambda value: isinstance(value, list),
        lambda references: [[one.path, one.kind, one.runs] for one in references],
        _references,
    ),
}
_values = attrgetter(*_PARTS)
_USUAL = _values(Header())
_encode = json.JSONEncoder(separators=(",", ":")).encode


def dump_header(header: Header) -> bytes:
    """Return a header as it stands in a body.

    :raises ValueError: if it is larger than :data:`LARGEST_HEADER`.
    """
    stored: dict[str, Any] = {}
    for part, value, usual in zip(_PARTS.values(), _values(header), _USUAL, strict=True):
        if value != usual:
            stored[part.name] = value if part.dump is None else part.dump(value)
    text = _encode(stored).encode()
    if len(text) > LARGEST_HEADER:
        raise ValueError(
            f"the options and headers of a task take {len(text):,} bytes, and the limit is {LARGEST_HEADER:,}"
        )
    return text


# The tasks of one function nearly always have the same header.
@functools.lru_cache(maxsize=512)
def _load_header(text: bytes) -> Header:
    stored = json.loads(text)
    if not isinstance(stored, dict):
        raise ValueError("its header is no JSON object")
    fields: dict[str, Any] = {}
    for field_name, part in _PARTS.items():
        if part.name in stored:
            value = stored[part.name]
            if not part.is_right(value):
                raise ValueError(f"{field_name} in its header is of the wrong type")
            fields[field_name] = value if part.load is None else part.load(value)
    return Header(**fields)


def make_content(header: bytes, payload: bytes) -> bytes:
    """Return what a signature covers: a header and the encoded arguments.

    :param header: what :func:`dump_header` returned.
    """
    return b"%b\n%b" % (header, payload)


def join_body(content: bytes, signature: bytes = b"") -> bytes:
    """Return the body of a content, with its signature if it has one."""
    if signature:
        return b"%b %b\n%b" % (_VERSION, signature.hex().encode(), content)
    return b"%b\n%b" % (_VERSION, content)


def is_unsigned(body: bytes) -> bool:
    """Return whether a body has no signature, without reading it.

    :param body: of a task.
    """
    return body.startswith(_UNSIGNED)


def split_body(body: bytes) -> tuple[bytes, bytes]:
    """Return the signature (empty if there is none) and the content of a body, without reading either.

    :raises CorruptRecord: if it is no body.
    """
    if body.startswith(_UNSIGNED):  # as nearly all are
        return b"", body[len(_UNSIGNED) :]
    first, _, content = body.partition(b"\n")
    version, _, signature = first.partition(b" ")
    if version != _VERSION:
        raise CorruptRecord(f"its body is of an unknown format ({bytes(body[:10])!r})")
    try:
        raw = bytes.fromhex(signature.decode("ascii"))
    except ValueError as error:
        raise CorruptRecord("the signature of its body is no hexadecimal number") from error
    if raw.hex().encode() != signature:  # fromhex() takes capitals and spaces, too: a body has one form
        raise CorruptRecord("the signature of its body is not written as join_body() writes it")
    return raw, content


def payload_size(content: bytes) -> int:
    """Return how many bytes of a content are the encoded arguments.

    :raises CorruptRecord: if it is no content.
    """
    size = content.find(b"\n", 0, LARGEST_HEADER + 1)
    if size < 0:
        raise CorruptRecord(_NO_END)
    return len(content) - size - 1


_NO_END = "the header of its body has no end"


def load_content(content: bytes) -> tuple[Header, bytes]:
    """Return the header and the encoded arguments of a content.

    :raises CorruptRecord: if that cannot be done.
    """
    text, end, payload = content.partition(b"\n")
    if not end or len(text) > LARGEST_HEADER:
        raise CorruptRecord(_NO_END)
    try:
        return _load_header(text), payload
    except (TypeError, ValueError, RecursionError) as error:
        raise CorruptRecord(f"its body cannot be read: {error}") from error


def with_header(body: bytes, **changes: Any) -> bytes:
    """Return a body of which some fields of the header are others; it is not signed.

    :param changes: fields of :class:`Header`.
    :raises CorruptRecord: if the body cannot be read.
    """
    header, payload = load_content(split_body(body)[1])
    return join_body(make_content(dump_header(evolve(header, **changes)), payload))


_UNREADABLE = Header(serializer="")


def parts_of(stored: StoredTask) -> tuple[Header, bytes]:
    """Return the header and the encoded arguments of a store's record, as :func:`as_task` has them."""
    if stored.omitted is None:
        with contextlib.suppress(CorruptRecord):
            return load_content(split_body(stored.body)[1])
    return _UNREADABLE, b""


def as_task(stored: StoredTask, decoder: TaskDecoder | None = None) -> Task:
    """Return the task of a store's record.

    One whose body cannot be read, or is not there as it was listed bare, has a serializer without a name, which no
    queue accepts, and no arguments: it can be listed and deleted.

    :param decoder: what the task decodes its arguments and its result with.
    """
    return make_task(stored, *parts_of(stored), decoder)


def make_task(stored: StoredTask, header: Header, payload: bytes, decoder: TaskDecoder | None = None) -> Task:
    """Return the task of a store's record, given what is in its body.

    :param stored: the record.
    :param header: of its body, see :func:`load_content`.
    :param payload: the encoded arguments there.
    :param decoder: what the task decodes its arguments and its result with.
    """
    history = history_of(stored) if stored.attempt_log or stored.finished_at is not None else ()
    return record_of(
        Task, {**vars(stored), **header.fields, "payload": payload, "history": history, "_decoder": decoder}
    )


def preview(new: NewTask, now: datetime, decoder: TaskDecoder | None = None) -> Task:
    """Return the record that a task would have if it were enqueued now, such as that of a schedule's next run.

    :param now: the store's clock.
    """
    stored = StoredTask(
        id=new.id,
        queue=new.queue,
        name=new.name,
        body=new.body,
        priority=new.priority,
        max_retries=new.max_retries,
        created_at=now,
        run_at=now,
        unique=new.unique,
        tags=new.tags,
        result_ttl=new.result_ttl,
    )
    return as_task(stored, decoder)
