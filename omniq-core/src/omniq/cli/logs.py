"""Logging as the command line sets it up: readable lines on stderr. The library itself never does that."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from omniq._tasks.context import running
from omniq.cli.short_ids import short_id
from omniq.storage.escaping import printable

__all__ = ["JsonFormatter", "LineFormatter", "heed_application", "logging_to_stderr"]


TASK_FIELDS = ("task_id", "task_name", "task_queue")


class LineFormatter(logging.Formatter):
    """Time, level, logger and message; the task at the end where the message does not name it.

    Tasks are shown by the short ids that the other commands show and take.

    :param with_process: whether to show the process id, for several processes that write to one place.
    """

    def __init__(self, *, with_process: bool = False) -> None:
        process = "[%(process)d] " if with_process else ""
        super().__init__(f"%(asctime)s %(levelname)-7s {process}%(name)s: %(message)s")
        self.default_msec_format = "%s.%03d"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        line = super().formatMessage(record)
        task_id = getattr(record, "task_id", None)
        if task_id is None:
            return line
        task_id = printable(str(task_id))
        if task_id in record.message:
            return line.replace(task_id, short_id(task_id))
        return f"{line} [task {short_id(task_id)} {printable(str(getattr(record, 'task_name', '')))}]"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, process and message; the task's fields, and the exception's text."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        line |= {name: str(getattr(record, name)) for name in TASK_FIELDS if hasattr(record, name)}
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line)


def _note_task(record: logging.LogRecord) -> bool:
    # What a task logs itself, or a library in its name, carries the task too.
    task = running.get(None)
    if task is not None and not hasattr(record, "task_id"):
        record.task_id = task.id
        record.task_name = task.name
        record.task_queue = task.queue
    return True


@contextlib.contextmanager
def logging_to_stderr(level: int, *, with_process: bool = False, as_json: bool = False) -> Iterator[None]:
    """Show log records on stderr while a command runs.

    :param level: the lowest level to show.
    :param with_process: whether each line names its process.
    :param as_json: whether each record is a JSON object, for programs that read logs.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter(with_process=with_process))
    handler.addFilter(_note_task)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def heed_application() -> None:
    """Undo what an application's own set-up of logging, once it is imported, would take from OmniQ's records.

    ``logging.config`` disables by default every logger that was there before, and so all of OmniQ's: nothing would be
    logged, and no failure. Handlers that the application has put in place of ours show the task of a record, too.
    """
    root = logging.getLogger()
    for name, logger in list(root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and (name == "omniq" or name.startswith("omniq.")):
            logger.disabled = False
    for handler in root.handlers:
        handler.addFilter(_note_task)
