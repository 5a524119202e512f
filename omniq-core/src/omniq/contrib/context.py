"""Context variables that travel with tasks: a request's id in the log of the task that it enqueued, say."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from omniq.hookspecs import hookimpl
from omniq.storage import Enqueued
from omniq.task import Ending, NewTask, Task

__all__ = ["Carry"]


class Carry:
    """Puts the values of context variables into the headers of tasks, and sets them around the functions that run.

    A variable that has no value where a task is enqueued, or that is None, is left out; around the function it has the
    value that it has in the worker. A task that is enqueued within a task takes the values with it.

    :param variables: header → variable of text. Names are those of headers, at most 64 of ``a-z``, ``0-9`` and ``_``.
    :raises TypeError: if one is no context variable.
    """

    def __init__(self, **variables: ContextVar[Any]) -> None:
        for name, variable in variables.items():
            if not isinstance(variable, ContextVar):
                raise TypeError(f"Carry({name}=…) takes a contextvars.ContextVar, not {variable!r}")
        self._variables = variables

    @hookimpl
    def omniq_around_enqueue(
        self, tasks: Sequence[NewTask]
    ) -> Generator[Sequence[Mapping[str, str]], Sequence[Enqueued], None]:
        """Add the variables' values to the headers.

        :param tasks: what is enqueued.
        :return: the steps of a hook that stands around a call.
        """
        headers = {
            name: value for name, variable in self._variables.items() if (value := variable.get(None)) is not None
        }
        yield [headers] * len(tasks)

    @hookimpl
    def omniq_around_task(self, task: Task) -> Generator[None, Ending, None]:
        """Set the variables to what the headers say.

        :param task: what runs.
        :return: the steps of a hook that stands around a task.
        """
        tokens = [
            (variable, variable.set(task.headers[name]))
            for name, variable in self._variables.items()
            if name in task.headers
        ]
        try:
            yield
        finally:
            for variable, token in tokens:
                variable.reset(token)
