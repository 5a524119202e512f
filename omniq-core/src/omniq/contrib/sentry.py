"""Errors and traces of tasks in Sentry."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from omniq.contrib import _needs
from omniq.hookspecs import hookimpl
from omniq.storage import Enqueued
from omniq.task import Ending, Failed, NewTask, Retry, Task

with _needs("sentry"):
    import sentry_sdk
    from sentry_sdk.scope import should_send_default_pii
    from sentry_sdk.tracing import TransactionSource

__all__ = ["Sentry"]

_ORIGIN = "auto.queue.omniq"
_TRACE, _BAGGAGE = "sentry-trace", "baggage"


class Sentry:
    """Runs each task in an isolation scope of its own, continues the sender's trace, and reports what fails for good.

    The program calls ``sentry_sdk.init(…)`` itself, where the module of its tasks is imported: so it is called in child
    processes, too. Arguments are sent only with ``send_default_pii=True``, and no results. The first attempt is part of
    the trace in which the task was enqueued; later ones begin traces of their own.

    :param retries: report an error also where the task runs again.
    """

    def __init__(self, *, retries: bool = False) -> None:
        self._reported: tuple[type, ...] = (Failed, Retry) if retries else (Failed,)

    @hookimpl
    def omniq_around_enqueue(
        self, tasks: Sequence[NewTask]
    ) -> Generator[Sequence[Mapping[str, str]], Sequence[Enqueued], None]:
        """Have the trace travel with the tasks.

        :param tasks: what is enqueued.
        :return: the steps of a hook that stands around a call.
        """
        queues = sorted({task.queue for task in tasks})
        with sentry_sdk.start_span(op="queue.publish", name=", ".join(queues), origin=_ORIGIN) as span:
            span.set_data("messaging.destination.name", ", ".join(queues))
            headers = {_TRACE: sentry_sdk.get_traceparent(), _BAGGAGE: sentry_sdk.get_baggage()}
            yield [{name: value for name, value in headers.items() if value}] * len(tasks)

    @hookimpl
    def omniq_around_task(self, task: Task) -> Generator[None, Ending, None]:
        """Stand around one attempt.

        :param task: what runs.
        :return: the steps of a hook that stands around a task.
        """
        with sentry_sdk.isolation_scope() as scope:
            scope.clear_breadcrumbs()
            scope.set_tag("omniq.queue", task.queue)
            scope.set_context("omniq", _fields(task))
            transaction = sentry_sdk.continue_trace(
                dict(task.headers) if task.attempt == 1 else {},
                op="queue.process",
                name=task.name,
                source=TransactionSource.TASK,
                origin=_ORIGIN,
            )
            with sentry_sdk.start_transaction(transaction):
                ending = yield
                error = ending.error
                transaction.set_status("ok" if error is None else "internal_error")
                if error is not None and ending.taken and isinstance(ending.outcome, self._reported):
                    sentry_sdk.capture_exception(error)


def _fields(task: Task) -> dict[str, Any]:
    fields: dict[str, Any] = {"task": task.name, "id": task.id, "queue": task.queue, "attempt": task.attempt}
    if should_send_default_pii():
        fields |= {"args": task.args, "kwargs": task.kwargs}
    return fields
