"""Failures to Sentry: the exception itself, with its traceback and variables, from where the function ran."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from typing import Any

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from omniq import Task, hookimpl
from omniq.task import Ending, Failed
from shop.correlation import request_id

__all__ = ["Sentry", "start_reports"]


class Sentry:
    """A plugin of the queue: what fails a task for good is reported, with the task's name and the id of the request."""

    @hookimpl
    def omniq_around_task(self, task: Task) -> Generator[None, Ending, None]:
        with sentry_sdk.isolation_scope() as scope:
            scope.set_tags({"task": task.name, "request_id": request_id.get()})
            ending = yield
            if ending.taken and isinstance(ending.outcome, Failed) and ending.error is not None:
                sentry_sdk.capture_exception(ending.error)


def start_reports() -> None:
    """Begin to report, in this process: to Sentry, or to the file that SHOP_REPORTS names, where there is no Sentry."""
    file = os.environ.get("SHOP_REPORTS")
    if file is None:
        sentry_sdk.init(default_integrations=False)  # SENTRY_DSN says where
    else:
        sentry_sdk.init(dsn="http://key@127.0.0.1/1", transport=FileTransport, default_integrations=False)


class FileTransport(Transport):
    """Writes reports to a file, one in a line, for tests and for work without a network."""

    def capture_envelope(self, envelope: Envelope) -> None:
        event: Any = envelope.get_event()
        if event is not None:
            with open(os.environ["SHOP_REPORTS"], "a", encoding="utf-8") as reports:
                reports.write(json.dumps(event, default=repr) + "\n")
