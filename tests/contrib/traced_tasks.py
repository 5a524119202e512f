"""A queue whose traces go to a file, for tasks in child processes: each imports this module anew."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import baggage
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from omniq import TaskQueue
from omniq.contrib.opentelemetry import OpenTelemetry

FILE = "OMNIQ_TEST_SPANS"


class FileExporter(SpanExporter):
    """Appends what matters of each span to the file that an environment variable names."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with Path(os.environ[FILE]).open("a") as file:
            for span in spans:
                context = span.get_span_context()
                assert context is not None
                line = {
                    "name": span.name,
                    "process": os.getpid(),
                    "span": context.span_id,
                    "links": [link.context.span_id for link in span.links],
                    "status": span.status.description or span.status.status_code.name,
                    "attributes": dict(span.attributes or {}),
                    "seconds": ((span.end_time or 0) - (span.start_time or 0)) / 1e9,
                }
                file.write(json.dumps(line) + "\n")
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
queue = TaskQueue("memory://traced", plugins=[OpenTelemetry(tracer_provider=provider)])


@queue.task(executor="process", max_retries=0)
def cpu_baggage() -> tuple[object, int]:
    return baggage.get_baggage("tenant"), os.getpid()


@queue.task(executor="process", max_retries=0, timeout=0.5)
def cpu_overdue() -> None:
    time.sleep(60)  # longer than its timeout


@queue.task(executor="process", max_retries=0)
def cpu_killed() -> None:
    os.kill(os.getpid(), 9)
