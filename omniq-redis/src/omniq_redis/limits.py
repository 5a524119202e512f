"""Limits, as they go to the scripts and come back; ``lua/parts/limits.lua`` says how they are kept.

What a task has of them, its *limited word*, stands in its order in the place of its unique key;
``lua/parts/limited.lua`` draws it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from struct import Struct
from typing import Any

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.limit import Limit, Limited, LimitUsage, Rate, Scope, limit_id, line_id
from omniq.storage.corrupt_records import corrupt
from omniq.storage.records import corrupt_limit, dump_limit, load_limit, unreadable_limit
from omniq.storage.times import from_micros, span
from omniq.storage.validation import UNREADABLE, check_text
from omniq.task import NewTask, StoredTask
from omniq_redis.times import LATEST, microseconds

__all__ = [
    "LIMITED",
    "limits_of",
    "line_words",
    "new_limited_word",
    "pack_limit",
    "read_limited",
    "scope_words",
    "stored_limited_word",
    "usage_of",
]

LIMITED = b"\xfe"
"""What a limited word begins with, and no text does."""
LONGEST = 0xFFFE
HAS_KEY, HAS_LIMIT, IS_DEBOUNCED, HAS_WORD = 1, 2, 4, 8
_WORD = Struct(">BB16sHHQ")
_NUMBERS = Struct(">QQQQQQ16s")
_REVISION = 8
"""Bytes that stand before the check."""
_CHECK = 16
"""Digits that stand before the numbers, and behind them of the weights."""


def new_limited_word(task: NewTask, word: bytes | None) -> bytes:
    """Return the limited word of a new task.

    :param word: its unique key, or its place in its flow.
    :raises ValueError: if it is too long to be stored.
    """
    # The script puts the time of the first one there.
    first = None if task.debounce is None else 0 if task.debounce.max_wait is None else span(task.debounce.max_wait)
    return _limited_word(task, first, word)


def stored_limited_word(task: StoredTask, word: bytes | None) -> bytes:
    """Return the limited word of a task that another store had.

    :param word: as for :func:`new_limited_word`.
    :raises ValueError: as there.
    """
    return _limited_word(task, None if task.first_at is None else microseconds(task.first_at), word)


def _limited_word(task: NewTask | StoredTask, first: int | None, word: bytes | None) -> bytes:
    beginning = _beginning(task.queue, task.key, task.limit, first)
    whole = beginning if word is None else beginning[:1] + bytes([beginning[1] | HAS_WORD]) + beginning[2:] + word
    if len(whole) > LONGEST:
        raise ValueError(f"task {task.id} ({task.name}) cannot be stored: its keys and its limit are too long")
    return whole


@functools.lru_cache(maxsize=1024)
def _beginning(queue: str, key: str | None, limit: str | None, first: int | None) -> bytes:
    flags = (
        (0 if key is None else HAS_KEY) | (0 if limit is None else HAS_LIMIT) | (0 if first is None else IS_DEBOUNCED)
    )
    for text in (key, limit):
        if text is not None:
            check_text(text, "key or named limit")
    key_word, limit_word = (key or "").encode(), (limit or "").encode()
    line = _line(queue, key, limit)
    lengths = min(len(key_word), 0xFFFF), min(len(limit_word), 0xFFFF)
    return _WORD.pack(LIMITED[0], flags, line, *lengths, first or 0) + key_word + limit_word


@functools.lru_cache(maxsize=1024)
def read_limited(word: bytes) -> tuple[Limited, bytes | None]:
    """Read a limited word.

    :return: what it says, and the unique key or the place in a flow that stands behind it.
    :raises ValueError: if it is none.
    """
    _, flags, _, key, limit, first = _WORD.unpack_from(word)
    behind_key = _WORD.size + key
    stop = behind_key + limit
    if len(word) < stop:
        raise ValueError("what a task has of limits is cut short")
    limited = Limited(
        word[_WORD.size : behind_key].decode() if flags & HAS_KEY else None,
        word[behind_key:stop].decode() if flags & HAS_LIMIT else None,
        from_micros(first) if flags & IS_DEBOUNCED else None,
    )
    return limited, word[stop:] if flags & HAS_WORD else None


def pack_limit(limit: Limit, expected: int | None) -> list[bytes]:
    """Return the arguments of ``put_limit``."""
    each = limit.per_key
    weights = {check_text(key, "key").encode(): repr(float(weight)).encode() for key, weight in limit.weights.items()}
    numbers = _NUMBERS.pack(
        *_rule(limit.concurrency, limit.rate),
        *(_rule(None, None) if each is None else _rule(each.concurrency, each.rate)),
        _check_of_weights(weights),
    )
    text = _with_weights(dump_limit(evolve(limit, revision=0)), {})
    words = [check_text(limit.id, "id of a limit").encode(), b"" if expected is None else b"%d" % expected]
    return [*words, numbers, text.encode(), *chain.from_iterable(weights.items())]


def _with_weights(text: str | bytes, weights: Mapping[str, float]) -> str:
    """Return a limit as text with other weights: they stand apart, so that no claim reads them to check the limit."""
    return json.dumps({**json.loads(text), "weights": weights}, separators=(",", ":"))


def _check_of_weights(weights: Mapping[bytes, bytes]) -> bytes:
    if not weights:
        return b""
    return _digits(b"".join(b"%d:%b%b" % (len(key), key, weight) for key, weight in sorted(weights.items())))


def _digits(text: bytes) -> bytes:
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()[:_CHECK].encode()


def _rule(concurrency: int | None, rate: Rate | None) -> tuple[int, int, int]:
    return (concurrency or 0, *((0, 0) if rate is None else (rate.interval, rate.burst)))


def limits_of(found: Sequence[Any], problems: list[CorruptRecord]) -> list[Limit]:
    """Read what is stored of limits; what cannot be read is an :class:`~omniq.limit.UnreadableLimit`.

    :param found: ids, what is stored of each, and the weights of its keys.
    :param problems: where it is noted what cannot be read.
    """
    limits = [
        _limit_of(name, stored, weights, problems)
        for name, stored, weights in zip(*found, strict=True)
        if stored is not None
    ]
    return [limit for limit in limits if limit is not None]


def _limit_of(word: bytes, stored: bytes, weights: Sequence[bytes], problems: list[CorruptRecord]) -> Limit | None:
    name = word.decode("utf-8", "surrogateescape")
    revision, check, text = stored[:_REVISION], stored[_REVISION:][:_CHECK], stored[_REVISION + _CHECK :]
    try:
        if _digits(revision + text) != check:
            raise ValueError("it is not as it was written")
        (*rules, check_of_weights) = _NUMBERS.unpack_from(text)
        stored_weights = dict(zip(weights[::2], weights[1::2], strict=True))
        readable = _read_weights(stored_weights)
        if _check_of_weights(stored_weights) != check_of_weights.rstrip(b"\0"):
            why = "the weights of its keys are not as they were written; set it anew with: omniq limits set"
            problems.append(corrupt("limit", name, why))
            if not any(rules) and not readable:
                return None  # what is left of it limits nothing
        limit = load_limit(_with_weights(text[_NUMBERS.size :], readable), name)
        return evolve(limit, revision=int.from_bytes(revision, "big"))
    except CorruptRecord as error:
        problem = error
    except UNREADABLE as error:
        problem = corrupt_limit(name, error)
        problem.__cause__ = error
    problems.append(problem)
    return unreadable_limit(name, problem)


def _read_weights(stored: Mapping[bytes, bytes]) -> dict[str, float]:
    """Return the weights of keys but those that cannot be read: these count as 1, and hold nothing back."""
    weights: dict[str, float] = {}
    for key, weight in stored.items():
        with contextlib.suppress(ValueError):
            if 0.01 <= float(weight) <= 100:
                weights[key.decode()] = float(weight)
    return weights


def scope_words(scopes: Iterable[Scope]) -> list[bytes]:
    """Return the arguments of ``limit_usage``."""
    words: list[bytes] = []
    for scope in scopes:
        if scope.queue is None:
            words += (b"n", (scope.name or "").encode(), b"")
        elif scope.key is None:
            words += (b"q", scope.queue.encode(), b"")
        else:
            words += (b"k", scope.queue.encode(), scope.key.encode())
    return words


def line_words(queue: str, key: str | None, limit: str | None) -> tuple[bytes, bytes]:
    """Return the arguments of ``lost_lines`` for a line."""
    return queue.encode(), _line(queue, key, limit)


def _line(queue: str, key: str | None, limit: str | None) -> bytes:
    return bytes.fromhex(line_id(queue, key, limit)).ljust(16, b"\0")[:16]


def usage_of(scope: Scope, found: Sequence[Any]) -> LimitUsage:
    """Read what ``limit_usage`` returned of a scope."""
    stored, weights, running, due, held = found
    name = limit_id(scope.queue, scope.name).encode()
    limit = None if stored is None else _limit_of(name, stored, weights, [])
    return LimitUsage(
        scope=scope,
        limit=limit if scope.key is None or limit is None else limit.per_key,
        running=running,
        next_start=from_micros(min(max(due, 0), LATEST)) if due else None,
        held_keys=held,
    )
