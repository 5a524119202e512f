"""Fields of the running task in the lines of structlog."""

from __future__ import annotations

import structlog
from structlog.contextvars import merge_contextvars
from structlog.testing import LogCapture

from omniq.contrib.structlog import Structlog
from tests.contrib.conftest import MakeQueue
from tests.core.running import working


def test_a_line_that_a_task_logs_has_its_fields(make_queue: MakeQueue) -> None:
    queue, lines = make_queue(Structlog()), LogCapture()
    log = structlog.wrap_logger(None, processors=[merge_contextvars, lines])

    @queue.task(queue="mail")
    def on_thread() -> None:
        log.info("sent")

    @queue.task(queue="mail")
    async def in_coroutine() -> None:
        log.info("sent")

    with working(queue):
        handles = [task.enqueue() for task in (on_thread, in_coroutine)]
        for handle in handles:
            handle.result(30)
        log.info("outside")

    fields = [{name: line[name] for name in line if name.startswith("task_")} for line in lines.entries]
    assert sorted(fields[:2], key=lambda line: handles[0].id != line["task_id"]) == [
        {"task_id": handle.id, "task_name": task.name, "task_queue": "mail", "task_attempt": 1}
        for handle, task in zip(handles, (on_thread, in_coroutine), strict=True)
    ]
    assert fields[2] == {}
