"""What a queue's owner can see and do besides enqueueing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from omniq import (
    Fixed,
    TaskFailed,
    TaskNotFound,
    TaskQueue,
    TaskState,
    current_task,
)
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import StoredTask
from omniq.testing import wait_until
from omniq_local.memory.storage import MemoryStorage
from tests.core.running import Gate, working


class Broken(Exception):
    pass


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
