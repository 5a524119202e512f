"""Task ids: UUIDv7 text (RFC 9562, section 5.7), so that ids sort by the time at which they were made."""

from __future__ import annotations

import os
import threading
import time

__all__ = ["new_id"]

_lock = threading.Lock()
_last = 0


def _forget() -> None:
    # A fork may have caught the lock held. That the child repeats no id of the parent's, the random part sees to.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def new_id() -> str:
    """Give a new UUIDv7, later than every other one made in this process.

    48 bits of Unix time in milliseconds, then 12 bits that count on within a millisecond (method 3 of section 6.2: the
    fraction of the millisecond), then 62 random bits.
    """
    global _last
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    stamp = milliseconds << 12 | rest * 4096 // 1_000_000
    with _lock:
        if stamp <= _last:
            stamp = _last + 1
        _last = stamp
    bits = int.from_bytes(os.urandom(8), "big") & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    text = f"{stamp >> 12:012x}7{stamp & 0xFFF:03x}{bits:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
