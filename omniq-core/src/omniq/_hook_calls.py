"""Calls of plugins' hooks: what one of them raises is logged, and changes nothing for the others and for the caller.

An event is a plain call. A hook that stands around something is a generator: it runs up to its ``yield`` before, and
from there on afterwards. It is entered and left on the calling thread and in the caller's context, so that the context
variables that it sets are seen by what it stands around.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeAlias

import pluggy

from omniq._runtime.signals import noting_ctrl_c
from omniq.storage.escaping import get_logger

__all__ = ["Around", "Entered", "Foreign", "calling", "foreign", "surrounding"]

_log = get_logger("omniq.plugins")

_Generator: TypeAlias = Generator[Any, Any, Any]
_Step: TypeAlias = Callable[[_Generator], object]


class Foreign(Exception):
    """What foreign code has raised, which is its cause."""


@contextlib.contextmanager
def foreign() -> Iterator[None]:
    """Turn whatever a plugin's code raises into an error: one must end neither the program nor a worker's loop.

    :raises Foreign: its text says what was raised.
    """
    with noting_ctrl_c() as is_ctrl_c:
        try:
            yield
        except BaseException as error:
            if is_ctrl_c():
                raise
            raise Foreign(f"{type(error).__name__}: {error}") from error


def calling(caller: pluggy.HookCaller) -> Callable[..., None] | None:
    """Return what calls every implementation of an event's hook, each by itself; None if there is none.

    Pluggy's own call stops at the first that raises, and costs microseconds even where there is no implementation.
    """
    if not caller.get_hookimpls():
        return None

    def tell(**arguments: Any) -> None:
        for implementation in reversed(caller.get_hookimpls()):
            try:
                with foreign():
                    implementation.function(**{name: arguments[name] for name in implementation.argnames})
            except Foreign as raised:
                _ignore(caller.name, implementation.plugin_name, raised.__cause__)

    return tell


def surrounding(caller: pluggy.HookCaller) -> Around | None:
    """Return what enters every implementation of a hook that stands around something; None if there is none."""
    implementations = caller.get_hookimpls()
    return Around(caller.name, implementations) if implementations else None


class Around:
    """Enters the implementations of one hook, in the order in which they were registered.

    :param hook: the hook's name.
    :param implementations: as pluggy has them: in order of registration, but for those that are to be first or last.
    """

    def __init__(self, hook: str, implementations: Sequence[pluggy.HookImpl]) -> None:
        self._hook = hook
        self._implementations = sorted(implementations, key=lambda one: one.trylast - one.tryfirst)

    def __call__(self, **arguments: Any) -> Entered:
        """Run every implementation up to its ``yield``; one that raises before plays no further part."""
        entered = Entered(self._hook)
        for implementation in self._implementations:
            try:
                with foreign():
                    generator = implementation.function(**{name: arguments[name] for name in implementation.argnames})
                    entered.enter(implementation.plugin_name, generator)
            except Foreign as raised:
                _ignore(self._hook, implementation.plugin_name, raised.__cause__)
        return entered


class Entered:
    """The implementations that were entered, to be left once: by :meth:`leave` or :meth:`abandon`.

    :param hook: the hook's name.
    """

    def __init__(self, hook: str) -> None:
        self._hook = hook
        self._generators: list[tuple[str, _Generator]] = []
        self.yielded: list[tuple[str, Any]] = []
        """What each of them has yielded, and the name of its plugin."""

    def enter(self, plugin: str, generator: object) -> None:
        """Run one up to its ``yield``.

        :raises TypeError: if it has none.
        """
        if not isinstance(generator, Generator):
            raise TypeError(f"{self._hook} must be a generator, with one yield; it returned {generator!r}")
        try:
            value = next(generator)
        except StopIteration:
            raise TypeError(f"{self._hook} must yield once, and ended without a yield") from None
        self._generators.append((plugin, generator))
        self.yielded.append((plugin, value))

    def leave(self, value: object) -> None:
        """Run all of them to their end, the last one first; their ``yield`` gives the value."""
        self._leave(lambda generator: generator.send(value))

    def abandon(self, error: BaseException | None = None) -> None:
        """Do the same where there is no value: their ``yield`` raises the error, or they are closed if there is none.

        The error goes its way, whatever they make of it.
        """
        if error is None:
            self._leave(None)
        else:
            self._leave(lambda generator: generator.throw(error), error)

    def _leave(self, step: _Step | None, expected: BaseException | None = None) -> None:
        while self._generators:
            plugin, generator = self._generators.pop()
            try:
                with foreign():
                    if step is not None:
                        _take_last(step, generator, self._hook)
                    generator.close()
            except Foreign as raised:
                if raised.__cause__ is not expected:
                    _ignore(self._hook, plugin, raised.__cause__)

    def ignore(self, plugin: str, error: BaseException) -> None:
        """Log that what a plugin has yielded cannot be used."""
        _ignore(self._hook, plugin, error)


def _take_last(step: _Step, generator: _Generator, hook: str) -> None:
    try:
        step(generator)
    except StopIteration:
        return
    raise TypeError(f"{hook} must yield once, and yielded a second time")


def _ignore(hook: str | None, plugin: str, error: BaseException | None) -> None:
    _log.error("%s of plugin %s raised; ignored", hook, plugin, exc_info=error)
