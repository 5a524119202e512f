"""Waiting in tests: for a condition, not for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar, overload

__all__ = ["await_until", "wait_until"]

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float = 30.0, what: str = "") -> T:
    """Call a predicate again and again until it returns something true.

    :param predicate: called without arguments.
    :param timeout: seconds after which to give up.
    :param what: what is waited for, for the error.
    :return: what the predicate returned.
    :raises AssertionError: if it returned nothing true in time.
    """
    for pause in _pauses(timeout):
        value = predicate()
        if value:
            return value
        time.sleep(pause)
    raise AssertionError(_gave_up(what, predicate, timeout))


@overload
async def await_until(predicate: Callable[[], Awaitable[T]], timeout: float = 30.0, what: str = "") -> T: ...
@overload
async def await_until(predicate: Callable[[], T], timeout: float = 30.0, what: str = "") -> T: ...


async def await_until(predicate: Callable[[], Any], timeout: float = 30.0, what: str = "") -> Any:
    """Wait without blocking the event loop; see :func:`wait_until`. The predicate may also be a coroutine function."""
    for pause in _pauses(timeout):
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        await asyncio.sleep(pause)
    raise AssertionError(_gave_up(what, predicate, timeout))


def _pauses(timeout: float) -> Iterator[float]:
    """Yield the pauses between looks, short at first; a last look follows the end of the time."""
    give_up = time.monotonic() + timeout
    pause = 0.001
    while (left := give_up - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(pause * 1.5, 0.05)
    yield 0.0


def _gave_up(what: str, predicate: Callable[[], object], timeout: float) -> str:
    return f"waited {timeout:g} s in vain for {what or getattr(predicate, '__qualname__', predicate)}"
