"""Where failures are reported: to Sentry, with the id of the request, or to a file."""

from __future__ import annotations

import json
import os
from typing import Any

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from shop.correlation import request_id

__all__ = ["start_reports"]


def start_reports() -> None:
    """Begin to report, in this process: to Sentry, or to the file that SHOP_REPORTS names, where there is no Sentry."""
    if os.environ.get("SHOP_REPORTS") is None:
        sentry_sdk.init(before_send=_with_request_id, default_integrations=False)  # SENTRY_DSN says where
    else:
        sentry_sdk.init(
            dsn="http://key@127.0.0.1/1",
            transport=FileTransport,
            before_send=_with_request_id,
            default_integrations=False,
        )


def _with_request_id(event: Any, hint: object) -> Any:
    return event | {"tags": {**event.get("tags", {}), "request_id": request_id.get()}}


class FileTransport(Transport):
    """Writes reports to a file, one in a line, for tests and for work without a network."""

    def capture_envelope(self, envelope: Envelope) -> None:
        event: Any = envelope.get_event()
        if event is not None:
            with open(os.environ["SHOP_REPORTS"], "a", encoding="utf-8") as reports:
                reports.write(json.dumps(event, default=repr) + "\n")
