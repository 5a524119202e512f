"""What a registered function is: its name, its types, where it runs, and what it can be called with."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any, Literal, TypeAlias

from omniq._tasks.dependencies import Injection, Overrides, injection_of
from omniq._tasks.options import check_text
from omniq.serialization import ArgumentTypes
from omniq.serialization.hints import resolve_types

__all__ = ["Definition", "Executor", "task_name"]

Executor: TypeAlias = Literal["loop", "thread", "process"]


def task_name(function: Callable[..., Any]) -> str:
    """Return the name under which a function is registered: ``module.qualname``.

    A script's functions are named as a worker that imports it names them, so that ``python shop/jobs.py`` enqueues what
    ``omniq worker shop.jobs:queue`` runs.
    """
    module = function.__module__
    if module in ("__main__", "__mp_main__"):  # the second is what multiprocessing calls a script in its children
        main = sys.modules[module]
        spec = getattr(main, "__spec__", None)
        if spec is not None and spec.name != "__main__":  # the name of a folder that is run
            module = spec.name.removesuffix(".__main__")
        elif getattr(main, "__file__", None):
            module = _module_of_script(Path(main.__file__ or ""))
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _module_of_script(file: Path) -> str:
    """Return the name by which a worker imports a script: within its package, or else from the current folder."""
    file = file.resolve()
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    # The first place of sys.path is the script's own folder, whatever it is; beyond it the program put it there.
    if len(parts) == 1 and folder not in [Path(place).resolve() for place in sys.path[1:]]:
        with contextlib.suppress(ValueError, OSError):  # it is not below the current folder, or that is gone
            below = folder.relative_to(Path.cwd()).parts
            if all(part.isidentifier() for part in below):
                parts = [*below, *parts]
    return ".".join(parts).removesuffix(".__main__")


class Definition:
    """What a registered function is, whatever the options of one call.

    :param function: a plain or coroutine function.
    :param name: the name under which tasks of it are stored.
    :param retry_on: errors that are retried; others fail the task at once.
    :param executor: where to run it: None: a coroutine on the loop, a plain function on a thread; or ``"process"``.
    :raises TypeError: if it cannot be run as a task, or not there.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None,
        retry_on: tuple[type[BaseException], ...],
        executor: Executor | None = None,
    ) -> None:
        if inspect.isclass(function) or not callable(function):
            raise TypeError(f"a task must be a function, not {function!r}")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function!r} is a generator; a task must return its result")
        self.function: Callable[..., Any] = function
        self.name = task_name(function) if name is None else check_text(name, "a task's name")
        self.retry_on = _errors(retry_on)
        self.is_async = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
        self.executor = _executor(function, executor, is_async=self.is_async)
        self.by_value = self.executor == "process" and _is_in_no_module(function)
        """Whether a child process cannot import the function, so that it must be sent there."""
        self.module_code: CodeType | None = None
        """The execution of a module that declared it, see :mod:`omniq._client.redefinition`."""
        self.injection: Injection = injection_of(function, is_async=self.is_async)
        """What the function is given beside its arguments."""
        self._injected = frozenset(name for name, _ in self.injection)
        self._signature = inspect.signature(function)
        self._positional = self._plain_positions()

    @property
    def signature(self) -> inspect.Signature:
        """The signature as a caller sees it: without what is injected."""
        parameters = self._signature.parameters.values()
        return self._signature.replace(parameters=[one for one in parameters if one.name not in self._injected])

    def injection_with(self, overrides: Overrides) -> Injection:
        """Return what the function is given beside its arguments while some factories stand in for others.

        :raises TypeError: if one of them cannot.
        """
        return injection_of(self.function, overrides, is_async=self.is_async) if self.injection else self.injection

    def _plain_positions(self) -> range:
        # How many arguments a call by position alone may have; such calls, the usual ones, need no Signature.bind.
        kinds = [parameter.kind for parameter in self._signature.parameters.values()]
        positional = [
            parameter
            for parameter in self._signature.parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        if len(positional) < len(kinds):
            return range(0)
        required = sum(parameter.default is parameter.empty for parameter in positional)
        given = list(itertools.takewhile(lambda parameter: parameter.name not in self._injected, positional))
        return range(required, len(given) + 1)

    @functools.cached_property
    def types(self) -> tuple[ArgumentTypes, Any]:
        """The annotations of the parameters and of the return value, resolved at the first need."""
        return resolve_types(self.function, without=self._injected)

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments that the function cannot take, and those that are injected.

        :raises TypeError: as calling the function would, naming it.
        """
        if not kwargs and len(args) in self._positional:
            return
        try:
            given = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self.name}{self.signature}: {error}") from None
        if self._injected and (wrong := [name for name in given if name in self._injected]):
            raise TypeError(
                f"{self.name}{self.signature}: {', '.join(map(repr, wrong))} is injected where the task runs, and "
                "cannot be given; give what comes after it by name"
            )

    def check_inline(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse a call here and now without what a worker would inject.

        :raises TypeError: names what is missing.
        """
        given = self._signature.bind_partial(*args, **kwargs).arguments
        if missing := [name for name, _ in self.injection if name not in given]:
            raise TypeError(
                f"{self.name}: only a worker that runs the task injects {', '.join(map(repr, missing))}; to call the "
                f"function here, give {', '.join(f'{name}=…' for name in missing)}"
            )


def _errors(errors: tuple[object, ...]) -> tuple[type[BaseException], ...]:
    kinds = tuple(error for error in errors if isinstance(error, type) and issubclass(error, BaseException))
    if kinds != errors:
        raise TypeError(f"retry_on must be a class of errors, or a tuple of such classes, not {errors!r}")
    return kinds


def _executor(function: Callable[..., Any], executor: str | None, *, is_async: bool) -> Executor:
    if executor not in (None, "loop", "thread", "process"):
        raise ValueError(f"executor must be 'thread' or 'process' (a coroutine runs on the 'loop'), not {executor!r}")
    if is_async:
        if executor in ("thread", "process"):
            raise TypeError(f"{function!r} is a coroutine function: it runs on the loop, not in a {executor}")
        return "loop"
    if executor == "loop":
        raise TypeError(f"{function!r} is a plain function: it would block the loop; make it async, or use a thread")
    if executor != "process":
        return "thread"
    if "<locals>" in function.__qualname__:
        raise TypeError(
            f"{function!r} is defined inside a function: a process could not find it; define it at a module's top level"
        )
    if _is_in_no_module(function) and find_spec("cloudpickle") is None:
        raise TypeError(
            f"{function!r} is defined in no module (in a notebook, say): a process could not import it. Move it into a "
            "module, or install what sends it there: pip install 'omniq-core[cloudpickle]'"
        )
    return "process"


def _is_in_no_module(function: Callable[..., Any]) -> bool:
    main = sys.modules["__main__"]
    return (
        function.__module__ == "__main__" and getattr(main, "__spec__", None) is None and not hasattr(main, "__file__")
    )
