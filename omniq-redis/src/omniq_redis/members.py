"""A task's place in its flow, as it stands in its order; ``lua/parts/running.lua`` draws it."""

from __future__ import annotations

import functools
from datetime import timedelta
from struct import Struct
from typing import NamedTuple

from omniq.storage.validation import check_text
from omniq.task import Feed, NewTask, StoredTask

__all__ = ["LARGEST_GATE", "MARK", "Member", "member_word", "read_member", "stored_member_word"]

MARK = b"\xff"
"""What such a place begins with, and no text does."""
LARGEST_GATE = 0x7FFF_FFFF
LONGEST = 0xFFFE
IS_BEHIND, IS_DELAYED = 1, 2
MOST = 2**63 - 1
_PLACE = Struct(">BBIQH")
_FEED = Struct(">I")
_MICROSECOND = timedelta(microseconds=1)


class Member(NamedTuple):
    """A task's place in its flow."""

    flow: str
    behind: int | None
    feeds: tuple[Feed, ...]
    opening_delay: float | None


def member_word(task: NewTask) -> bytes:
    """Return the place of a task in its flow.

    :raises ValueError: if it has a unique key, or more gates than a task can feed here.
    """
    assert task.flow is not None
    if task.unique is not None:
        raise ValueError(f"task {task.id} ({task.name}) of a flow has a unique key; only the flow can have one")
    run_at = task.run_at
    delay = min(max(run_at // _MICROSECOND, 0), MOST) if isinstance(run_at, timedelta) else None
    try:
        return _word(task.flow, task.behind, task.feeds, None if task.behind is None else delay)
    except ValueError as problem:
        raise ValueError(f"task {task.id} ({task.name}) cannot be stored: {problem}") from None


def stored_member_word(task: StoredTask) -> bytes:
    """Return the place in its flow of a task that another store had.

    :raises ValueError: as :func:`member_word` does.
    """
    assert task.flow is not None
    if task.unique is not None:
        raise ValueError(f"task {task.id} ({task.name}) of a flow has a unique key; only the flow can have one")
    delay = None if task.opening_delay is None else min(int(task.opening_delay * 1e6 + 0.5), MOST)
    return _word(task.flow, task.behind, task.feeds, delay)


@functools.lru_cache(maxsize=256)
def _word(flow: str, behind: int | None, feeds: tuple[Feed, ...], delay: int | None) -> bytes:
    check_text(flow, "id of a flow")
    for n in (0 if behind is None else behind, *(feed.gate for feed in feeds)):
        if not 0 <= n <= LARGEST_GATE:
            raise ValueError(f"a gate has the number {n}, which is not between 0 and {LARGEST_GATE:,}")
    flow_id = flow.encode()
    flags = (0 if behind is None else IS_BEHIND) | (0 if delay is None else IS_DELAYED)
    fed = b"".join([_FEED.pack(2 * feed.gate + feed.needs_success) for feed in feeds])
    word = _PLACE.pack(MARK[0], flags, behind or 0, delay or 0, min(len(flow_id), 0xFFFF)) + flow_id + fed
    if len(word) > LONGEST:
        raise ValueError(f"it feeds {len(feeds):,} gates; let it feed one gate, and a task behind that feed the others")
    return word


@functools.lru_cache(maxsize=256)
def read_member(word: bytes) -> Member:
    """Read what :func:`member_word` returned.

    :raises ValueError: if it is none.
    """
    mark, flags, behind, delay, length = _PLACE.unpack_from(word)
    at = _PLACE.size + length
    if mark != MARK[0] or len(word) < at:
        raise ValueError("the place of a task in its flow is cut short")
    feeds = tuple(Feed(fed // 2, bool(fed % 2)) for (fed,) in _FEED.iter_unpack(word[at:]))
    return Member(
        word[_PLACE.size : at].decode(),
        behind if flags & IS_BEHIND else None,
        feeds,
        delay / 1e6 if flags & IS_DELAYED else None,
    )
