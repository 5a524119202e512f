"""Single values that JSON has no form for: times, numbers, bytes, paths. Each tells what it is by a tag of its own."""

from __future__ import annotations

import base64
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from operator import attrgetter
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from omniq.serialization.codec import (
    TAG,
    Codec,
    CodecError,
    Function,
    Malformed,
    guarded,
    tagged,
    type_name,
    unwrapping,
    wrapping,
)

__all__ = ["VALUE_TYPES", "value_codec"]


class _Form(NamedTuple):
    """How values of a class are written under a tag, and read again."""

    tag: str
    encode: Function
    decode: Function


def _form(tag: str, write: Function, read: Function, form: type = str) -> _Form:
    """Make a form.

    :param write: makes the JSON under the tag.
    :param read: makes a value of it; may raise anything.
    :param form: the class that this JSON is read as.
    """
    return _Form(tag, wrapping(tag, write), _reading(tag, read, form=form))


def _reading(tag: str, read: Function, *options: str, form: type = str) -> Function:
    return unwrapping(tag, guarded(read, f"a payload tagged {tag!r} cannot be read", Malformed), *options, form=form)


def _moment(kind: type[datetime] | type[time]) -> _Form:
    tag = kind.__name__

    def encode(value: Any) -> dict[str, Any]:
        zone = value.tzinfo
        if type(zone) is ZoneInfo and zone.key:
            tree = tagged(tag, value.replace(tzinfo=None).isoformat())
            tree["zone"] = zone.key
        elif zone is None or type(zone) is timezone:
            tree = tagged(tag, value.isoformat())
            # What pickle asks: the offset, and the name if there is one.
            name = zone.__getinitargs__()[1:] if zone else ()  # type: ignore[attr-defined]  # typeshed leaves it out
            if name:
                tree["name"] = name[0]
        else:
            raise CodecError(
                f"cannot hold the time zone of this {tag}, a {type_name(zone)}; "
                "convert it, such as with value.astimezone(zoneinfo.ZoneInfo(...))"
            )
        if value.fold:
            tree["fold"] = 1
        return tree

    def read(text: str, beside: dict[str, Any] | None = None) -> Any:
        moment = kind.fromisoformat(text)
        if beside is None:
            return moment
        zone, fold = moment.tzinfo, beside.pop("fold", 0)
        match beside:
            case {"zone": str(key)} if zone is None and len(beside) == 1:
                # It looks nowhere but in the databases of time zones, whatever the key.
                zone = ZoneInfo(key)
            case {"name": str(name)} if type(zone) is timezone and len(beside) == 1:
                zone = timezone(zone.utcoffset(None), name)
            case _ if beside:
                raise ValueError("its zone is none, or has no offset or no name")
        if type(fold) is not int:
            raise ValueError("its fold is none")
        return moment.replace(tzinfo=zone, fold=fold)

    return _Form(tag, encode, _reading(tag, read, "zone", "name", "fold"))


def _integer(tree: Any) -> int:
    """Read an integer, which may be one of the large ones."""
    number = _LARGE(tree) if type(tree) is dict and tree.get(TAG) == "int" else tree
    if type(number) is not int:
        raise ValueError("an integer is missing")
    return number


def _integers(tag: str, make: Any, *names: str) -> _Form:
    """Make the form of what is made of some integers.

    :param names: the attributes that hold them.
    """

    def read(trees: list[Any]) -> Any:
        if len(trees) != len(names):
            raise ValueError(f"it is no list of {len(names)} integers")
        return make(*map(_integer, trees))

    parts_of = attrgetter(*names)
    return _form(tag, lambda value: list(parts_of(value)), read, list)


def _complex(parts: list[Any]) -> complex:
    if [type(part) for part in parts] != [float, float]:
        raise ValueError("it is no list of two floats")
    return complex(*parts)


def _base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _path(cls: type[PurePath]) -> _Form:
    def write(value: Any) -> str:
        text = str(value)
        # Python writes some that begin with two slashes so that they read as another.
        if issubclass(cls, PureWindowsPath) and cls(text) != value:
            raise CodecError("cannot hold this path, whose text is that of another path; convert it to str")
        return text

    # A Path is the path of whatever system the worker runs on.
    return _form("path" if issubclass(cls, Path) else cls.__name__, write, cls)


_FORMS: dict[type, _Form] = {
    datetime: _moment(datetime),
    time: _moment(time),
    date: _form("date", date.isoformat, date.fromisoformat),
    timedelta: _integers("timedelta", timedelta, "days", "seconds", "microseconds"),
    Decimal: _form("Decimal", str, Decimal),
    UUID: _form("UUID", str, UUID),
    complex: _form("complex", lambda value: [value.real, value.imag], _complex, list),
    bytes: _form("bytes", _base64, _unbase64),
    bytearray: _form("bytearray", _base64, lambda text: bytearray(_unbase64(text))),
    range: _integers("range", range, "start", "stop", "step"),
    type(Path()): _path(type(Path())),
    PurePosixPath: _path(PurePosixPath),
    PureWindowsPath: _path(PureWindowsPath),
}
_LARGE = _reading("int", lambda text: int(text, 16))
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
    codec = Codec(kind, exact=_ATOMS.get(kind, frozenset()), flat=True)
    if kind in _NUMBERS and kind is not bool:
        codec.decoders["int"] = _LARGE
    for known, (tag, encode, decode) in _FORMS.items():
        if issubclass(known, kind):
            codec.encoders[known], codec.decoders[tag] = encode, decode
    return codec
