"""JSON trees (dict, list, str, int, float, bool, None) to compact UTF-8 bytes and back, without loss.

Beyond JSON, as in Python's own module: ``NaN``, ``Infinity`` and ``-Infinity`` are written as such, and a lone
surrogate keeps its three bytes. An integer with more digits than Python is willing to write (4,300) is written in
hexadecimal, as ``{"$": "int", "v": "0x…"}``.
"""

from __future__ import annotations

import json.encoder
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from json import JSONDecoder, JSONEncoder
from typing import Any, NoReturn, TypeAlias

from omniq.serialization.codec import TAG, VALUE, CodecError, key_step

__all__ = ["dumps", "loads"]

# Python does not let the limit be set below 640 digits, so 2,000 bits (603 digits) can be read everywhere.
_LARGE_BITS = 2_000


def _unknown(value: Any) -> NoReturn:
    raise CodecError(f"a {type(value).__name__} came out of an encoder, where only JSON may")


def _make_encoder() -> Callable[[Any, int], Iterable[str]]:
    # JSONEncoder.encode builds this very object anew at every call, which costs twice what encoding a small call does.
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is not None:
        quote = json.encoder.encode_basestring
        encoder: Callable[[Any, int], Iterable[str]] = make(None, _unknown, quote, None, ":", ",", False, False, True)
        return encoder
    plain = JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False, default=_unknown)
    return lambda tree, _: plain.iterencode(tree)


_encode = _make_encoder()


def dumps(tree: Any) -> bytes:
    """Write a JSON tree.

    :raises CodecError: if it is nested too deeply.
    """
    try:
        try:
            text = "".join(_encode(tree, 0))
        except ValueError:
            text = "".join(_encode(_with_hexadecimal(tree), 0))
    except RecursionError:
        raise CodecError("is nested too deeply") from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _with_hexadecimal(tree: Any) -> Any:
    if type(tree) is int and tree.bit_length() > _LARGE_BITS:
        return {TAG: "int", VALUE: hex(tree)}
    if type(tree) is list:
        return [_with_hexadecimal(item) for item in tree]
    if type(tree) is dict:
        return {key: _with_hexadecimal(item) for key, item in tree.items()}
    return tree


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise CodecError(f"the payload has the key {key_step(twice)[1:-1]} twice in one object")
    return tree


_Scan: TypeAlias = Callable[[str, int], tuple[Any, int]]
# What JSONDecoder.decode calls after it has looked for white space, of which there is none here.
_scan_quickly: _Scan = JSONDecoder().scan_once  # type: ignore[attr-defined]  # typeshed leaves it out
_scan_carefully: _Scan = JSONDecoder(object_pairs_hook=_unique).scan_once  # type: ignore[attr-defined]  # the same


class _Counting(threading.local):
    """What reads a text and counts the keys of the objects that come of it; one for each thread."""

    def __init__(self) -> None:
        keys: list[int] = []

        def count(tree: dict[str, Any]) -> dict[str, Any]:
            keys.append(len(tree))
            return tree

        self.keys = keys
        self.scan: _Scan = JSONDecoder(object_hook=count).scan_once  # type: ignore[attr-defined]  # the same


_counting = _Counting()


def _scan(text: str, data: bytes) -> tuple[Any, int]:
    """Read a text of which an object may have a key twice.

    Looking at each object as it is made is slow. So it is read without, and looked at again unless the objects have
    together as many keys as there are colons, of which each key has one: then none was there twice.
    """
    if ":" not in text:
        return _scan_quickly(text, 0)
    keys, scan = _counting.keys, _counting.scan
    keys.clear()
    try:
        result = scan(text, 0)
        count = sum(keys)
    finally:
        keys.clear()
    # A colon may stand inside a string, too, but seldom behind a quotation mark.
    if count == data.count(b":") or count == data.translate(None, b" \t\n\r").count(b'":'):
        return result
    return _scan_carefully(text, 0)


def loads(data: bytes) -> Any:
    """Read a JSON tree.

    :raises CodecError: if the bytes are not UTF-8, not JSON, nested too deeply or have a key twice in one object.
    """
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError:
        try:
            text = str(data, "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise CodecError(f"the payload is not UTF-8 text (byte {error.start})") from None
    try:
        tree, end = _scan(text, data)
    except StopIteration as stop:
        raise CodecError(f"the payload is not JSON (character {stop.value})") from None
    except RecursionError:
        raise CodecError("the payload is nested too deeply") from None
    except ValueError as error:
        raise CodecError(f"the payload is not JSON: {error}") from None
    if end != len(text):
        raise CodecError(f"the payload is not JSON: more text after its end (character {end})")
    return tree
