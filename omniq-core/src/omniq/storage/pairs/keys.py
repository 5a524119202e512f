"""Keys of pairs, which sort as what they are made of; and what is read of them."""

from __future__ import annotations

import hashlib
from datetime import datetime

from omniq.storage.times import LATEST, from_micros

__all__ = ["END", "key", "name_in", "number_in", "text_of", "time_of"]

END = b"\xff" * 16
"""Behind the rest of any key."""
LONGEST_PART = 100
"""Bytes of a text within a key: of a longer one the hash stands there."""


def key(*parts: str | int) -> bytes:
    """Return a key whose parts sort as themselves: numbers of 64 bits by value, short texts by their bytes."""
    encoded = bytearray()
    for part in parts:
        if isinstance(part, int):
            encoded += (part + (1 << 63)).to_bytes(8, "big")
        else:
            text = part.encode()
            text = text if len(text) <= LONGEST_PART else b"\xff" + hashlib.sha256(text).digest()
            encoded += text.replace(b"\0", b"\0\xff") + b"\0\1"
    return bytes(encoded)


def number_in(where: bytes, begin: int) -> int:
    """Return the number that begins at a place of a key."""
    return int.from_bytes(where[begin:][:8], "big") - (1 << 63)


def name_in(where: bytes, begin: int) -> str | None:
    """Return the text that begins at a place of a key; None if it is too long to stand there."""
    part = where[begin:].partition(b"\0\1")[0].replace(b"\0\xff", b"\0")
    return None if part[:1] == b"\xff" else text_of(part)


def time_of(number: int) -> datetime | None:
    """Return a time that stands in a key; None if it is none."""
    return from_micros(number) if 0 <= number <= LATEST else None


def text_of(value: bytes) -> str | None:
    """Return what stands under a key as a text; None if it is none."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
