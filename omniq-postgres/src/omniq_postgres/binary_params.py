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
from typing import Any, ClassVar, TypeVar

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

V = TypeVar("V")

_NULL = b"\xff\xff\xff\xff"
_ARRAY_HEAD = struct.Struct("!iiiii").pack
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Parameter(bytes):
    """A packed value; each subclass is one type of PostgreSQL."""

    __slots__ = ()
    oid: ClassVar[int]


def _packers(
    oid: int, array_oid: int, encode: Callable[[V], bytes], size: int | None = None
) -> tuple[Callable[[V], Parameter], Callable[[Sequence[V | None]], Parameter]]:
    """Return what packs a value of a type, and what packs an array of them, in which None becomes NULL.

    :param oid: the type's number.
    :param array_oid: the number of the type of its arrays.
    :param encode: what makes bytes of a value.
    :param size: the bytes of each value; None: they differ.
    """
    value_class, array_class = _parameter_class(oid), _parameter_class(array_oid)
    empty = array_class(struct.pack("!iii", 0, 0, oid))
    length = None if size is None else size.to_bytes(4, "big")

    def pack(value: V) -> Parameter:
        return value_class(encode(value))

    def pack_array(values: Sequence[V | None]) -> Parameter:
        number = len(values)
        if number == 0:
            return empty
        first = values[0]
        if values.count(first) == number:
            if first is None:
                packed = _NULL * number
            else:
                data = encode(first)
                packed = (len(data).to_bytes(4, "big") + data) * number
        elif length is None:
            packed = b"".join(
                [_NULL if value is None else len(data := encode(value)).to_bytes(4, "big") + data for value in values]
            )
        else:
            packed = b"".join([_NULL if value is None else length + encode(value) for value in values])
        # Said to hold NULLs whether it does or not: the server looks at each element anyway.
        return array_class(_ARRAY_HEAD(1, 1, oid, number, 1) + packed)

    return pack, pack_array


_classes: dict[int, type[Parameter]] = {}


def _parameter_class(oid: int) -> type[Parameter]:
    return _classes.setdefault(oid, type(f"_Parameter{oid}", (Parameter,), {"__slots__": (), "oid": oid}))


# Values


def is_id(value: object) -> bool:
    """Return whether a text can be a task's id: a UUID in lower case with hyphens."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _encode_text(value: str) -> bytes:
    if "\0" in value:
        raise ValueError(f"PostgreSQL cannot hold a text with a NUL character: {value!r}")
    return value.encode()


def _encode_id(value: str) -> bytes:
    return bytes.fromhex(value.replace("-", ""))


def _encode_new_id(value: str) -> bytes:
    if not is_id(value):
        raise ValueError(f"{value!r} cannot be a task's id on PostgreSQL: take UUID text in lower case")
    return bytes.fromhex(value.replace("-", ""))


def _encode_timestamp(value: datetime) -> bytes:
    return ((value - EPOCH) // MICROSECOND).to_bytes(8, "big", signed=True)


_INTERVAL_LAYOUT = struct.Struct("!qii").pack


def _encode_interval(value: timedelta) -> bytes:
    return _INTERVAL_LAYOUT(max(min(value, LONGEST), LONGEST_AGO) // MICROSECOND, 0, 0)


boolean, booleans = _packers(16, 1000, struct.Struct("!?").pack, 1)
bytea, byteas = _packers(17, 1001, bytes.__bytes__)
bigint, bigints = _packers(20, 1016, struct.Struct("!q").pack, 8)
smallint, smallints = _packers(21, 1005, struct.Struct("!h").pack, 2)
_integer, integers = _packers(23, 1007, struct.Struct("!i").pack, 4)
text, texts = _packers(25, 1009, _encode_text)
float8, floats = _packers(701, 1022, struct.Struct("!d").pack, 8)
timestamp, timestamps = _packers(1184, 1185, _encode_timestamp, 8)  # timestamptz
_, intervals = _packers(1186, 1187, _encode_interval, 16)
_uuid, _uuids = _packers(2950, 2951, _encode_id, 16)
new_id, new_ids = _packers(2950, 2951, _encode_new_id, 16)


def uuid(value: str) -> Parameter | None:
    """Pack a ``uuid``; None for what is no id."""
    return _uuid(value) if is_id(value) else None


def uuids(values: Sequence[str | None]) -> Parameter:
    """Pack a ``uuid[]``; what is no id becomes NULL, which no task has."""
    return _uuids([value if is_id(value) else None for value in values])


def integer(value: int) -> Parameter:
    """Pack an ``integer``; what is too large becomes the largest that there is."""
    return _integer(max(-(2**31), min(value, 2**31 - 1)))


def span(seconds: float) -> Parameter:
    """Pack a duration in seconds that no calendar is too short for."""
    return float8(min(seconds, HUNDRED_YEARS))


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


_DUMPERS = {kind: type(f"{kind.__name__}Dumper", (_ParameterDumper,), {"oid": kind.oid}) for kind in _classes.values()}


def register(adapters: AdaptersMap) -> None:
    """Teach a connection or a cursor to send what is packed here, and to read times as :func:`moment` does."""
    for kind, dumper in _DUMPERS.items():
        adapters.register_dumper(kind, dumper)
    adapters.register_loader("timestamptz", _TimestampLoader)
