"""What can be said of how a task runs; checked where it is written, so that mistakes fail there and not in a worker."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeAlias

from attrs import evolve, field, frozen

from omniq.limit import Debounce
from omniq.retry import Exponential, RetryPolicy
from omniq.storage.durations import duration, when
from omniq.task import When

__all__ = ["Duration", "TaskOptions", "check_count", "check_headers", "check_queue", "check_queues", "check_text"]

Duration: TypeAlias = float | timedelta
"""Seconds (int or float) or a timedelta."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_HEADER = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
LONGEST_TEXT = 500
LONGEST_NAME = 300
"""Characters of a key or a named limit."""
MOST_TAGS = 50
MOST_HEADERS = 32
LARGEST_HEADERS = 8192
"""Bytes of all names and values in UTF-8."""


def check_queue(queue: object) -> str:
    """Return a queue's name if it is one.

    :raises TypeError: if it is no string.
    :raises ValueError: if it is empty, too long, or has other characters than every store can hold.
    """
    if not isinstance(queue, str):
        raise TypeError(f"queue must be a string, not {queue!r}")
    if not _QUEUE.fullmatch(queue):
        raise ValueError(
            f"queue {queue!r} cannot be used: take 1 to 100 letters, digits, dots, hyphens and underscores, "
            "the first a letter or digit"
        )
    return queue


def check_queues(queues: Iterable[str]) -> tuple[str, ...]:
    """Return the names of queues if they are names."""
    if isinstance(queues, str):
        raise TypeError(f"queues must be a list of names, not the string {queues!r}; write [{queues!r}]")
    names = tuple(dict.fromkeys(check_queue(queue) for queue in queues))
    if not names:
        raise ValueError("queues must name at least one queue")
    return names


def check_count(value: object, name: str) -> int:
    """Return a whole number of 1 or more.

    :raises ValueError: if it is not one; names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, not {value!r}")
    return value


def check_text(value: object, name: str) -> str:
    """Return a short text that every store can hold.

    :param name: what it is, to be named in the error.
    :raises TypeError: if it is no string.
    :raises ValueError: if it is empty, too long, or holds a NUL or half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")
    if not 0 < len(value) <= LONGEST_TEXT:
        raise ValueError(f"{name} must have 1 to {LONGEST_TEXT} characters, not {len(value)}")
    if _UNSTORABLE.search(value):
        raise ValueError(f"{name} must be text without NUL and lone surrogates, not {value!r}")
    return value


def _priority(priority: object) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority must be an int, not {priority!r}")
    if not -100 <= priority <= 100:
        raise ValueError(f"priority must be between -100 and 100, not {priority}")
    return priority


def _max_retries(max_retries: object) -> int:
    if isinstance(max_retries, bool) or not isinstance(max_retries, int):
        raise TypeError(f"max_retries must be an int, not {max_retries!r}")
    if not 0 <= max_retries <= 1_000_000:
        raise ValueError(f"max_retries must be between 0 and 1,000,000, not {max_retries}")
    return max_retries


def _retry(retry: object) -> RetryPolicy:
    if not isinstance(retry, RetryPolicy):
        raise TypeError(f"retry must be a RetryPolicy such as Exponential(delay=1), not {retry!r}")
    return retry


def _timeout(timeout: Duration | None) -> float | None:
    if timeout is None:
        return None
    seconds = duration(timeout, "timeout")
    if seconds == 0:
        raise ValueError("timeout must be more than zero seconds; None means no timeout")
    return seconds


def _result_ttl(result_ttl: Duration) -> float:
    return duration(result_ttl, "result_ttl")


def _unique(unique: str | bool | None) -> str | bool | None:
    if unique is None or unique is False:
        return None
    if unique is True:
        return True
    if not isinstance(unique, str):
        raise TypeError(
            f"unique must be a string, or True for one live task per function and arguments, not {unique!r}"
        )
    return check_text(unique, "unique")


def _tags(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise TypeError(f"tags must be a list of strings, not the string {tags!r}; write [{tags!r}]")
    given = tuple(dict.fromkeys(check_text(tag, "a tag") for tag in tags))
    if len(given) > MOST_TAGS:
        raise ValueError(f"a task has at most {MOST_TAGS} tags, not {len(given)}")
    return given


def check_headers(headers: object) -> Mapping[str, str]:
    """Return a copy of a task's headers, which cannot be changed.

    :raises TypeError: if they are no mapping of texts.
    :raises ValueError: if they are too many or too large, or a name cannot be used.
    """
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping of names to texts, not {headers!r}")
    if len(headers) > MOST_HEADERS:
        raise ValueError(f"a task has at most {MOST_HEADERS} headers, not {len(headers)}")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers must be texts, not {name!r}: {value!r}")
        if not _HEADER.fullmatch(name):
            raise ValueError(
                f"header {name!r} cannot be used: take 1 to 64 lower-case letters, digits, dots, hyphens and "
                "underscores, the first a letter or digit"
            )
    size = sum(len(name) + len(value.encode("utf-8", "surrogatepass")) for name, value in headers.items())
    if size > LARGEST_HEADERS:
        raise ValueError(f"headers take at most {LARGEST_HEADERS:,} bytes in all, not {size:,}")
    return MappingProxyType(dict(headers))


def _name(value: str | None, what: str) -> str | None:
    if value is None:
        return None
    text = check_text(value, what)
    if len(text) > LONGEST_NAME:
        raise ValueError(f"{what} must have 1 to {LONGEST_NAME} characters, not {len(text)}")
    return text


def _key(value: str | None) -> str | None:
    return _name(value, "key")


def _limit(value: str | None) -> str | None:
    return _name(value, "limit")


def _debounce(value: Debounce | None) -> Debounce | None:
    if value is not None and not isinstance(value, Debounce):
        raise TypeError(f'debounce must be a Debounce such as Debounce("key", wait=5), not {value!r}')
    return value


def _run_at(value: Duration | datetime | None) -> When | None:
    return None if value is None else when(value, "run_at")


def _expires(value: Duration | datetime | None) -> When | None:
    return None if value is None else when(value, "expires")


@frozen(kw_only=True)
class TaskOptions:
    """How a task is to run. Every field is checked on construction; the error names the field and what to write."""

    queue: str = field(default="default", converter=check_queue)
    priority: int = field(default=0, converter=_priority)
    """−100…100, larger first."""
    max_retries: int = field(default=3, converter=_max_retries)
    retry: RetryPolicy = field(factory=Exponential, converter=_retry)
    timeout: float | None = field(default=None, converter=_timeout)
    """Seconds that one attempt may take."""
    result_ttl: float = field(default=86400.0, converter=_result_ttl)
    """Seconds that the record and its result are kept after the end."""
    unique: str | bool | None = field(default=None, converter=_unique)
    """At most one live task has this key; True: one for each function and arguments."""
    run_at: When | None = field(default=None, converter=_run_at)
    expires: When | None = field(default=None, converter=_expires)
    tags: tuple[str, ...] = field(default=(), converter=_tags)
    headers: Mapping[str, str] = field(factory=dict, converter=check_headers)
    """Short texts that travel beside the arguments."""
    key: str | None = field(default=None, converter=_key)
    """Whose task it is within its queue, for the limit of the queue."""
    limit: str | None = field(default=None, converter=_limit)
    """The named limit that it shares with tasks of any queue."""
    debounce: Debounce | None = field(default=None, converter=_debounce)
    """Whether it takes the place of one that waits with the same key."""

    def __attrs_post_init__(self) -> None:
        if self.debounce is not None and self.unique is not None:
            raise ValueError("give either debounce or unique, not both: the key of a debounce is a unique one")

    def using(self, *, delay: Duration | None = None, run_at: datetime | None = None, **values: Any) -> TaskOptions:
        """Return a copy with other values; None leaves a value as it is.

        :param values: of the other fields, by their names.
        :raises ValueError: if ``delay`` and ``run_at`` are both given, or a value cannot be used.
        """
        if delay is not None and run_at is not None:
            raise ValueError("give either delay or run_at, not both")
        if run_at is not None and not isinstance(run_at, datetime):
            raise TypeError(f"run_at must be an aware datetime, not {run_at!r}; for a duration there is delay")
        start = run_at if delay is None else timedelta(seconds=duration(delay, "delay"))
        changes = {**values, "run_at": start}
        return evolve(self, **{name: value for name, value in changes.items() if value is not None})
