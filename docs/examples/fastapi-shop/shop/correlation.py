"""The id of a request: from the web server through the task's headers into every log record of the task."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from typing import Any

from omniq import Task, hookimpl

__all__ = ["Correlation", "log_request_ids", "request_id"]

request_id: ContextVar[str] = ContextVar("request_id", default="-")


class Correlation:
    """A plugin of the queue: what is enqueued has the id of the request, and so has what the task logs and enqueues."""

    @hookimpl
    def omniq_around_enqueue(self, tasks: Sequence[Any]) -> Generator[list[dict[str, str]]]:
        yield [{"request-id": request_id.get()} for _ in tasks]

    @hookimpl
    def omniq_around_task(self, task: Task) -> Generator[None]:
        token = request_id.set(task.headers.get("request-id", "-"))
        yield
        request_id.reset(token)


def log_request_ids() -> None:
    """Have every log record carry the id, wherever it is made: also those that a child process sends to its worker."""
    usual = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = usual(*args, **kwargs)
        record.request_id = request_id.get()
        return record

    logging.setLogRecordFactory(make)
