"""The id of a request, which ``Carry`` takes from the web server into the tasks, in every log record."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

__all__ = ["log_request_ids", "request_id"]

request_id: ContextVar[str] = ContextVar("request_id", default="-")


def log_request_ids() -> None:
    """Have every log record carry the id, wherever it is made: also those that a child process sends to its worker."""
    usual = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = usual(*args, **kwargs)
        record.request_id = request_id.get()
        return record

    logging.setLogRecordFactory(make)
