"""Whether a function that is declared under a name that is taken is the one that has it, or another one by mistake.

A module may be executed again: a script that is imported by its name, too, ``importlib.reload``, a cell of a notebook.
Its functions are new objects then, and take the place of the old ones. What one execution of a module declares twice
under one name are two functions: a factory that was called twice, or two functions behind a decorator that hides their
names. Without a check the second would run in place of the first.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

__all__ = ["is_redefinition", "module_code", "place_of"]

_DEEPEST = 10
"""How many decorators are looked through."""


def module_code() -> CodeType | None:
    """Return the code of the module, script or cell whose execution has come to this call; None if there is none.

    Each execution that starts from its source has a code object of its own.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            return frame.f_code
        frame = frame.f_back
    return None


def is_redefinition(
    before: Callable[..., Any], after: Callable[..., Any], code_before: CodeType | None, code_after: CodeType | None
) -> bool:
    """Tell whether a function may take the place of another one that has its name.

    :param before: the function that has the name.
    :param after: the one that is declared now.
    :param code_before: what :func:`module_code` returned when ``before`` was declared.
    :param code_after: what it returns now.
    """
    if _are_alike(before, after):
        return True
    return _names(before) == _names(after) and (
        _is_of_another_module_object(before, after) or _is_executed_again(code_before, code_after)
    )


def place_of(function: Callable[..., Any]) -> str:
    """Return where a function was defined, for messages."""
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", None) or repr(function)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"


def _is_of_another_module_object(before: Callable[..., Any], after: Callable[..., Any]) -> bool:
    code, other = getattr(before, "__code__", None), getattr(after, "__code__", None)
    return (
        code is not None
        and other is not None
        and code.co_filename == other.co_filename
        and getattr(before, "__globals__", None) is not getattr(after, "__globals__", None)
    )


def _is_executed_again(before: CodeType | None, after: CodeType | None) -> bool:
    if before is None or after is None or before is after:
        return False
    # A cell that was edited has another file name, where it has one at all.
    return before.co_filename == after.co_filename or (_is_interactive(before) and _is_interactive(after))


def _is_interactive(code: CodeType) -> bool:
    name = code.co_filename
    return name.startswith("<") or "ipykernel" in name or "ipython" in name


def _are_alike(one: Any, other: Any, depth: int = _DEEPEST) -> bool:
    """Tell whether two values do the same: functions of one place, with what they hold alike."""
    if one is other:
        return True
    if depth == 0 or type(one) is not type(other):
        return False
    code, its_code = getattr(one, "__code__", None), getattr(other, "__code__", None)
    if isinstance(code, CodeType) and isinstance(its_code, CodeType):
        places = [(it.co_filename, it.co_firstlineno, it.co_code) for it in (code, its_code)]
        mine, others = _held(one), _held(other)
        return (
            places[0] == places[1]
            and one.__qualname__ == other.__qualname__
            and len(mine) == len(others)
            and all(_are_alike(a, b, depth - 1) for a, b in zip(mine, others, strict=True))
        )
    if isinstance(one, functools.partial):
        mine, others = [one.func, one.args, one.keywords], [other.func, other.args, other.keywords]
        return all(_are_alike(a, b, depth - 1) for a, b in zip(mine, others, strict=True))
    if inspect.isclass(one):
        return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
    try:
        return bool(one == other)
    except Exception:  # of an array, say, which is no single answer
        return False


def _held(function: Any) -> list[Any]:
    """Return what a function holds beside its code: variables of functions around it, and defaults."""
    held: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not set yet
            held.append(None)
    return [*held, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _names(function: Any) -> list[str]:
    return list(_names_within(function, _DEEPEST))


def _names_within(function: Any, depth: int) -> Iterator[str]:
    """Yield the name of a function, and of those that it wraps."""
    if depth == 0:
        return
    yield getattr(function, "__qualname__", None) or type(function).__qualname__
    if isinstance(getattr(function, "__code__", None), CodeType):
        for value in _held(function):
            if value is not function and callable(value) and not inspect.isclass(value):
                yield from _names_within(value, depth - 1)
    elif isinstance(function, functools.partial):
        yield from _names_within(function.func, depth - 1)
