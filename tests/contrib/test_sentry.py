"""Errors and traces in Sentry, by its own SDK with a transport that keeps what it is to send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from omniq import Fixed, TaskFailed, current_task
from omniq.contrib.sentry import Sentry
from tests.contrib.conftest import MakeQueue
from tests.core.running import working


class KeepingTransport(Transport):
    """Keeps events instead of sending them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.events += [item.payload.json for item in envelope.items if item.payload.json is not None]

    def errors(self) -> list[dict[str, Any]]:
        return [event for event in self.events if "exception" in event]

    def transactions(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("transaction") == name and "spans" in event]


@pytest.fixture
def transport() -> Iterator[KeepingTransport]:
    """Yield what the SDK of this process sends to."""
    kept = KeepingTransport()
    sentry_sdk.init(
        "http://key@127.0.0.1/1", transport=kept, traces_sample_rate=1.0, default_integrations=False, shutdown_timeout=0
    )
    yield kept
    sentry_sdk.get_client().close(timeout=0)
    sentry_sdk.get_global_scope().set_client(None)


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_what_fails_for_good_is_reported_once_with_the_exception_itself(
    make_queue: MakeQueue, transport: KeepingTransport, kind: str
) -> None:
    queue = make_queue(Sentry())

    def fail(amount: int) -> None:
        sentry_sdk.set_tag("step", "charge")
        raise ZeroDivisionError(f"attempt {current_task().attempt}")

    if kind == "thread":
        task: Any = queue.task(max_retries=1, retry=Fixed(0), name="shop.charge")(fail)
    else:

        @queue.task(max_retries=1, retry=Fixed(0), name="shop.charge")
        async def task(amount: int) -> None:
            fail(amount)

    with working(queue):
        handle = task.enqueue(7)
        with pytest.raises(TaskFailed):
            handle.result(30)

    (event,) = transport.errors()
    raised = event["exception"]["values"][-1]
    assert (raised["type"], raised["value"]) == ("ZeroDivisionError", "attempt 2")
    assert raised["stacktrace"]["frames"][-1]["function"] == "fail"
    assert event["tags"] == {"omniq.queue": "default", "step": "charge"}
    assert event["contexts"]["omniq"] == {"task": "shop.charge", "id": handle.id, "queue": "default", "attempt": 2}
    assert event["transaction"] == "shop.charge"


def test_retries_are_reported_where_that_is_asked_for(make_queue: MakeQueue, transport: KeepingTransport) -> None:
    queue = make_queue(Sentry(retries=True))

    @queue.task(max_retries=2, retry=Fixed(0))
    def fail() -> None:
        raise OSError(f"attempt {current_task().attempt}")

    with working(queue), pytest.raises(TaskFailed):
        fail.enqueue().result(30)

    assert [event["exception"]["values"][-1]["value"] for event in transport.errors()] == [
        "attempt 1",
        "attempt 2",
        "attempt 3",
    ]


def test_the_first_attempt_continues_the_trace_of_its_sender(
    make_queue: MakeQueue, transport: KeepingTransport
) -> None:
    queue = make_queue(Sentry())

    @queue.task(max_retries=1, retry=Fixed(0), name="shop.ship")
    def ship() -> None:
        if current_task().attempt == 1:
            raise OSError

    with working(queue), sentry_sdk.start_transaction(name="GET /ship") as request:
        ship.enqueue().result(30)

    first, second = (event["contexts"]["trace"] for event in transport.transactions("shop.ship"))
    (sent,) = transport.transactions("GET /ship")[0]["spans"]
    assert sent["op"] == "queue.publish"
    assert first["trace_id"] == request.trace_id
    assert first["parent_span_id"] == sent["span_id"]
    assert (first["status"], second["status"]) == ("internal_error", "ok")
    assert second["trace_id"] != request.trace_id


def test_arguments_are_sent_only_where_personal_data_may_be(make_queue: MakeQueue, transport: KeepingTransport) -> None:
    queue = make_queue(Sentry())

    @queue.task(max_retries=0)
    def fail(secret: str, *, token: str = "") -> None:
        raise OSError

    def reported() -> str:
        with working(queue), pytest.raises(TaskFailed):
            fail.enqueue("kept", token="apart").result(30)
        return str(transport.errors()[-1]["contexts"]["omniq"])

    without = reported()
    sentry_sdk.get_client().options["send_default_pii"] = True
    with_them = reported()

    assert "kept" not in without
    assert "apart" not in without
    assert "kept" in with_them
    assert "apart" in with_them
