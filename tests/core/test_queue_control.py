"""What a queue's owner can see and do besides enqueueing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from omniq import (
    Fixed,
    TaskFailed,
    TaskFunction,
    TaskNotFound,
    TaskQueue,
    TaskState,
    current_task,
)
from omniq.storage import Count
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import Omitted, StoredTask
from omniq.testing import wait_until
from omniq_local.memory.storage import MemoryStorage
from tests.core.running import Gate, working


class Broken(Exception):
    pass


def note_of(queue: TaskQueue) -> TaskFunction[[int], None]:
    @queue.task(name="note")
    def note(number: int) -> None: ...

    return note


def test_tasks_are_listed_newest_first_a_page_at_a_time(queue: TaskQueue) -> None:
    @queue.task(name="note")
    def note() -> None: ...

    ids = [handle.id for handle in queue.enqueue_many([note.call()] * 25)]

    seen: list[str] = []
    cursor = None
    while True:
        page = queue.tasks(limit=10, cursor=cursor)
        assert len(page) <= 10
        seen += [task.id for task in page]
        cursor = page.cursor
        if cursor is None:
            break

    assert seen == ids[::-1]
    assert [task.id for task in queue.tasks(name="note", queue="default", state="ready", limit=1)] == [ids[-1]]
    assert list(queue.tasks(state=TaskState.FAILED)) == []
    assert list(queue.tasks(name="other")) == []


def test_tasks_are_found_by_several_states_and_by_when_they_were_enqueued(queue: TaskQueue) -> None:
    note = note_of(queue)
    ids = [note.enqueue(number).id for number in range(4)]
    queue.cancel(ids[1])
    (edge,) = [task.created_at for task in queue.tasks() if task.id == ids[2]]
    assert [task.id for task in queue.tasks(states=["cancelled", TaskState.FAILED])] == [ids[1]]
    assert len(queue.tasks(states=["cancelled", "ready"])) == 4
    assert {task.id for task in queue.tasks(enqueued_after=edge)} <= {ids[1], ids[2], ids[3]}
    assert {task.id for task in queue.tasks(enqueued_before=edge)} <= {ids[0], ids[1]}
    assert len(queue.tasks(enqueued_before=edge)) + len(queue.tasks(enqueued_after=edge)) == 4
    assert len(queue.tasks(name="nothing", look_at=1)) == 0
    assert queue.tasks(name="nothing", look_at=1).cursor is not None


def test_a_bare_list_tells_sizes_and_the_task_that_it_is_bare(queue: TaskQueue) -> None:
    handle = note_of(queue).enqueue(10**30)
    (bare,) = queue.tasks(bare=True)
    whole = queue.get(handle.id)
    assert whole is not None
    assert whole.omitted is None
    assert bare.omitted == Omitted(body=len(whole.body))
    assert (bare.id, bare.name, bare.payload, bare.body) == (handle.id, "note", b"", b"")
    for field in ("args", "kwargs", "retry", "result"):
        with pytest.raises(RuntimeError, match=f"listed bare.*{handle.id}"):
            getattr(bare, field)


def test_tasks_are_counted(queue: TaskQueue) -> None:
    note = note_of(queue)
    ids = [note.enqueue(number).id for number in range(5)]
    queue.cancel(ids[0])
    assert queue.count_tasks() == Count(5)
    assert queue.count_tasks(state="cancelled") == queue.count_tasks(states=["cancelled", "failed"]) == Count(1)
    assert queue.count_tasks(name="note", limit=None) == Count(5)
    assert queue.count_tasks(name="note", limit=2) == Count(2, at_least=True)
    assert queue.count_tasks(name="other") == Count(0)


@pytest.mark.parametrize(
    ("wrong", "error", "what"),
    [
        ({"states": "failed"}, TypeError, "state='failed'"),
        ({"states": ["faild"]}, ValueError, "'faild'.*cancelled"),
        ({"state": "failed", "states": ["failed"]}, ValueError, "only one"),
        ({"look_at": 0}, ValueError, "look_at"),
        ({"enqueued_before": datetime(2030, 1, 1)}, ValueError, "enqueued_before.*no time zone"),  # noqa: DTZ001  # the mistake
        ({"enqueued_after": "2030"}, TypeError, "enqueued_after"),
        ({"limit": 0}, ValueError, "limit"),
    ],
)
def test_a_list_and_a_count_refuse_what_they_cannot_use(
    queue: TaskQueue, wrong: dict[str, Any], error: type[Exception], what: str
) -> None:
    for ask in (queue.tasks, queue.count_tasks):
        with pytest.raises(error, match=what):
            ask(**wrong)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 1001}, {"state": "lost"}, {"cursor": "no cursor"}])
def test_a_listing_that_cannot_be_given_is_refused(queue: TaskQueue, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}|{next(iter(wrong.values()))}"):
        queue.tasks(**wrong)  # type: ignore[arg-type]  # the mistake that is tested


def test_numbers_say_how_many_tasks_stand_where(queue: TaskQueue) -> None:
    @queue.task
    def note() -> None: ...

    note.enqueue()
    note.using(delay=60).enqueue()
    note.using(queue="mail").enqueue().cancel()
    queue.pause("mail")

    default, mail = queue.stats()
    assert (default.queue, mail.queue) == ("default", "mail")
    assert (default.counts[TaskState.READY], default.counts[TaskState.SCHEDULED]) == (1, 1)
    assert default.counts[TaskState.FAILED] == 0
    assert mail.counts[TaskState.CANCELLED] == 1
    assert (default.paused, mail.paused) == (False, True)
    assert default.oldest_ready is not None
    assert mail.oldest_ready is None


def test_a_failed_task_can_be_made_to_run_again_with_all_its_attempts(queue: TaskQueue) -> None:
    works: list[bool] = []

    @queue.task(max_retries=1, retry=Fixed(0))
    def fail() -> int:
        if not works:
            raise Broken
        return current_task().attempt

    handle = fail.enqueue()
    with working(queue):
        with pytest.raises(TaskFailed):
            handle.result(30)
        works.append(True)
        assert queue.retry(handle.id) is True
        assert handle.result(30) == 1
        assert queue.retry(handle.id) is False


def test_a_waiting_task_can_be_deleted_and_a_running_one_cannot(queue: TaskQueue, gate: Gate) -> None:
    @queue.task
    def hold() -> None:
        gate.wait()

    running = hold.enqueue()
    with working(queue, concurrency=1):
        wait_until(lambda: running.task().state is TaskState.RUNNING)
        waiting = hold.using(delay=60).enqueue()
        assert queue.delete(waiting.id) is True
        assert queue.delete(running.id) is False
        assert queue.delete(new_id()) is False
        with pytest.raises(TaskNotFound):
            waiting.result(30)
        gate.open()


def test_all_tasks_of_a_queue_in_a_state_can_be_removed(queue: TaskQueue) -> None:
    @queue.task
    def note() -> None: ...

    queue.enqueue_many([note.call()] * 3)
    note.using(delay=60).enqueue()
    note.using(queue="mail").enqueue()

    assert queue.purge("default", state="ready") == 3
    assert queue.purge("default") == 1
    assert queue.purge("default") == 0
    assert [task.queue for task in queue.tasks()] == ["mail"]
    with pytest.raises(ValueError, match="lost"):
        queue.purge("default", state="lost")


def test_a_paused_queue_gives_no_tasks_until_it_is_resumed(queue: TaskQueue) -> None:
    @queue.task
    def note(name: str) -> str:
        return name

    assert queue.pause("mail") is True
    assert queue.pause("mail") is False
    held = note.using(queue="mail").enqueue("held")
    with working(queue, queues=["mail", "default"]):
        assert note.enqueue("free").result(30) == "free"
        assert held.task().state is TaskState.READY
        assert queue.resume("mail") is True
        assert queue.resume("mail") is False
        assert held.result(30) == "held"


def test_a_worker_is_seen_with_what_it_runs_until_it_signs_off(queue: TaskQueue, gate: Gate) -> None:
    @queue.task
    def hold() -> None:
        gate.wait()

    handle = hold.enqueue()
    with working(queue) as worker:
        seen = wait_until(lambda: [info for info in queue.workers() if info.running])
        assert [(info.id, info.running) for info in seen] == [(worker.id, (handle.id,))]
        assert handle.task().worker == worker.id
        gate.open()
        handle.result(30)
    assert queue.workers() == []


class Mixed(MemoryStorage):
    """A storage of somebody else's that returns another task than the one that it is asked for."""

    other = ""

    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        return await super().get([self.other] * len(ids))


def test_a_storage_that_returns_another_task_passes_nobody_its_result() -> None:
    with TaskQueue(Mixed(parse_url("memory://"))) as queue:

        @queue.task
        def double(n: int) -> int:
            return 2 * n

        first, second = double.enqueue(1), double.enqueue(2)
        Mixed.other = first.id
        with working(queue):
            assert first.result(timeout=20) == 2
            with pytest.raises(TaskFailed, match="its record is that of task") as caught:
                second.result(timeout=20)
        assert caught.value.error.type == "CorruptRecord"
        shown = queue.get(second.id)
        assert shown is not None
        assert (shown.id, shown.state, shown.payload) == (second.id, "failed", b"")
