"""How a new task is handed to the scripts, and the part of it that only clients read.

The scripts write and read the fixed part of each record (``lua/parts/task.lua`` draws it); the rest of an order is its
*rest*, which the server keeps and never reads: a line of JSON with what is the same for most tasks of one function, so
that writing and reading it is a look into a cache, and the task's body.
"""

from __future__ import annotations

import functools
import json
from datetime import timedelta
from struct import Struct
from typing import NamedTuple

from omniq.storage.times import span
from omniq.storage.validation import check_text
from omniq.task import NewTask, StoredTask, When
from omniq_redis.limits import new_limited_word, stored_limited_word
from omniq_redis.members import member_word, stored_member_word
from omniq_redis.times import LATEST, microseconds

__all__ = ["Options", "is_simple", "load_options", "name_prefix", "order_words", "stored_words", "tag_part"]

MOST = 0xFFFF_FFFF
_WHEN = Struct(">BQQ")
_TIMES = Struct(">QQQ")
_KIND = Struct(">QIBHH")


class Options(NamedTuple):
    """What of an order is in the first line of its body."""

    name: str
    max_retries: int
    tags: tuple[str, ...]
    result_ttl: float


# typed: 1 and 1.0 are one key otherwise, and what comes back would depend on who was first.
@functools.lru_cache(maxsize=4096, typed=True)
def _dump_options(name: str, max_retries: int, tags: tuple[str, ...], result_ttl: float) -> bytes:
    for text in (name, *tags):
        check_text(text, "name or tag")  # JSON would take half of a surrogate pair, which no reader accepts
    return json.dumps((name, max_retries, tags, result_ttl)).encode() + b"\n"


@functools.lru_cache(maxsize=4096)
def load_options(text: bytes) -> Options:
    """Read the first line of a body.

    :raises ValueError: if it is none.
    """
    name, max_retries, tags, result_ttl = json.loads(text)
    if not (
        isinstance(name, str)
        and isinstance(max_retries, int)
        and isinstance(result_ttl, int | float)
        and all(isinstance(tag, str) for tag in tags)
    ):
        raise ValueError("options of the wrong types")
    return Options(name, max_retries, tuple(tags), result_ttl)


def name_prefix(name: str) -> bytes:
    """Return what the bodies of all tasks of one name begin with."""
    return f"[{json.dumps(name)},".encode()


def tag_part(tag: str) -> bytes:
    """Return what the body of every task with a tag holds; those of some others may, too."""
    return json.dumps(tag).encode()


@functools.lru_cache(maxsize=4096)
def _kind(queue: str, priority: int, max_retries: int, result_ttl: float) -> bytes:
    return _WHEN.pack(0, 0, 0) + _kind_words(queue, priority, max_retries, result_ttl, None)


def _kind_words(queue: str, priority: int, max_retries: int, result_ttl: float, key: bytes | None) -> bytes:
    name = queue.encode()
    length = 0 if key is None else len(key) + 1
    retries = min(max(max_retries, 0), MOST)
    return _KIND.pack(span(result_ttl), retries, 100 - priority, len(name), length) + name + (key or b"")


def _when(task: NewTask) -> bytes:
    run_at = task.run_at if task.debounce is None else timedelta(seconds=task.debounce.wait)
    run, expires = _instant(run_at), _instant(task.expires)
    flags = 0
    if run is not None:
        flags |= 1 if isinstance(run_at, timedelta) else 2
    if expires is not None:
        flags |= 4 if isinstance(task.expires, timedelta) else 8
    return _WHEN.pack(flags, run or 0, expires or 0)


def _instant(when: When | None) -> int | None:
    if when is None:
        return None
    if isinstance(when, timedelta):
        return min(max(when // timedelta(microseconds=1), 0), LATEST)
    return microseconds(when)


def is_simple(task: NewTask) -> bool:
    """Tell whether a task is ready at once, never expires, has no unique key and no limit, and is of no flow."""
    return (
        task.run_at is None
        and task.expires is None
        and task.unique is None
        and task.flow is None
        and task.key is None
        and task.limit is None
    )


def _key(task: NewTask) -> bytes | None:
    if task.flow is not None:
        word: bytes | None = member_word(task)
    else:
        word = None if task.unique is None else task.unique.encode()
    if task.key is None and task.limit is None and task.debounce is None:
        return word
    return new_limited_word(task, word)


def order_words(task: NewTask) -> tuple[bytes, bytes, bytes]:
    """Return the three arguments with which a script stores a task: id, head, body."""
    if is_simple(task):
        head = _kind(task.queue, task.priority, task.max_retries, task.result_ttl)
    else:
        key = _key(task)
        head = _when(task) + _kind_words(task.queue, task.priority, task.max_retries, task.result_ttl, key)
    options = _dump_options(task.name, task.max_retries, task.tags, task.result_ttl)
    return task.id.encode(), head, options + task.body


def stored_words(task: StoredTask) -> bytes:
    """Return the order of a task that another store had, but for its sequence number."""
    key = None if task.unique is None else task.unique.encode()
    if task.flow is not None:
        key = stored_member_word(task)
    if task.limited is not None:
        key = stored_limited_word(task, key)
    expires = 0 if task.expires_at is None else microseconds(task.expires_at)
    times = _TIMES.pack(microseconds(task.created_at), microseconds(task.run_at), expires)
    options = _dump_options(task.name, task.max_retries, task.tags, task.result_ttl)
    return times + _kind_words(task.queue, task.priority, task.max_retries, task.result_ttl, key) + options + task.body
