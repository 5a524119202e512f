"""Synchronous twins of coroutine methods: one implementation, two ways to call it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

__all__ = ["sync"]

Q = ParamSpec("Q")
S = TypeVar("S")


class Runner(Protocol):
    """Runs coroutines for synchronous callers."""

    def run(self, coroutine: Coroutine[Any, Any, S], /) -> S: ...


O = TypeVar("O", bound=Runner)  # noqa: E741  # the owner; a longer name would be lost among the signature's own


def sync(method: Callable[Concatenate[O, Q], Coroutine[Any, Any, S]]) -> Callable[Concatenate[O, Q], S]:
    """Return the synchronous twin of a coroutine method named ``a…``."""

    @functools.wraps(method)
    def twin(self: O, /, *args: Q.args, **kwargs: Q.kwargs) -> S:
        return self.run(method(self, *args, **kwargs))

    twin.__name__ = method.__name__.removeprefix("a")
    owner, _, _ = method.__qualname__.rpartition(".")
    twin.__qualname__ = f"{owner}.{twin.__name__}"
    return twin
