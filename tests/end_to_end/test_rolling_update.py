"""A program is updated while it runs: the script that enqueues first, its workers later. Real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from omniq import TaskQueue
from omniq.testing import wait_until
from tests.cli.program import Program, environment

OLD = """
import asyncio
import sys

from omniq import TaskQueue, current_task

queue = TaskQueue("sqlite:///STORE", max_retries=0)


@queue.task
def charge(amount):
    return f"{amount}"
"""
NEW = (
    OLD.replace("def charge(amount):", 'def charge(amount, currency="EUR"):').replace("{amount}", "{amount} {currency}")
    + """

@queue.task(max_retries=1)
async def refund(amount):
    async def pay():
        if current_task().attempt == 1:
            current_task().retry(delay=0)

    async with asyncio.TaskGroup() as group:
        group.create_task(pay())
    return f"refunded {amount}"


if __name__ == "__main__":
    handles = [charge.enqueue(5, currency="USD"), refund.enqueue(7)]
    print(*[handle.id for handle in handles])
"""
)


def test_a_worker_of_yesterday_leaves_what_it_cannot_run_to_one_of_today(tmp_path: Path) -> None:
    store = tmp_path / "jobs.db"
    for version, text in (("old", OLD), ("new", NEW)):
        (tmp_path / version / "shop").mkdir(parents=True)
        (tmp_path / version / "shop" / "jobs.py").write_text(text.replace("STORE", str(store)))
    enqueued = subprocess.run(
        [sys.executable, "shop/jobs.py"],
        cwd=tmp_path / "new",
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    started: list[Program] = []

    def start_worker(version: str) -> Program:
        started.append(Program("worker", "shop.jobs:queue", cwd=tmp_path / version))
        return started[-1]

    try:
        with TaskQueue(f"sqlite:///{store}") as queue:
            handles = [queue.handle(task_id) for task_id in enqueued.stdout.split()]
            old = start_worker("old")
            for handle in handles:
                wait_until(
                    lambda handle=handle: "; put back" in str(handle.task().error),  # type: ignore[misc]  # of its default
                    60,
                    "the task to be put back",
                )
            reasons = [str(handle.task().error) for handle in handles]
            assert "unexpected keyword argument 'currency'" in reasons[0]
            assert "no function is registered as 'shop.jobs.refund'" in reasons[1]
            assert old.stop() == 0
            assert old.stderr.count("put back 1 of 20 times") == 2

            start_worker("new")
            assert [handle.result(60) for handle in handles] == ["5 USD", "refunded 7"]
            assert [handle.task().attempt for handle in handles] == [1, 2]
    finally:
        for program in started:
            program.end()
