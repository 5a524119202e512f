"""What tasks in child processes log: the child sends its records to the worker, whose logging is set up.

A child handles no record itself, whatever the modules set up that it imports: one process writes, to files that are
rotated, too, and the worker's filters and formats apply.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from attrs import frozen

from omniq.storage.escaping import escape_record

__all__ = ["LogRecord", "Outlet", "forward_records", "levels_here"]

_formatter = logging.Formatter()


@frozen
class LogRecord:
    """A record on its way from a child to the worker."""

    fields: dict[str, Any]

    def deliver(self, about: Mapping[str, str]) -> None:
        """Hand it to the logger that it was made with, in this process.

        :param about: the fields of the task that the child runs; those that the record has already are kept.
        """
        record = logging.makeLogRecord({**about, **self.fields})
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


class Outlet:
    """A child's end of the pipe to its worker, for all of its threads.

    :param pipe: the pipe.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def send(self, message: object) -> None:
        """Send a message; nothing from a process that a task has forked, whose words would run into the child's.

        :raises OSError: if the worker is gone.
        """
        data = pickle.dumps(message)  # before the lock: it may run code that logs
        if os.getpid() == self._owner:
            with self._lock:
                self._pipe.send_bytes(data)


def levels_here() -> dict[str, int]:
    """Return the level of each logger that has one of its own; that of the root logger under ``""``."""
    root = logging.getLogger()
    levels = {"": root.level}
    for name, logger in list(root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET:
            levels[name] = logger.level
    return levels


def forward_records(outlet: Outlet, levels: dict[str, int]) -> None:
    """Have all that this process logs from now on handled by the worker.

    :param levels: the worker's, as :func:`levels_here` returned them: what it would drop is not sent.
    """
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    owner = os.getpid()
    usual: Callable[[logging.Logger, logging.LogRecord], None] = logging.Logger.handle

    def handle(self: logging.Logger, record: logging.LogRecord) -> None:
        if os.getpid() != owner:
            usual(self, record)  # a process that a task has forked speaks for itself
            return
        try:
            outlet.send(LogRecord(_portable(record)))
        except OSError:
            usual(self, record)  # the worker is gone, and this process is about to be

    # The one place that all records pass, of loggers that are there already and with handlers of their own, too.
    logging.Logger.handle = handle  # type: ignore[method-assign]  # that it is replaced is the point


def _portable(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a record with its text made: its arguments and error may not survive the way."""
    if f"{record.name}.".startswith("omniq."):
        escape_record(record)  # as its logger does in the worker
    fields = {**vars(record), "msg": _message(record), "args": None, "exc_info": None}
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = _formatter.formatException(record.exc_info)
    return {name: value if _travels(value) else repr(value) for name, value in fields.items()}


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # the arguments do not fit the text
        return f"{record.msg!s} (its arguments do not fit: {type(error).__name__})"


def _travels(value: object) -> bool:
    if value is None or type(value) in (str, int, float, bool):
        return True
    try:
        pickle.dumps(value)
    except Exception:  # whatever its class raises
        return False
    # Its class must be there where the record arrives; what a task's module defines need not be.
    return type(value).__module__ == "builtins"
