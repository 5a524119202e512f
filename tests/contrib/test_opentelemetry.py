"""Traces and metrics, by OpenTelemetry's own SDK with exporters in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from omniq import Every, Fixed, StorageError, TaskCancelled, TaskFailed, TaskQueue, current_task, each
from omniq.contrib.opentelemetry import SCHEMA_URL, OpenTelemetry
from omniq.task import Task, TaskError, TaskState
from omniq.testing import wait_until
from tests.contrib import traced_tasks
from tests.contrib.conftest import MakeQueue
from tests.core.running import working


class Traces:
    """What is exported."""

    def __init__(self, *, parent: bool = False) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        meters = MeterProvider([self.reader])
        self.plugin = OpenTelemetry(tracer_provider=self.provider, meter_provider=meters, parent=parent)
        self.tracer = self.provider.get_tracer("test")

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        wait_until(lambda: self.spans(name), what=f"a span {name}")
        (span,) = self.spans(name)
        return span

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


def id_of(span: Any) -> int:
    identity: int = (span.context if isinstance(span, ReadableSpan) else span.get_span_context()).span_id
    return identity


def declare(queue: TaskQueue, kind: str, **options: Any) -> Any:
    def work(size: int) -> str:
        if size < 0:
            raise ValueError("a size is 0 or more")
        return str(baggage.get_baggage("tenant"))

    if kind == "thread":
        return queue.task(name="shop.resize", queue="images", **options)(work)

    @queue.task(name="shop.resize", queue="images", **options)
    async def resize(size: int) -> str:
        await asyncio.sleep(0)  # others run meanwhile
        return work(size)

    return resize


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_a_task_is_a_trace_of_its_own_that_links_to_its_sender(make_queue: MakeQueue, kind: str) -> None:
    traces = Traces()
    queue = make_queue(traces.plugin)
    resize = declare(queue, kind)

    with working(queue) as worker, traces.tracer.start_as_current_span("GET /") as request:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        handle = resize.enqueue(5)
        context.detach(token)
        assert handle.result(30) == "acme"

    sent, processed = traces.span("send images"), traces.span("process shop.resize")
    assert sent.kind is SpanKind.PRODUCER
    assert sent.parent is not None
    assert sent.parent.span_id == id_of(request)
    assert sent.attributes == {
        "messaging.system": "omniq",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "images",
        "messaging.message.id": handle.id,
        "omniq.task.name": "shop.resize",
    }
    assert processed.kind is SpanKind.CONSUMER
    assert processed.parent is None
    assert [link.context.span_id for link in processed.links] == [id_of(sent)]
    assert processed.attributes == {
        "messaging.system": "omniq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "images",
        "messaging.message.id": handle.id,
        "messaging.client.id": worker.id,
        "omniq.task.name": "shop.resize",
        "omniq.task.attempt": 1,
    }
    assert processed.status.status_code is StatusCode.UNSET
    assert processed.instrumentation_scope is not None
    assert processed.instrumentation_scope.schema_url == SCHEMA_URL
    assert baggage.get_baggage("tenant") is None


def test_a_task_is_a_child_of_its_sender_where_that_is_asked_for(make_queue: MakeQueue) -> None:
    traces = Traces(parent=True)
    queue = make_queue(traces.plugin)
    resize = declare(queue, "thread")

    @queue.task(name="shop.upload")
    def upload() -> str:
        return str(resize.enqueue(5).id)

    with working(queue), traces.tracer.start_as_current_span("GET /") as request:
        queue.handle(upload.enqueue().result(30)).result(30)

    outer, inner = traces.span("process shop.upload"), traces.span("process shop.resize")
    assert {span.context.trace_id for span in (outer, inner) if span.context} == {request.get_span_context().trace_id}
    for processed, queue_name in ((outer, "default"), (inner, "images")):
        assert processed.parent is not None
        assert processed.parent.span_id == id_of(traces.span(f"send {queue_name}"))
        assert processed.links == ()
    sent = traces.span("send images").parent
    assert sent is not None
    assert sent.span_id == id_of(outer)


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_each_attempt_that_fails_is_an_error(make_queue: MakeQueue, kind: str) -> None:
    traces = Traces()
    queue = make_queue(traces.plugin)
    resize = declare(queue, kind, max_retries=1, retry=Fixed(0))
    with working(queue), pytest.raises(TaskFailed):
        resize.enqueue(-1).result(30)

    attempts = traces.spans("process shop.resize")
    assert [span.attributes["omniq.task.attempt"] for span in attempts if span.attributes] == [1, 2]
    for span in attempts:
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "ValueError: a size is 0 or more"
        assert span.attributes is not None
        assert span.attributes["error.type"] == "ValueError"
        assert [event.name for event in span.events] == ["exception"]


def test_a_task_that_asks_to_fail_is_an_error_without_an_exception(make_queue: MakeQueue) -> None:
    traces = Traces()
    queue = make_queue(traces.plugin)

    @queue.task(name="shop.refuse")
    def refuse() -> None:
        current_task().fail("no such customer")

    with working(queue), pytest.raises(TaskFailed):
        refuse.enqueue().result(30)

    span = traces.span("process shop.refuse")
    assert span.status.status_code is StatusCode.ERROR
    assert "no such customer" in str(span.status.description)
    assert span.events == ()


def test_a_timeout_and_a_cancellation_end_their_spans(make_queue: MakeQueue) -> None:
    traces = Traces()
    queue = make_queue(traces.plugin)

    @queue.task(name="slow", timeout=0.05, max_retries=0)
    async def slow() -> None:
        await asyncio.sleep(60)  # until it is cancelled

    @queue.task(name="endless")
    async def endless() -> None:
        await asyncio.sleep(600)  # until it is cancelled

    with working(queue, lease=6):
        with pytest.raises(TaskFailed, match="TaskTimeout"):
            slow.enqueue().result(30)
        handle = endless.enqueue()
        wait_until(lambda: handle.task().state == "running")
        handle.cancel()
        with pytest.raises(TaskCancelled):
            handle.result(60)

    assert traces.span("process slow").status.status_code is StatusCode.ERROR
    cancelled = traces.span("process endless")
    assert cancelled.status.status_code is StatusCode.UNSET
    assert cancelled.attributes is not None
    assert cancelled.attributes["omniq.task.outcome"] == "cancelled"


def test_a_batch_is_one_span(make_queue: MakeQueue) -> None:
    traces = Traces()
    resize = declare(make_queue(traces.plugin), "thread")
    resize.owner.enqueue_many([resize.call(1), resize.using(queue="other").call(2)])

    batch = traces.span("send")
    assert batch.attributes is not None
    assert batch.attributes["messaging.batch.message_count"] == 2
    assert sum(point.value for point in traces.points("messaging.client.sent.messages")) == 2


def test_a_call_that_stores_nothing_is_an_error(tmp_path: Path) -> None:
    traces = Traces()
    (tmp_path / "file").touch()
    with TaskQueue(f"sqlite:///{tmp_path}/file/jobs.db", plugins=[traces.plugin]) as queue:
        resize = declare(queue, "thread")
        with pytest.raises(StorageError):
            resize.enqueue(1)

    sent = traces.span("send images")
    assert sent.status.status_code is StatusCode.ERROR
    assert traces.points("messaging.client.sent.messages") == []
    (duration,) = traces.points("messaging.client.operation.duration")
    assert duration.attributes["error.type"].startswith("omniq.")


def test_a_run_of_a_schedule_is_sent_by_its_worker(make_queue: MakeQueue) -> None:
    traces = Traces()
    queue = make_queue(traces.plugin)
    resize = declare(queue, "thread")
    queue.schedule(resize.call(5), Every(0.05), id="tick")
    with working(queue):
        wait_until(lambda: traces.spans("process shop.resize"))

    processed = traces.spans("process shop.resize")[0]
    sent = {id_of(span): span for span in traces.spans("send images")}
    assert processed.links[0].context.span_id in sent


def declare_sum(queue: TaskQueue, seen: list[object]) -> tuple[Any, Any]:
    @queue.task(name="shop.count", queue="regions")
    async def count(n: int) -> int:
        seen.append(baggage.get_baggage("tenant"))
        return n

    @queue.task(name="shop.add", queue="sums")
    def add(counts: list[int]) -> int:
        seen.append(baggage.get_baggage("tenant"))
        return sum(counts)

    return count, add


@pytest.mark.parametrize("parent", [False, True])
def test_all_tasks_of_a_flow_are_sent_by_one_span(make_queue: MakeQueue, parent: bool) -> None:
    traces, seen = Traces(parent=parent), list[object]()
    queue = make_queue(traces.plugin)
    count, add = declare_sum(queue, seen)
    with working(queue), traced_request(traces) as request:
        assert queue.enqueue_flow(each(count, [1, 2, 3]).then(add)).result(60) == 6

    sent = traces.span("send")
    assert sent.attributes is not None
    assert sent.attributes["messaging.batch.message_count"] == 4
    assert sent.parent is not None
    assert sent.parent.span_id == id_of(request)
    wait_until(lambda: traces.spans("process shop.add"))
    counted, (added,) = traces.spans("process shop.count"), traces.spans("process shop.add")
    assert len(counted) == 3
    for span in (*counted, added):
        assert (None if span.parent is None else span.parent.span_id) == (id_of(sent) if parent else None)
        assert [link.context.span_id for link in span.links] == ([] if parent else [id_of(sent)])
    assert added.start_time is not None
    assert max(span.start_time or 0 for span in counted) <= added.start_time
    assert seen == ["acme"] * 4


def test_a_flow_of_a_schedule_is_sent_by_the_task_that_stores_it(make_queue: MakeQueue) -> None:
    traces = Traces(parent=True)
    queue = make_queue(traces.plugin)
    count, add = declare_sum(queue, [])
    queue.schedule(each(count, [1, 2]).then(add), Every(0.05), id="nightly")
    with working(queue):
        wait_until(lambda: len(way_to(traces, "process shop.add")) == 4, timeout=60, what="a run of the flow")

    assert way_to(traces, "process shop.add") == ["process shop.add", "send", "process flow:shop.add", "send sums"]


def way_to(traces: Traces, name: str) -> list[str]:
    """Return the names of the first span of this name, its parent, and so on, of those that have ended."""
    spans = {id_of(span): span for span in traces.exporter.get_finished_spans()}
    span = next((span for span in spans.values() if span.name == name), None)
    way: list[str] = []
    while span is not None:
        way.append(span.name)
        span = None if span.parent is None else spans.get(span.parent.span_id)
    return way


@pytest.mark.parametrize("commits", [True, False])
def test_what_is_enqueued_in_the_callers_transaction_is_linked_to_the_request(tmp_path: Path, commits: bool) -> None:
    traces = Traces()
    file = tmp_path / "shop.db"
    with TaskQueue(f"sqlite:///{file}", plugins=[traces.plugin]) as queue:
        resize = declare(queue, "thread")
        queue.stats()  # makes the tables
        with contextlib.closing(sqlite3.connect(file)) as connection:
            with traced_request(traces) as request:
                handle = resize.using(connection=connection).enqueue(5)
            assert traces.spans("process shop.resize") == []
            if commits:
                connection.commit()
            else:
                connection.rollback()
        with working(queue):
            if commits:
                assert handle.result(60) == "acme"
            else:
                resize.enqueue(1).result(60)

    (sent, *_), (processed,) = traces.spans("send images"), traces.spans("process shop.resize")
    assert sent.parent is not None
    assert sent.parent.span_id == id_of(request)
    assert ([link.context.span_id for link in processed.links] == [id_of(sent)]) is commits


@contextlib.contextmanager
def traced_request(traces: Traces) -> Iterator[Any]:
    """Have the block be a request of a tenant."""
    with traces.tracer.start_as_current_span("GET /") as request:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        yield request
        context.detach(token)


def test_metrics_count_what_was_sent_and_how_long_it_took(make_queue: MakeQueue) -> None:
    traces = Traces()
    queue = make_queue(traces.plugin)
    resize = declare(queue, "coroutine", max_retries=0)
    with working(queue):
        handles = [resize.enqueue(size) for size in (1, 2, -1)]
        wait_until(lambda: all(handle.task().finished_at for handle in handles))

    (sent,) = traces.points("messaging.client.sent.messages")
    assert (sent.value, sent.attributes["messaging.destination.name"]) == (3, "images")
    durations = {point.attributes.get("error.type"): point for point in traces.points("messaging.process.duration")}
    assert {error: point.count for error, point in durations.items()} == {None: 2, "ValueError": 1}
    assert durations[None].attributes["omniq.task.name"] == "shop.resize"
    assert sum(point.count for point in traces.points("messaging.client.operation.duration")) == 3


def test_in_a_child_process_a_task_has_its_span_and_one_that_was_killed_gets_it_from_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "spans"
    monkeypatch.setenv(traced_tasks.FILE, str(file))
    queue = traced_tasks.queue
    with queue, working(queue, processes=1):
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        tenant, process = traced_tasks.cpu_baggage.enqueue().result(60)
        context.detach(token)
        for killed in (traced_tasks.cpu_overdue, traced_tasks.cpu_killed):
            with pytest.raises(TaskFailed):
                killed.enqueue().result(60)

    spans = [json.loads(line) for line in file.read_text().splitlines()]
    sent = [span["span"] for span in spans if span["name"] == "send default"]
    processed = {span["name"].rpartition("_")[2]: span for span in spans if span["name"].startswith("process")}
    assert tenant == "acme"
    assert {name: span["process"] for name, span in processed.items()} == {
        "baggage": process,
        "overdue": os.getpid(),
        "killed": os.getpid(),
    }
    assert [processed[name]["links"] for name in ("baggage", "overdue", "killed")] == [[span] for span in sent]
    assert processed["baggage"]["status"] == "UNSET"
    assert "TaskTimeout" in processed["overdue"]["status"]
    assert "WorkerLost" in processed["killed"]["status"]
    assert processed["overdue"]["seconds"] >= 0.5


def test_the_attempt_of_a_worker_that_was_lost_gets_its_span_from_the_one_that_takes_it_back(
    make_queue: MakeQueue,
) -> None:
    traces = Traces()
    queue = make_queue(traces.plugin)
    resize = declare(queue, "thread")
    with working(queue):
        handle = resize.enqueue(1)
        handle.result(30)
    traces.exporter.clear()
    task: Task = handle.task()
    lost = task.__class__(
        **{name.lstrip("_"): value for name, value in vars(task).items()}
        | {"state": TaskState.FAILED, "error": TaskError(type="WorkerLost", message="its lease ran out")}
    )
    begun = time.time()
    traces.plugin.omniq_task_recovered(lost, "other")

    span = traces.span("process shop.resize")
    assert span.status.description == "WorkerLost: its lease ran out"
    assert span.start_time is not None
    assert span.start_time / 1e9 < begun
    assert trace.get_current_span() is trace.INVALID_SPAN
