"""What a function is given beside its arguments: ``Depends`` and ``WorkerState``, and what is to be made for them.

A marker as a parameter's default says that the parameter is injected. Everything that can be wrong with that is refused
where the function is declared; what is left for the attempt is a frozen tree of providers. Nothing is made here, see
:mod:`omniq._worker.injection`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from enum import Enum, auto
from types import CodeType
from typing import Any, Literal, TypeAlias, TypeVar, overload

from attrs import field, frozen

__all__ = ["Depends", "Injection", "Kind", "Overrides", "Provider", "Scope", "WorkerState", "injection_of", "stand_in"]

T = TypeVar("T")
Scope: TypeAlias = Literal["task", "worker"]
Factory: TypeAlias = Callable[..., Any]
Overrides: TypeAlias = Mapping[Factory, Factory]
"""Which factory stands in for which other one."""


class _State:
    """The default of a parameter that is given the lifespan's state."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "WorkerState()"


class _Dependency:
    """The default of a parameter that is given what a factory makes."""

    __slots__ = ("factory", "scope")

    def __init__(self, factory: Factory, scope: Scope) -> None:
        self.factory = factory
        self.scope = scope

    def __repr__(self) -> str:
        scope = "" if self.scope == "task" else f", scope={self.scope!r}"
        return f"Depends({_name(self.factory)}{scope})"


# They stand where a value of the parameter's type stands, and for a type checker they are one: hence functions. The
# capitals are those of the field's own terms.


def WorkerState() -> Any:  # noqa: N802  # see above
    """Return the mark, as its default, of a parameter that is given what the queue's lifespan yielded."""
    return _State()


@overload
def Depends(factory: Callable[..., AsyncGenerator[T, Any]], *, scope: Scope = "task") -> T: ...


@overload
def Depends(factory: Callable[..., Generator[T, Any, Any]], *, scope: Scope = "task") -> T: ...


# A plain function may return an iterator as well, such as a file or a cursor: what is injected cannot be told.
@overload
def Depends(factory: Callable[..., AsyncIterator[Any] | Iterator[Any]], *, scope: Scope = "task") -> Any: ...


@overload
def Depends(factory: Callable[..., Coroutine[Any, Any, T]], *, scope: Scope = "task") -> T: ...


@overload
def Depends(factory: Callable[..., contextlib._GeneratorContextManager[T]], *, scope: Scope = "task") -> T: ...


@overload
def Depends(factory: Callable[..., contextlib._AsyncGeneratorContextManager[T]], *, scope: Scope = "task") -> T: ...


@overload
def Depends(factory: Callable[..., T], *, scope: Scope = "task") -> T: ...


def Depends(factory: Factory, *, scope: Scope = "task") -> Any:  # noqa: N802  # see above
    """Mark a parameter of a task or of another dependency, as its default, that is given what a factory makes.

    :param factory: a function, coroutine function, generator function or async generator function; of the last two,
        what they yield is injected, and they go on when it is not needed any more. Its own parameters are injected as
        well, or have other defaults, which they keep.
    :param scope: ``"task"``: made once for each attempt, and left before its outcome is recorded. ``"worker"``: made
        once for each worker (and each child process) at the first need, and left after the last task has ended.
    :return: the mark, which type checkers take for what is injected.
    :raises TypeError: if it is no function.
    :raises ValueError: if there is no such scope.
    """
    if not callable(factory):
        raise TypeError(f"Depends takes a function that makes the dependency, not {factory!r}")
    if scope not in ("task", "worker"):
        raise ValueError(f"the scope of a dependency must be 'task' or 'worker', not {scope!r}")
    try:
        hash(factory)
    except TypeError:
        raise TypeError(f"Depends finds what was made by its factory, and {factory!r} is not hashable") from None
    return _Dependency(factory, scope)


class Kind(Enum):
    """What calling a factory returns."""

    PLAIN = auto()
    COROUTINE = auto()
    MANAGER = auto()
    ASYNC_MANAGER = auto()


@frozen
class Provider:
    """A factory and what it is given in turn. Equal ones make the same, so that one of them is enough."""

    factory: Factory
    scope: Scope
    kind: Kind
    parameters: Injection
    make: Factory = field(eq=False)
    """The factory; of a generator function: what makes a context manager of it."""


Injection: TypeAlias = tuple[tuple[str, Provider | None], ...]
"""Parameters by name, and what provides each; None: the lifespan's state."""


def injection_of(function: Factory, overrides: Overrides | None = None, *, is_async: bool) -> Injection:
    """Return what a task function is given beside its arguments.

    :param overrides: factories that stand in for others.
    :param is_async: whether the function is a coroutine function; no other can use asynchronous dependencies.
    :raises TypeError: if a dependency cannot be made, or not for this function.
    """
    return _injection(function, overrides or {}, is_async, ())


def stand_in(value: Any) -> Factory:
    """Return the factory that a test means by a value: a function, or what it is to make."""
    return value if callable(value) else functools.partial(_constant, _Holder(value))


class _Holder:
    # Found by its identity, so that the value need not be hashable.
    def __init__(self, value: Any) -> None:
        self.value = value


def _constant(holder: _Holder) -> Any:
    return holder.value


def _injection(function: Factory, overrides: Overrides, is_async: bool, within: tuple[Factory, ...]) -> Injection:
    found: list[tuple[str, Provider | None]] = []
    for parameter in _parameters(function):
        marker = parameter.default
        if isinstance(marker, (_State, _Dependency)):
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise TypeError(f"{_name(function)}: {parameter.name!r} is injected, and so cannot be positional only")
            provider = None
            if isinstance(marker, _Dependency):
                provider = _provider(marker, overrides, is_async, (*within, function))
            found.append((parameter.name, provider))
        elif within and _is_required(parameter):
            raise TypeError(
                f"{_name(function)} cannot make a dependency: nothing gives it {parameter.name!r}, which needs a "
                "default such as Depends(…) or WorkerState()"
            )
    return tuple(found)


def _parameters(function: Factory) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError, NameError):  # a built-in one, say
        return []


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _provider(marker: _Dependency, overrides: Overrides, is_async: bool, within: tuple[Factory, ...]) -> Provider:
    factory = overrides.get(marker.factory, marker.factory)
    if factory in within:
        raise TypeError(f"{_name(factory)} depends on itself")
    make, kind = _kind(factory)
    if kind in (Kind.COROUTINE, Kind.ASYNC_MANAGER) and not is_async:
        raise TypeError(
            f"{_name(within[0])} is a plain function, for which no event loop runs: it cannot depend on "
            f"{_name(factory)}, which is asynchronous; make that one plain, or this one async"
        )
    parameters = _injection(factory, overrides, is_async, within)
    if marker.scope == "worker":
        for _, provider in parameters:
            if provider is not None and provider.scope == "task":
                raise TypeError(
                    f"{_name(factory)} has the scope 'worker', and would outlive {_name(provider.factory)}, on which "
                    "it depends; give that one scope='worker', too"
                )
    return Provider(factory, marker.scope, kind, parameters, make)


def _kind(factory: Factory) -> tuple[Factory, Kind]:
    called = (factory, type(factory).__call__)
    if any(map(inspect.isasyncgenfunction, called)):
        return contextlib.asynccontextmanager(factory), Kind.ASYNC_MANAGER
    if any(map(inspect.isgeneratorfunction, called)):
        return contextlib.contextmanager(factory), Kind.MANAGER
    if any(map(inspect.iscoroutinefunction, called)):
        return factory, Kind.COROUTINE
    # What contextlib has decorated already is meant as the generator that it was.
    return factory, _DECORATED.get(getattr(factory, "__code__", None), Kind.PLAIN)


def _nothing() -> Iterator[None]:
    yield


async def _nothing_async() -> AsyncIterator[None]:
    yield


_DECORATED: dict[CodeType | None, Kind] = {
    contextlib.contextmanager(_nothing).__code__: Kind.MANAGER,
    contextlib.asynccontextmanager(_nothing_async).__code__: Kind.ASYNC_MANAGER,
}
"""What contextlib's decorators return, known by its code."""


def _name(factory: Factory) -> str:
    return str(getattr(factory, "__qualname__", None) or repr(factory))
