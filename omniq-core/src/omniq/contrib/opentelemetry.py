"""Traces and metrics of tasks by OpenTelemetry, in the words of its conventions for messaging.

See https://opentelemetry.io/docs/specs/semconv/messaging/. Their names may still change; :data:`SCHEMA_URL` says which
are used.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime

from omniq.contrib import _needs
from omniq.hookspecs import hookimpl
from omniq.storage import Enqueued
from omniq.task import Cancelled, Ending, NewTask, Released, Task, TaskError

with _needs("otel"):
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.propagators.textmap import Getter, Setter
    from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TracerProvider
    from opentelemetry.util.types import AttributeValue

__all__ = ["SCHEMA_URL", "OpenTelemetry"]

SCHEMA_URL = "https://opentelemetry.io/schemas/1.36.0"
_MOST_REMEMBERED = 10_000
_DURATION_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Seconds; tasks take longer than the messages that the convention's bounds were made for."""


class OpenTelemetry:
    """Makes a span ``send QUEUE`` of each call that enqueues, and a span ``process TASK`` of each attempt.

    The trace's context and baggage travel in the tasks' headers, into child processes, too. The span of an attempt is
    the root of a trace that has a link to its sender; with ``parent=True`` it is a child of its sender instead. An
    attempt that fails or is retried has the status ERROR. Where a child process or a worker was killed, nothing was
    left to end a span, and the worker that tells of it makes one.

    :param tracer_provider: None: the program's.
    :param meter_provider: None: the program's.
    :param parent: make attempts part of the trace of their sender.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        parent: bool = False,
    ) -> None:
        self._tracer = trace.get_tracer("omniq", tracer_provider=tracer_provider, schema_url=SCHEMA_URL)
        meter = metrics.get_meter("omniq", meter_provider=meter_provider, schema_url=SCHEMA_URL)
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", unit="{message}", description="Tasks that were enqueued."
        )
        self._send_seconds = meter.create_histogram(
            "messaging.client.operation.duration", unit="s", description="How long enqueueing took."
        )
        self._process_seconds = meter.create_histogram(
            "messaging.process.duration",
            unit="s",
            description="How long attempts took.",
            explicit_bucket_boundaries_advisory=_DURATION_BOUNDS,
        )
        self._parent = parent
        # The attempts that this process has made a span of; the others ran in child processes.
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()

    @hookimpl
    def omniq_around_enqueue(
        self, tasks: Sequence[NewTask]
    ) -> Generator[Sequence[Mapping[str, str]], Sequence[Enqueued], None]:
        """Stand around one call that enqueues.

        :param tasks: what is enqueued.
        :return: the steps of a hook that stands around a call.
        """
        queues = sorted({task.queue for task in tasks})
        attributes: dict[str, AttributeValue] = {
            "messaging.system": "omniq",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
        }
        if len(queues) == 1:
            attributes["messaging.destination.name"] = queues[0]
        begun = time.perf_counter()
        with self._tracer.start_as_current_span(
            " ".join(["send", *queues[:1]]) if len(queues) == 1 else "send",
            kind=SpanKind.PRODUCER,
            attributes=attributes,
        ) as span:
            if len(tasks) == 1:
                span.set_attribute("messaging.message.id", tasks[0].id)
                span.set_attribute("omniq.task.name", tasks[0].name)
            else:
                span.set_attribute("messaging.batch.message_count", len(tasks))
            headers: dict[str, str] = {}
            propagate.inject(headers, setter=_LowerCaseSetter())
            failed: dict[str, AttributeValue] = {}
            try:
                answers = yield [headers] * len(tasks)
                self._sent.add(sum(answer.created for answer in answers), attributes)
            except Exception as error:
                failed = {"error.type": _name_of(error)}
                span.set_attributes(failed)
                raise
            finally:
                self._send_seconds.record(time.perf_counter() - begun, attributes | failed)

    @hookimpl
    def omniq_around_task(self, task: Task, worker: str) -> Generator[None, Ending, None]:
        """Stand around one attempt.

        :param task: what runs.
        :param worker: the worker's id.
        :return: the steps of a hook that stands around a task.
        """
        self._remember(task)
        span, around = self._start(task, worker)
        token = context.attach(around)
        try:
            ending = yield
            error, outcome = ending.error, ending.outcome
            if isinstance(outcome, Released | Cancelled):
                span.set_attribute("omniq.task.outcome", type(outcome).__name__.lower())
            elif error is not None:
                span.record_exception(error)
                _fail(span, _name_of(error), str(error))
            elif (told := getattr(outcome, "error", None)) is not None:  # it asked to retry, or to fail
                _fail(span, told.type, told.message)
            self._record(task, ending.seconds, None if error is None else _name_of(error))
        finally:
            context.detach(token)
            span.end()

    @hookimpl
    def omniq_task_succeeded(self, task: Task) -> None:
        """Forget the attempt.

        :param task: what has succeeded.
        """
        self._seen.pop((task.id, task.attempt), None)

    @hookimpl
    def omniq_task_failed(self, task: Task, worker: str, seconds: float, error: TaskError) -> None:
        """Make the span of an attempt that failed, for good or to be retried, as its child process was killed.

        :param task: what has failed.
        :param worker: the worker's id.
        :param seconds: how long the attempt took.
        :param error: why it failed.
        """
        self._ended(task, worker, seconds, error)

    omniq_task_retrying = omniq_task_failed

    @hookimpl
    def omniq_task_cancelled(self, task: Task, worker: str, seconds: float) -> None:
        """Make the span of an attempt whose child process was killed.

        :param task: what was cancelled.
        :param worker: the worker's id.
        :param seconds: how long the attempt took.
        """
        self._ended(task, worker, seconds, None)

    @hookimpl
    def omniq_task_recovered(self, task: Task, worker: str) -> None:
        """Make the span of an attempt whose worker was lost.

        :param task: what was taken back.
        :param worker: the id of the worker that tells of it.
        """
        if task.error is not None and task.started_at is not None:
            self._make_up(task, task.worker or worker, task.started_at, task.error)

    def _ended(self, task: Task, worker: str, seconds: float, error: TaskError | None) -> None:
        key = (task.id, task.attempt)
        if key in self._seen:
            del self._seen[key]
        elif error is None or error.type in _KILLED:
            self._make_up(task, worker, time.time() - seconds, error)
            self._record(task, seconds, None if error is None else error.type)

    def _make_up(self, task: Task, worker: str, start: float | datetime, error: TaskError | None) -> None:
        begun = start.timestamp() if isinstance(start, datetime) else start
        span, _ = self._start(task, worker, int(begun * 1e9))
        if error is None:
            span.set_attribute("omniq.task.outcome", "cancelled")
        else:
            _fail(span, error.type, error.message)
        span.end()

    def _start(self, task: Task, worker: str, start: int | None = None) -> tuple[Span, context.Context]:
        sender = propagate.extract(task.headers, getter=_LowerCaseGetter())
        link = trace.get_current_span(sender).get_span_context()
        # As a root it still has the sender's baggage.
        around = sender if self._parent else trace.set_span_in_context(trace.INVALID_SPAN, sender)
        span = self._tracer.start_span(
            f"process {task.name}",
            context=around,
            kind=SpanKind.CONSUMER,
            links=[Link(link)] if link.is_valid and not self._parent else (),
            start_time=start,
            attributes=_attributes(task)
            | {"messaging.message.id": task.id, "messaging.client.id": worker, "omniq.task.attempt": task.attempt},
        )
        return span, trace.set_span_in_context(span, around)

    def _record(self, task: Task, seconds: float, error: str | None) -> None:
        attributes = _attributes(task)
        if error is not None:
            attributes["error.type"] = error
        self._process_seconds.record(seconds, attributes)

    def _remember(self, task: Task) -> None:
        self._seen[task.id, task.attempt] = None
        if len(self._seen) > _MOST_REMEMBERED:
            self._seen.popitem(last=False)


_KILLED = frozenset({"TaskTimeout", "WorkerLost"})


def _attributes(task: Task) -> dict[str, AttributeValue]:
    return {
        "messaging.system": "omniq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": task.queue,
        "omniq.task.name": task.name,
    }


def _fail(span: Span, kind: str, message: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, f"{kind}: {message}" if message else kind)


def _name_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ in (None, "builtins") else f"{kind.__module__}.{kind.__qualname__}"


class _LowerCaseSetter(Setter[dict[str, str]]):
    """Headers of tasks are in lower case; some propagators write ``X-B3-TraceId``."""

    def set(self, carrier: dict[str, str], key: str, value: str) -> None:
        carrier[key.lower()] = value


class _LowerCaseGetter(Getter[Mapping[str, str]]):
    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        value = carrier.get(key.lower())
        return None if value is None else [value]

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)
