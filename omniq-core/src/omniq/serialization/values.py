"""Single values that JSON has no form for: times, numbers, bytes, paths. Each tells what it is by a tag of its own."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from omniq.serialization.codec import (
    TAG,
    VALUE,
    Codec,
    CodecError,
    Function,
    Malformed,
    describe,
    is_tagged,
    tagged,
    type_name,
    wrapping,
)

__all__ = ["VALUE_TYPES", "value_codec"]


def _decoder(tag: str, make: Callable[[Any], Any], *optional: str) -> Function:
    """Make a decoder of tagged objects from a function on such an object that may raise anything."""

    def decode(tree: Any) -> Any:
        if not is_tagged(tree, *optional):
            raise Malformed(f"a payload tagged {tag!r} has other keys than that form has")
        try:
            return make(tree)
        except CodecError:
            raise
        except Exception as error:
            raise Malformed(f"a payload tagged {tag!r} cannot be read: {describe(error)}") from error

    return decode


def _text(tree: Any) -> str:
    text = tree[VALUE]
    if type(text) is not str:
        raise ValueError("its value is no string")
    return text


def _integer(tree: Any) -> int:
    """Read an integer that may be one of the large ones."""
    if type(tree) is dict:
        return _large_integer(tree)
    if type(tree) is not int:
        raise ValueError("an integer is missing")
    return tree


def _large_integer(tree: Any) -> int:
    if tree.get(TAG) != "int" or not is_tagged(tree):
        raise ValueError("an integer is missing")
    return int(_text(tree), 16)


def _integers(tree: Any, count: int) -> list[int]:
    numbers = tree[VALUE]
    if type(numbers) is not list or len(numbers) != count:
        raise ValueError(f"it is no list of {count} integers")
    return [_integer(number) for number in numbers]


def _with_zone(tag: str, value: datetime | time) -> dict[str, Any]:
    zone = value.tzinfo
    if type(zone) is ZoneInfo and zone.key:
        tree = tagged(tag, value.replace(tzinfo=None).isoformat())
        tree["zone"] = zone.key
    elif zone is None or type(zone) is timezone:
        tree = tagged(tag, value.isoformat())
        if zone is not None:
            _, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # what pickle asks; typeshed leaves it out
            if name:
                tree["name"] = name[0]
    else:
        raise CodecError(
            f"cannot hold the time zone of this {type(value).__name__}, a {type_name(zone)}; "
            "convert it, such as with value.astimezone(zoneinfo.ZoneInfo(...))"
        )
    if value.fold:
        tree["fold"] = 1
    return tree


def _zone(tree: Any, parsed: tzinfo | None) -> tzinfo | None:
    if "zone" in tree:
        if parsed is not None or type(tree["zone"]) is not str:
            raise ValueError("its zone is none")
        # It looks nowhere but in the databases of time zones, whatever the key.
        return ZoneInfo(tree["zone"])
    if "name" in tree:
        if type(parsed) is not timezone or type(tree["name"]) is not str:
            raise ValueError("its zone has no offset or no name")
        return timezone(parsed.utcoffset(None), tree["name"])
    return parsed


def _fold(tree: Any) -> int:
    fold: int = tree.get("fold", 0)
    if type(fold) is not int or fold not in {0, 1} or {"zone", "name"} <= tree.keys():
        raise ValueError("its fold or zone is none")
    return fold


def _moment(kind: type[datetime] | type[time]) -> tuple[str, Function, Function]:
    tag = kind.__name__

    def make(tree: Any) -> Any:
        moment = kind.fromisoformat(_text(tree))
        if len(tree) == 2:
            return moment
        return moment.replace(tzinfo=_zone(tree, moment.tzinfo), fold=_fold(tree))

    return tag, lambda value: _with_zone(tag, value), _decoder(tag, make, "zone", "name", "fold")


def _complex(tree: Any) -> complex:
    parts = tree[VALUE]
    if type(parts) is not list or [type(part) for part in parts] != [float, float]:
        raise ValueError("it is no list of two floats")
    return complex(*parts)


def _base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()


def _unbase64(tree: Any) -> bytes:
    return base64.b64decode(_text(tree), validate=True)


def _path(cls: type[PurePath]) -> tuple[str, Function, Function]:
    # A Path is the path of whatever system the worker runs on.
    tag = "path" if issubclass(cls, Path) else cls.__name__

    def write(value: Any) -> str:
        text = str(value)
        # Python writes some that begin with two slashes so that they read as another.
        if issubclass(cls, PureWindowsPath) and cls(text) != value:
            raise CodecError("cannot hold this path, whose text is that of another path; convert it to str")
        return text

    return _form(tag, write, lambda tree: cls(_text(tree)))


def _form(tag: str, write: Function, read: Function) -> tuple[str, Function, Function]:
    return tag, wrapping(tag, write), _decoder(tag, read)


_FORMS: dict[type, tuple[str, Function, Function]] = {
    datetime: _moment(datetime),
    time: _moment(time),
    date: _form("date", date.isoformat, lambda tree: date.fromisoformat(_text(tree))),
    timedelta: _form(
        "timedelta", lambda v: [v.days, v.seconds, v.microseconds], lambda tree: timedelta(*_integers(tree, 3))
    ),
    Decimal: _form("Decimal", str, lambda tree: Decimal(_text(tree))),
    UUID: _form("UUID", str, lambda tree: UUID(_text(tree))),
    complex: _form("complex", lambda v: [v.real, v.imag], _complex),
    bytes: _form("bytes", _base64, _unbase64),
    bytearray: _form("bytearray", _base64, lambda tree: bytearray(_unbase64(tree))),
    range: _form("range", lambda v: [v.start, v.stop, v.step], lambda tree: range(*_integers(tree, 3))),
    type(Path()): _path(type(Path())),
    PurePosixPath: _path(PurePosixPath),
    PureWindowsPath: _path(PureWindowsPath),
}
"""By class, the tag of its values' form, and what writes and reads that."""
_LARGE = _decoder("int", _large_integer)
_ABSTRACT = {Path, PurePath, PosixPath, WindowsPath}
# Wherever Python's types let a narrower number stand, one may: JSON tells the three apart, so it comes back as it was.
_NUMBERS: dict[type, frozenset[type]] = {
    bool: frozenset({bool}),
    int: frozenset({int, bool}),
    float: frozenset({float, int, bool}),
    complex: frozenset({float, int, bool}),
}
_ATOMS: dict[type, frozenset[type]] = {
    str: frozenset({str}),
    type(None): frozenset({type(None)}),
    **_NUMBERS,
}


VALUE_TYPES: tuple[type, ...] = (*_ATOMS, *_FORMS, *_ABSTRACT)
"""The classes whose values are single."""


def value_codec(kind: type) -> Codec:
    """Make the codec of one of :data:`VALUE_TYPES`.

    Values of known subclasses are taken too, and come back as such: a datetime for a date, any path for a PurePath.
    """
    codec = Codec(name="None" if kind is type(None) else kind.__name__, exact=_ATOMS.get(kind, frozenset()), flat=True)
    if kind in _NUMBERS and kind is not bool:
        codec.decoders["int"] = _LARGE
    for known, (tag, encode, decode) in _FORMS.items():
        if issubclass(known, kind):
            codec.encoders[known], codec.decoders[tag] = encode, decode
    return codec
