"""Values on their way to and from the server, in PostgreSQL's binary form.

A statement over a batch takes one array for each column. Packing them here takes a tenth of the time that the driver
needs for the same, above all because the values of a column are so often all the same. Every parameter has a type of
its own, so that one statement text is one prepared statement.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from psycopg.adapt import AdaptersMap, Buffer, Dumper, Loader
from psycopg.pq import Format

__all__ = [
    "Parameter",
    "bigint",
    "bigints",
    "boolean",
    "booleans",
    "bytea",
    "byteas",
    "float8",
    "floats",
    "integer",
    "integers",
    "intervals",
    "is_id",
    "moment",
    "new_id",
    "new_ids",
    "register",
    "smallint",
    "smallints",
    "span",
    "text",
    "texts",
    "timestamp",
    "timestamps",
    "uuid",
    "uuids",
]

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""From which PostgreSQL counts microseconds."""
MICROSECOND = timedelta(microseconds=1)
LONGEST = timedelta(days=366 * 7000)
"""Longer delays are cut to this one, and what then is beyond the year 9999 to its end, see the statements."""
LONGEST_AGO = timedelta(days=-366 * 1000)
"""Nothing was longer ago."""

HUNDRED_YEARS = 100 * 366 * 86400.0
"""Seconds."""

_NULL = b"\xff\xff\xff\xff"
_LENGTH_OF_UUID = b"\0\0\0\x10"
_HEADER = struct.Struct("!iiiii").pack
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Parameter(bytes):
    """A packed value; each subclass is one type of PostgreSQL."""

    __slots__ = ()
    oid: ClassVar[int]
    element: ClassVar[int] = 0
    """Of an array: its elements' type."""


class _Text(Parameter):
    oid = 25


class _Bytea(Parameter):
    oid = 17


class _Uuid(Parameter):
    oid = 2950


class _Smallint(Parameter):
    oid = 21


class _Bigint(Parameter):
    oid = 20


class _Integer(Parameter):
    oid = 23


class _Float(Parameter):
    oid = 701


class _Boolean(Parameter):
    oid = 16


class _Timestamp(Parameter):
    oid = 1184


class _Texts(Parameter):
    oid, element = 1009, 25


class _Uuids(Parameter):
    oid, element = 2951, 2950


class _Byteas(Parameter):
    oid, element = 1001, 17


class _Smallints(Parameter):
    oid, element = 1005, 21


class _Integers(Parameter):
    oid, element = 1007, 23


class _Bigints(Parameter):
    oid, element = 1016, 20


class _Floats(Parameter):
    oid, element = 1022, 701


class _Booleans(Parameter):
    oid, element = 1000, 16


class _Timestamps(Parameter):
    oid, element = 1185, 1184


class _Intervals(Parameter):
    oid, element = 1187, 1186


_TYPES = (
    _Text,
    _Bytea,
    _Uuid,
    _Smallint,
    _Bigint,
    _Integer,
    _Float,
    _Boolean,
    _Timestamp,
    _Texts,
    _Uuids,
    _Byteas,
    _Smallints,
    _Integers,
    _Bigints,
    _Floats,
    _Booleans,
    _Timestamps,
    _Intervals,
)


def _array(kind: type[Parameter], values: Sequence[Any], pack: Callable[[Any], bytes]) -> Parameter:
    number = len(values)
    if number == 0:
        return kind(struct.pack("!iii", 0, 0, kind.element))
    first = values[0]
    body = pack(first) * number if values.count(first) == number else b"".join(map(pack, values))
    # Said to hold NULLs whether it does or not: the server looks at each element anyway.
    return kind(_HEADER(1, 1, kind.element, number, 1) + body)


# Elements


def _encoded(value: str) -> bytes:
    if "\0" in value:
        raise ValueError(f"PostgreSQL cannot hold a text with a NUL character: {value!r}")
    return value.encode()


def _pack_text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    data = _encoded(value)
    return len(data).to_bytes(4, "big") + data


def _pack_bytea(value: bytes | None) -> bytes:
    return _NULL if value is None else len(value).to_bytes(4, "big") + value


def is_id(value: object) -> bool:
    """Whether a text can be a task's id: a UUID in lower case with hyphens."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _pack_uuid(value: str | None) -> bytes:
    # Every other text is the id of no task.
    return _NULL if value is None or not is_id(value) else _LENGTH_OF_UUID + bytes.fromhex(value.replace("-", ""))


def _pack_new_id(value: str) -> bytes:
    return _LENGTH_OF_UUID + _new_id(value)


def _new_id(value: str) -> bytes:
    if not is_id(value):
        raise ValueError(f"{value!r} cannot be a task's id on PostgreSQL: take UUID text in lower case")
    return bytes.fromhex(value.replace("-", ""))


def _fixed(layout: str) -> Callable[[Any], bytes]:
    packer = struct.Struct("!i" + layout)
    size = packer.size - 4

    def pack(value: Any) -> bytes:
        return _NULL if value is None else packer.pack(size, value)

    return pack


_pack_smallint = _fixed("h")
_pack_integer = _fixed("i")
_pack_bigint = _fixed("q")
_pack_float = _fixed("d")
_pack_boolean = _fixed("?")
_INTERVAL = struct.Struct("!iqii").pack


def _pack_timestamp(value: datetime | None) -> bytes:
    return _NULL if value is None else b"\0\0\0\x08" + ((value - EPOCH) // MICROSECOND).to_bytes(8, "big", signed=True)


def _pack_interval(value: timedelta | None) -> bytes:
    return _NULL if value is None else _INTERVAL(16, max(min(value, LONGEST), LONGEST_AGO) // MICROSECOND, 0, 0)


# Arrays


def texts(values: Sequence[str | None]) -> Parameter:
    """Pack a ``text[]``.

    :raises ValueError: if one holds a NUL character.
    """
    return _array(_Texts, values, _pack_text)


def uuids(values: Sequence[str | None]) -> Parameter:
    """Pack a ``uuid[]``; what is no id becomes NULL, which no task has."""
    return _array(_Uuids, values, _pack_uuid)


def new_ids(values: Sequence[str]) -> Parameter:
    """Pack a ``uuid[]`` of tasks to be stored.

    :raises ValueError: if one is no id.
    """
    return _array(_Uuids, values, _pack_new_id)


def byteas(values: Sequence[bytes | None]) -> Parameter:
    """Pack a ``bytea[]``."""
    return _array(_Byteas, values, _pack_bytea)


def smallints(values: Sequence[int | None]) -> Parameter:
    """Pack a ``smallint[]``."""
    return _array(_Smallints, values, _pack_smallint)


def integers(values: Sequence[int | None]) -> Parameter:
    """Pack an ``integer[]``."""
    return _array(_Integers, values, _pack_integer)


def bigints(values: Sequence[int | None]) -> Parameter:
    """Pack a ``bigint[]``."""
    return _array(_Bigints, values, _pack_bigint)


def floats(values: Sequence[float | None]) -> Parameter:
    """Pack a ``double precision[]``."""
    return _array(_Floats, values, _pack_float)


def booleans(values: Sequence[bool | None]) -> Parameter:
    """Pack a ``boolean[]``."""
    return _array(_Booleans, values, _pack_boolean)


def timestamps(values: Sequence[datetime | None]) -> Parameter:
    """Pack a ``timestamptz[]`` of aware datetimes."""
    return _array(_Timestamps, values, _pack_timestamp)


def intervals(values: Sequence[timedelta | None]) -> Parameter:
    """Pack an ``interval[]``."""
    return _array(_Intervals, values, _pack_interval)


# Single values


def text(value: str) -> Parameter:
    """Pack a ``text``."""
    return _Text(_encoded(value))


def bytea(value: bytes) -> Parameter:
    """Pack a ``bytea``."""
    return _Bytea(value)


def new_id(value: str) -> Parameter:
    """Pack the id of a task to be stored.

    :raises ValueError: if it is no id.
    """
    return _Uuid(_new_id(value))


def uuid(value: str) -> Parameter | None:
    """Pack a ``uuid``; None for what is no id."""
    return _Uuid(bytes.fromhex(value.replace("-", ""))) if is_id(value) else None


def smallint(value: int) -> Parameter:
    """Pack a ``smallint``."""
    return _Smallint(value.to_bytes(2, "big", signed=True))


def bigint(value: int) -> Parameter:
    """Pack a ``bigint``."""
    return _Bigint(value.to_bytes(8, "big", signed=True))


def integer(value: int) -> Parameter:
    """Pack an ``integer``; what is too large becomes the largest that there is."""
    return _Integer(max(-(2**31), min(value, 2**31 - 1)).to_bytes(4, "big", signed=True))


def float8(value: float) -> Parameter:
    """Pack a ``double precision``."""
    return _Float(struct.pack("!d", value))


def span(seconds: float) -> Parameter:
    """Pack a duration in seconds that no calendar is too short for."""
    return float8(min(seconds, HUNDRED_YEARS))


def boolean(value: bool) -> Parameter:
    """Pack a ``boolean``."""
    return _Boolean(b"\1" if value else b"\0")


def timestamp(value: datetime) -> Parameter:
    """Pack a ``timestamptz``."""
    return _Timestamp(_pack_timestamp(value)[4:])


# The way back


# The tasks of a batch share most of their times.
@functools.lru_cache(maxsize=1024)
def moment(packed: bytes) -> datetime | int:
    """Return the datetime of a packed ``timestamptz``, exactly and in UTC, whatever the session's time zone.

    Infinity, and what is beyond every calendar, stays a number: only the reader of that record finds it wrong.
    """
    microseconds = int.from_bytes(packed, "big", signed=True)
    try:
        return EPOCH + timedelta(0, 0, microseconds)
    except OverflowError:
        return microseconds


class _TimestampLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> datetime | int:
        return moment(bytes(data))


class _ParameterDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer:
        return obj  # type: ignore[no-any-return]  # it is bytes, as nothing else is dumped here


_DUMPERS = {kind: type(f"{kind.__name__}Dumper", (_ParameterDumper,), {"oid": kind.oid}) for kind in _TYPES}


def register(adapters: AdaptersMap) -> None:
    """Teach a connection or a cursor to send what is packed here, and to read times as :func:`moment` does."""
    for kind, dumper in _DUMPERS.items():
        adapters.register_dumper(kind, dumper)
    adapters.register_loader("timestamptz", _TimestampLoader)
