"""Between the JSON of people and the values of functions.

The serializer's own form of a value says of which type it is, ``{"$": "path", "v": "a.png"}``, so that nothing is lost
between processes. A person types ``"a.png"`` and means what the annotation says.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

from omniq.errors import SerializationError
from omniq.serialization import ArgumentTypes, Serializer

if TYPE_CHECKING:
    import cattrs

__all__ = ["plain_json", "structure_arguments"]


def structure_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any], types: ArgumentTypes, serializer: Serializer
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the values that the annotations ask for.

    :param args: positional arguments as JSON has them.
    :param kwargs: keyword arguments as JSON has them.
    :param types: the function's annotations.
    :param serializer: the serializer ``json``.
    :raises SerializationError: if a value is not what its annotation says; names the path to it.
    """
    given = [_typed(value, types.of_position(n), f"args[{n}]", serializer) for n, value in enumerate(args)]
    named = {
        name: _typed(value, types.of_keyword(name), f"kwargs[{name!r}]", serializer) for name, value in kwargs.items()
    }
    return tuple(given), named


def _typed(value: Any, hint: Any, path: str, serializer: Serializer) -> Any:
    payload = json.dumps([[value], {}]).encode()
    try:
        return serializer.load_arguments(payload, ArgumentTypes(positional=(hint,)))[0][0]
    except SerializationError as error:
        try:
            return _converter().structure(_with_strings(_Text, value), hint)
        except Exception:  # cattrs raises whatever the classes raise; the serializer's words are the clearer ones
            raise SerializationError(error.message, error.path.replace("args[0]", path, 1)) from None


def plain_json(value: Any) -> str | None:
    """Return a value as a person would write it in JSON: a Path as its text, an object as its fields.

    :return: None if it has no such form.
    """
    try:
        return json.dumps(_converter().unstructure(value), ensure_ascii=False, allow_nan=False, default=_text)
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str:
    if isinstance(value, (PurePath, UUID, Decimal, time)):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no plain form in JSON")


class _Text(str):
    """A string of JSON, which is no list of characters, whatever cattrs thinks."""

    __slots__ = ()
    __iter__ = None  # type: ignore[assignment]  # that it cannot be iterated is the point


def _with_strings(kind: type[str], value: Any) -> Any:
    """Return JSON of which each string, but for keys, is of a class."""
    if isinstance(value, str):
        return kind(value)
    if isinstance(value, list):
        return [_with_strings(kind, item) for item in value]
    return {key: _with_strings(kind, item) for key, item in value.items()} if isinstance(value, dict) else value


@functools.cache
def _converter() -> cattrs.Converter:
    from cattrs.preconf.json import make_converter

    converter = make_converter()
    # cattrs would call the class: bool("no") is True, and str(3) hides a mistake.
    converter.register_structure_hook(bool, _only(bool))
    converter.register_structure_hook(int, _only(int))
    converter.register_structure_hook(float, _only(float, int))
    converter.register_structure_hook_func(lambda hint: hint is Any, lambda value, _: _with_strings(str, value))
    readers: dict[Any, Callable[[str], Any]] = {
        str: str,
        datetime: datetime.fromisoformat,
        date: date.fromisoformat,
        time: time.fromisoformat,
        Path: Path,
        UUID: UUID,
        Decimal: Decimal,
    }
    for cls, read in readers.items():
        converter.register_structure_hook(cls, _from_text(read))
    for kind in (bytes, bytearray):
        converter.register_structure_hook(kind, _bytes)
        converter.register_unstructure_hook(kind, _shown_bytes)
    converter.register_structure_hook(timedelta, lambda seconds, _: timedelta(seconds=seconds))
    converter.register_unstructure_hook(timedelta, timedelta.total_seconds)
    return converter


def _bytes(value: Any, kind: Any) -> Any:
    # Text is what people have; other bytes are written as they are stored.
    if isinstance(value, str):
        return kind(str(value).encode())
    stored = set(value) == {"$", "v"} and value["$"] == kind.__name__
    if not stored:
        raise TypeError(f"expected a string, not {value!r}")
    return kind(base64.b64decode(str(value["v"]), validate=True))


def _shown_bytes(value: bytes | bytearray) -> str:
    return bytes(value).decode()  # an error of bytes that are no text: they have no plain form


def _only(cls: type, *others: type) -> Callable[[Any, Any], Any]:
    def check(value: Any, _: Any) -> Any:
        if type(value) not in (cls, *others):
            raise TypeError(f"expected {cls.__name__}, not {value!r}")
        return cls(value)

    return check


def _from_text(read: Callable[[str], Any]) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, str):
            raise TypeError(f"expected a string, not {value!r}")
        return read(str(value))

    return structure
