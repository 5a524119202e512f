"""A program as its user writes it: one module, a process that works, others that enqueue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Self

import pytest

from omniq import TaskState
from tests.faults.scene import Scene
from tests.faults.stages import SqliteStage
from tests.fork_server import Popen

SHOP = """
    from pathlib import Path

    from omniq import TaskQueue, current_task

    queue = TaskQueue()


    @queue.task
    async def greet(name: str) -> str:
        return f"hello {name}"


    @queue.task
    def shout(path: Path, times: int = 1) -> Path:
        current_task().progress(1, 2)
        return path.with_name(path.name.upper() * times)


    @queue.task(max_retries=0)
    def fail() -> None:
        raise RuntimeError("out of bread")
"""


class Shop:
    """A folder with the module ``shop``, and its worker.

    :param text: of the module.
    :param url: of its store; None: in the folder.
    """

    def __init__(self, folder: Path, text: str = SHOP, url: str | None = None) -> None:
        self.folder = folder
        (folder / "shop.py").write_text(dedent(text))
        self.environment = {**os.environ, "OMNIQ_URL": url or f"sqlite:///{folder}/jobs.db"}
        self.worker = self._start("import shop; shop.queue.run_worker(lease=1)")

    def _start(self, program: str) -> subprocess.Popen[str]:
        return Popen(
            [sys.executable, "-W", "error", "-c", program],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.worker.poll() is None:
            self.worker.kill()
            self.worker.communicate()

    def ask(self, program: str, timeout: float = 30) -> tuple[int, str, str]:
        """Run another process to its end."""
        process = self._start("from shop import *\n" + dedent(program))
        said, complained = process.communicate(timeout=timeout)
        return process.returncode, said, complained

    def close(self) -> tuple[int, str, str]:
        """Stop the worker."""
        if self.worker.poll() is None:
            self.worker.send_signal(signal.SIGTERM)
        said, complained = self.worker.communicate(timeout=30)
        return self.worker.returncode, said, complained


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with Shop(tmp_path) as shop:
        yield shop


def test_a_program_hands_work_to_another_process_and_gets_its_results(shop: Shop) -> None:
    said = shop.ask(
        """
        handle = greet.enqueue("world")
        print(handle.result(30))
        print(shout.enqueue(Path("/srv/a.png"), times=2).result(30))
        print([handle.result(30) for handle in queue.enqueue_many([greet.call("a"), greet.call(name="b")])])
        """
    )
    assert said == (0, "hello world\n/srv/A.PNGA.PNG\n['hello a', 'hello b']\n", "")
    # Without a word on either stream: what it logs is the program's to show.
    assert shop.close() == (0, "", "")


def test_a_coroutine_program_does_too(shop: Shop) -> None:
    said = shop.ask(
        """
        import asyncio

        async def main():
            async with queue:
                handle = await greet.aenqueue("world")
                print(await handle, (await handle.atask()).state)

        asyncio.run(main())
        """
    )
    assert said == (0, "hello world succeeded\n", "")


def test_a_failure_is_shown_with_the_workers_traceback(shop: Shop) -> None:
    code, said, complained = shop.ask("fail.enqueue().result(30)")

    assert (code, said) == (1, "")
    assert "omniq.errors.TaskFailed: RuntimeError: out of bread" in complained
    assert "The worker's traceback:" in complained
    assert 'raise RuntimeError("out of bread")' in complained


def test_an_id_is_enough_to_find_a_task_from_a_third_process(shop: Shop) -> None:
    _, task_id, _ = shop.ask('print(shout.enqueue(Path("b"), times=3).id)')
    said = shop.ask(
        f"""
        handle = queue.handle("{task_id.strip()}")
        print(handle.result(30), handle.task().progress)
        """
    )
    assert said == (0, "BBB Progress(done=1, total=2, note='')\n", "")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path, SqliteStage(tmp_path)) as scene:
        yield scene


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_retry_waits_in_the_store_and_not_in_the_worker_that_asked_for_it(scene: Scene, end: str) -> None:
    first = scene.worker()
    handle = scene.enqueue("again", 0.3)
    scene.wait_for(lambda: handle.task().state is TaskState.SCHEDULED, "the first attempt", first)
    if end == "stopped":
        first.send(signal.SIGTERM)
        assert first.ended() == 0
    else:
        first.kill()

    second = scene.worker()
    assert handle.result(30)
    record = handle.task()
    assert [event.pid for event in scene.history.events("started", task=handle.id)] == [first.pid, second.pid]
    assert record.attempt == 2
    assert record.started_at is not None
    assert record.started_at >= record.run_at
    scene.check()


def test_an_idle_worker_in_another_process_is_woken_by_a_new_task(scene: Scene) -> None:
    # It looks by itself only now and then: here it must be told.
    scene.worker(lease=30)
    for _ in range(3):
        handle = scene.enqueue("thread")
        assert handle.result(30)
    scene.check()
