"""Fields of the running task in every line that is logged with structlog while it runs."""

from __future__ import annotations

from collections.abc import Generator

from omniq.contrib import _needs
from omniq.hookspecs import hookimpl
from omniq.task import Ending, Task

with _needs("structlog"):
    from structlog.contextvars import bound_contextvars

__all__ = ["Structlog"]


class Structlog:
    """Binds ``task_id``, ``task_name``, ``task_queue`` and ``task_attempt`` as context variables of structlog's.

    The processor ``structlog.contextvars.merge_contextvars`` puts them into the lines.
    """

    @hookimpl
    def omniq_around_task(self, task: Task) -> Generator[None, Ending, None]:
        """Bind the task's fields while it runs.

        :param task: what runs.
        :return: the steps of a hook that stands around a task.
        """
        with bound_contextvars(task_id=task.id, task_name=task.name, task_queue=task.queue, task_attempt=task.attempt):
            yield
