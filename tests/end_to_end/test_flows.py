"""Flows as a user writes them, on each store that holds them: one process enqueues, another one works."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from omniq import TaskGroup
from tests.end_to_end.test_processes import Shop
from tests.faults.scene import Scene
from tests.faults.stages import LOCAL, Stage, hold_flows
from tests.servers.starting import MOSTLY_LONG

MANY = int(os.environ.get("OMNIQ_MANY_TASKS", "2000"))
"""Tasks of a large flow; the ten thousand of the benchmark take a minute on each store."""
SHOP = """
    from pathlib import Path

    from omniq import Ended, TaskQueue, current_task

    queue = TaskQueue()


    @queue.task
    def fetch(url: str) -> bytes:
        return url.encode()


    @queue.task
    async def count(page: bytes) -> int:
        return len(page)


    @queue.task
    def report(counts: list[int], title: str) -> str:
        return f"{title}: {counts}"


    @queue.task(max_retries=0)
    def find(path: Path) -> bytes:
        return path.read_bytes()


    @queue.task
    def audit(ends: list[Ended[bytes]]) -> list[str]:
        return [end.output.decode() if end.ok else end.error.type for end in ends]


    @queue.task
    async def crawl(links: int) -> int:
        for number in range(links):
            await current_task().aspawn(count.call(b"x" * number))
        return links


    @queue.task
    def clean_up() -> str:
        return "clean"
"""


@pytest.fixture
def shop(tmp_path: Path, stage: Stage) -> Iterator[Shop]:
    with Shop(tmp_path, SHOP, stage.url) as shop:
        yield shop


on_each_store = pytest.mark.parametrize("stage", hold_flows(*LOCAL, *MOSTLY_LONG), indirect=True)


@on_each_store
def test_a_program_has_flows_run_by_another_process(shop: Shop) -> None:
    said = shop.ask(
        """
        from datetime import timedelta
        from omniq import TaskCancelled, TaskGroup, each, gather
        from omniq.testing import wait_until

        def run(call):
            return queue.enqueue_flow(call).result(100)

        print(run(fetch.call("chain").then(count)))
        pages = each(fetch, ["a", "bb", "ccc"])
        print(run(report.call(each(count, pages.outputs).outputs, title="group")))
        page = fetch.call("page")
        print(run(report.call(gather([count.call(page.output), count.call(page.output)]), title="diamond")))
        print(run(report.call(each(count, []).outputs, title="empty")))
        print(run(audit.call(TaskGroup([fetch.call("fine"), find.call(Path("nowhere"))]).outcomes)))

        handle = queue.enqueue_flow(clean_up.call().after(crawl.call(3)))
        print(handle.result(100), handle.flow.progress().counts["succeeded"])

        handle = queue.enqueue_flow(find.call(Path("late")).then(count))
        try:
            handle.result(100)
        except TaskCancelled as error:
            print("FileNotFoundError" in str(error))
        Path("late").write_bytes(b"now")
        print(handle.flow.retry(), handle.result(100))

        handle = queue.enqueue_flow(fetch.using(delay=timedelta(hours=1)).call("never").then(count))
        print(handle.flow.cancel())
        wait_until(lambda: handle.flow.progress().finished_at is not None)
        print({str(task.state) for task in handle.flow.tasks()})
        """,
        timeout=120,
    )
    expected = """\
5
group: [1, 2, 3]
diamond: [4, 4]
empty: []
['fine', 'FileNotFoundError']
clean 5
True
1 3
True
{'cancelled'}
"""
    assert said == (0, expected, "")


@pytest.mark.long
@pytest.mark.timeout(900)  # it waits ten minutes for the end
@on_each_store
def test_thousands_of_tasks_wait_for_one_and_one_waits_for_all_of_them(tmp_path: Path, stage: Stage) -> None:
    with Scene(tmp_path, stage) as scene:
        for _ in range(2):
            scene.worker(concurrency=50, threads=4, lease=120)
        step = scene.function("step")
        first = step.call([])
        handle = scene.queue.enqueue_flow(TaskGroup([step.call([first.output]) for _ in range(MANY)]).then(step))
        scene.history.note("enqueued", handle.id)
        scene.wait_drained(600)
        scene.check()
        started = scene.history.events("started")
        assert sorted(event.task for event in started) == sorted(task.id for task in handle.flow.tasks()), "each once"
        *others, last = scene.history.events("ran")
        assert last.task == handle.id
        (begun,) = [event.at for event in started if event.task == handle.id]
        assert begun > max(event.at for event in others)
