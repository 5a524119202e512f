"""Context variables that travel with tasks."""

from __future__ import annotations

from contextvars import ContextVar, copy_context

import pytest

from omniq import Every, current_task
from omniq.contrib.context import Carry
from tests.contrib.conftest import MakeQueue
from tests.core.running import working

request_id: ContextVar[str] = ContextVar("request_id")
tenant: ContextVar[str | None] = ContextVar("tenant", default=None)


def test_a_variable_has_in_the_task_the_value_that_it_had_where_the_task_was_enqueued(make_queue: MakeQueue) -> None:
    queue = make_queue(Carry(request_id=request_id, tenant=tenant))

    @queue.task
    def on_thread() -> tuple[str, str | None]:
        return request_id.get("none"), tenant.get()

    @queue.task
    async def in_coroutine() -> tuple[str, str | None]:
        return request_id.get("none"), tenant.get()

    def requested() -> list[object]:
        request_id.set("r-1")
        tenant.set("acme")
        return [task.enqueue().result(30) for task in (on_thread, in_coroutine)]

    with working(queue):
        assert copy_context().run(requested) == [("r-1", "acme")] * 2
        # What one task was given, the next one on that thread does not see.
        assert [task.enqueue().result(30) for task in (on_thread, in_coroutine)] == [("none", None)] * 2


def test_a_task_hands_the_values_on_and_a_header_of_its_own_wins(make_queue: MakeQueue) -> None:
    queue = make_queue(Carry(request_id=request_id))

    @queue.task
    def inner() -> str:
        return request_id.get("none")

    @queue.task
    def outer() -> list[str]:
        assert current_task().headers == {"request_id": "r-2"}
        return [inner.enqueue().id, inner.using(headers={"request_id": "own"}).enqueue().id]

    def requested() -> list[str]:
        request_id.set("r-2")
        return outer.enqueue().result(30)

    with working(queue):
        ids = copy_context().run(requested)
        assert [queue.handle(task_id).result(30) for task_id in ids] == ["r-2", "own"]


def test_a_schedule_has_no_request(make_queue: MakeQueue) -> None:
    queue = make_queue(Carry(request_id=request_id))

    @queue.task
    def tick() -> str:
        return request_id.get("none")

    queue.schedule(tick.call(), Every(3600), id="tick")
    with working(queue):
        assert queue.trigger_schedule("tick").result(30) == "none"


def test_only_context_variables_are_taken() -> None:
    with pytest.raises(TypeError, match=r"Carry\(request_id=…\) takes a contextvars.ContextVar, not 'r-1'"):
        Carry(request_id="r-1")  # type: ignore[arg-type]  # what the test is about
