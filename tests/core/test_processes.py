"""CPU-bound tasks run in processes: side by side, stoppable, and one that crashes takes nobody with it."""

from __future__ import annotations

import asyncio
import functools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from omniq import Progress, TaskCancelled, TaskFailed, TaskHandle, TaskQueue, TaskState, current_task
from omniq._worker import processes
from omniq._worker.attempt import Attempt
from omniq._worker.worker import Worker
from omniq.testing import await_until
from tests.core import cpu_tasks, plugged_cpu_tasks

TIME = 60.0
"""Seconds after which something hangs: a new process imports all of OmniQ, on a machine that may be busy."""


def working(scenario: Callable[[Worker], Any], queue: TaskQueue = cpu_tasks.queue, **options: Any) -> None:
    async def run() -> None:
        async with queue.worker(**options) as worker:
            await scenario(worker)
        await queue.aclose()

    asyncio.run(run())
    assert multiprocessing.active_children() == []


async def is_gone(pid: int) -> bool:
    return has_ended(pid)


async def exists(path: Path) -> bool:
    return path.exists()  # noqa: ASYNC240  # that takes no time


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # What was orphaned may wait for init to take note of its end.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def failure(handle: TaskHandle[Any]) -> TaskFailed:
    with pytest.raises(TaskFailed) as failed:
        await handle.aresult(TIME)
    return failed.value


def test_two_tasks_are_in_the_middle_at_the_same_time_each_in_a_process_of_its_own(tmp_path: Path) -> None:
    async def scenario(worker: Worker) -> None:
        here, there = tmp_path / "here", tmp_path / "there"
        handles = await cpu_tasks.queue.aenqueue_many(
            [cpu_tasks.meet.call(here, there), cpu_tasks.meet.call(there, here)]
        )
        pids = {await handle.aresult(TIME) for handle in handles}
        assert len(pids) == 2
        assert os.getpid() not in pids
        assert await (await cpu_tasks.on_a_thread.aenqueue()).aresult(TIME) == os.getpid()

    working(scenario, processes=2)


def test_a_task_that_crashes_its_process_fails_alone_and_is_retried(tmp_path: Path) -> None:
    async def scenario(worker: Worker) -> None:
        handles = [await cpu_tasks.always_crash.aenqueue(), await cpu_tasks.crash.aenqueue(tmp_path / "crashed")]
        neighbours = [await cpu_tasks.pid.aenqueue() for _ in range(4)]
        failed = await failure(handles[0])
        assert failed.error.type == "WorkerLost"
        assert "signal 6" in failed.error.message
        assert await handles[1].aresult(TIME) == "came through"
        assert [await neighbour.aresult(TIME) for neighbour in neighbours]

    working(scenario, processes=1)


def test_a_timeout_kills_the_task(tmp_path: Path) -> None:
    async def scenario(worker: Worker) -> None:
        failed = await failure(await cpu_tasks.too_long.aenqueue())
        assert failed.error.type == "TaskTimeout"
        assert isinstance(await (await cpu_tasks.pid.aenqueue()).aresult(TIME), int)

    working(scenario, processes=1)


def test_a_cancellation_kills_the_task_and_its_progress_was_seen(tmp_path: Path) -> None:
    marker = tmp_path / "pid"

    async def scenario(worker: Worker) -> None:
        handle = await cpu_tasks.endless.aenqueue(marker)

        async def has_begun() -> bool:
            return (await handle.atask()).progress == Progress(done=1, total=3, note="begun")

        await await_until(has_begun, TIME, "the task says that it has begun")
        assert await handle.acancel()
        with pytest.raises(TaskCancelled):
            await handle.aresult(TIME)
        await await_until(lambda: is_gone(int(marker.read_text())), TIME, "the process is gone")

    working(scenario, processes=1, lease=2)


def test_a_worker_that_must_stop_kills_the_task_and_puts_it_back(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    handles: list[TaskHandle[None]] = []

    async def scenario(worker: Worker) -> None:
        handles.append(await cpu_tasks.endless.aenqueue(marker))

        async def has_begun() -> bool:
            return bool(marker.exists() and marker.read_text())

        await await_until(has_begun, TIME, "the task has begun")
        await worker.drain()
        task = await handles[0].atask()
        assert (task.state, task.attempt) == (TaskState.READY, 0)
        await await_until(lambda: is_gone(int(marker.read_text())), TIME, "the process is gone")
        await handles[0].acancel()

    async def run() -> None:
        worker = cpu_tasks.queue.worker(processes=1, grace=0.0)
        await worker.start()
        await scenario(worker)
        await cpu_tasks.queue.aclose()

    asyncio.run(run())
    assert multiprocessing.active_children() == []


def test_errors_come_back_with_the_childs_traceback() -> None:
    async def scenario(worker: Worker) -> None:
        failed = await failure(await cpu_tasks.fail.aenqueue())
        assert (failed.error.type, failed.error.message) == ("LookupError", "not here")
        assert 'raise LookupError("not here")' in failed.error.traceback
        assert (await failure(await cpu_tasks.leave.aenqueue())).error.type == "SystemExit"

    working(scenario, processes=1)


def test_a_process_is_replaced_after_a_number_of_tasks() -> None:
    async def scenario(worker: Worker) -> None:
        pids = [await (await cpu_tasks.pid.aenqueue()).aresult(TIME) for _ in range(4)]
        assert pids[0] == pids[1] != pids[2] == pids[3]

    working(scenario, processes=1, process_tasks=2)


def test_a_process_is_replaced_when_it_has_grown_too_large() -> None:
    async def scenario(worker: Worker) -> None:
        small = await (await cpu_tasks.hoard.aenqueue(1)).aresult(TIME)
        large = await (await cpu_tasks.hoard.aenqueue(400)).aresult(TIME)
        after = await (await cpu_tasks.pid.aenqueue()).aresult(TIME)
        assert small == large != after

    working(scenario, processes=1, process_memory=300 << 20)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tasks were handed to a process each time."""
    sizes: list[int] = []
    usual = processes._Child.hand_over

    def hand_over(child: processes._Child, batch: Sequence[Attempt]) -> None:
        sizes.append(len(batch))
        usual(child, batch)

    monkeypatch.setattr(processes._Child, "hand_over", hand_over)
    return sizes


async def ran_quickly(marker: Path) -> None:
    """Have tasks run until it is known that they are quick."""
    for handle in await cpu_tasks.queue.aenqueue_many([cpu_tasks.step.call("quick", marker) for _ in range(50)]):
        await handle.aresult(TIME)


@pytest.mark.parametrize("fate", ["crash", "timeout", "cancel"])
def test_of_many_that_are_handed_over_at_once_one_ends_alone(fate: str, batches: list[int], tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    async def scenario(worker: Worker) -> None:
        await ran_quickly(marker)
        quick = cpu_tasks.step.call("quick", marker)
        step = cpu_tasks.step.using(timeout=1.0) if fate == "timeout" else cpu_tasks.step
        ends_alone = step.call("crash" if fate == "crash" else "hold", marker)
        handles = await cpu_tasks.queue.aenqueue_many([*[quick] * 20, ends_alone, *[quick] * 20])
        unlucky = handles.pop(20)
        if fate == "cancel":
            await await_until(lambda: exists(marker), TIME, "the task has begun")
            await unlucky.acancel()
            with pytest.raises(TaskCancelled):
                await unlucky.aresult(TIME)
        else:
            assert (await failure(unlucky)).error.type == {"crash": "WorkerLost", "timeout": "TaskTimeout"}[fate]
        assert all([await handle.aresult(TIME) for handle in handles])
        assert {(await handle.atask()).attempt for handle in handles} == {1}
        assert max(batches) > 1

    working(scenario, processes=1, lease=2)


def test_tasks_behind_one_that_takes_unexpectedly_long_run_in_another_process(
    batches: list[int], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"

    async def scenario(worker: Worker) -> None:
        await ran_quickly(marker)
        quick = cpu_tasks.step.call("quick", marker)
        handles = await cpu_tasks.queue.aenqueue_many([cpu_tasks.step.call("hold", marker), *[quick] * 60])
        pids = {await handle.aresult(TIME) for handle in handles[1:]}
        marker.unlink()
        assert await handles[0].aresult(TIME) not in pids
        assert max(batches) > 1

    working(scenario, processes=2)


IN_NO_MODULE = """
import sys
from dataclasses import dataclass
from omniq import TaskQueue
from omniq.testing import wait_until

if "--without" in sys.argv:
    sys.modules["cloudpickle"] = None
queue = TaskQueue("memory://")
offset = 40


@queue.task(executor="process")
def add(number: int) -> list[int]:
    import os

    return [number + offset, os.getpid()]


import asyncio, os


async def main() -> None:
    async with queue, queue.worker(processes=1):
        value, pid = await (await add.aenqueue(2)).aresult(60)
        assert pid != os.getpid()
        print(value)


asyncio.run(main())
"""


def test_a_function_of_no_module_travels_to_the_process_or_is_refused_where_it_is_declared() -> None:
    # As in a notebook: __main__ has no file that a process could import.
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=TIME, check=False)
    assert run([sys.executable, "-c", IN_NO_MODULE]).stdout == "42\n"
    refused = run([sys.executable, "-c", IN_NO_MODULE, "--without"])
    assert "TypeError" in refused.stderr.splitlines()[-1]
    assert "pip install 'omniq-core[cloudpickle]'" in refused.stderr


def test_a_process_that_was_killed_while_it_was_idle_costs_no_task_an_attempt() -> None:
    async def scenario(worker: Worker) -> None:
        idle = await (await cpu_tasks.pid_once.aenqueue()).aresult(TIME)
        os.kill(idle, signal.SIGKILL)
        assert await (await cpu_tasks.pid_once.aenqueue()).aresult(TIME) != idle

    working(scenario, processes=1)


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
def test_what_a_task_has_started_ends_with_it_when_it_is_killed(how: str, tmp_path: Path) -> None:
    marker = tmp_path / "pid"

    async def scenario(worker: Worker) -> None:
        handle = await cpu_tasks.parent.aenqueue(marker)

        await await_until(lambda: exists(marker), TIME, "the task has begun")
        if how == "cancelled":
            await handle.acancel()
        else:
            await worker.drain()
        await await_until(lambda: is_gone(int(marker.read_text())), TIME, "what the task has started is gone")
        await handle.acancel()

    working(scenario, processes=1, lease=2, grace=0.0)


def test_a_plugin_that_was_registered_by_hand_reaches_the_processes() -> None:
    async def scenario(worker: Worker) -> None:
        text, pid = await (await plugged_cpu_tasks.shout.aenqueue("hush")).aresult(TIME)
        assert text == "HUSH"
        assert pid != os.getpid()

    working(scenario, plugged_cpu_tasks.queue, processes=1)


def test_what_a_process_could_not_find_or_run_is_refused_at_once() -> None:
    queue = TaskQueue("memory://")

    def inner() -> None: ...

    async def coroutine() -> None: ...

    with pytest.raises(TypeError, match="top level"):
        queue.task(executor="process")(inner)
    with pytest.raises(TypeError, match="runs on the loop"):
        queue.task(executor="process")(coroutine)
    with pytest.raises(ValueError, match="executor must be"):
        queue.task(executor="gpu")(inner)  # type: ignore[call-overload]  # that is the mistake


# What they log


def test_the_worker_handles_what_a_process_logs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[str] = []

    def note_task(record: logging.LogRecord) -> bool:
        if record.name.startswith("shop"):
            tasks.append(current_task().id)
        return True

    pids: list[int] = []
    ids: list[str] = []

    async def scenario(worker: Worker) -> None:
        handle = await cpu_tasks.log.aenqueue()
        ids.append(handle.id)
        pids.append(await handle.aresult(TIME))

    monkeypatch.setattr(logging.getLogger("shop.chatty"), "level", logging.WARNING)
    caplog.handler.addFilter(note_task)
    with caplog.at_level(logging.INFO, "shop"):
        working(scenario)
    caplog.handler.removeFilter(note_task)

    sold, failed = [record for record in caplog.records if record.name.startswith("shop")]
    assert tasks == ids * 2
    assert (sold.getMessage(), sold.levelno, sold.process) == ("sold Unknown", logging.INFO, pids[0])
    assert (vars(sold)["customer"], "Unknown object" in vars(sold)["basket"]) == (7, True)
    for record in (sold, failed):
        fields = [vars(record)[name] for name in ("task_id", "task_name", "task_queue")]
        assert fields == [ids[0], "tests.core.cpu_tasks.log", "default"]
    assert failed.getMessage() == "no %d (its arguments do not fit: TypeError)"
    assert "LookupError: sold out" in (failed.exc_text or "")


def test_what_a_process_logs_carries_its_task_at_every_level(caplog: pytest.LogCaptureFixture) -> None:
    ids: list[str] = []

    async def scenario(worker: Worker) -> None:
        for _ in range(2):
            handle = await cpu_tasks.log_at_every_level.aenqueue()
            await handle.aresult(TIME)
            ids.append(handle.id)

    with caplog.at_level(logging.DEBUG, "shop"):
        working(scenario, processes=1)

    records = [record for record in caplog.records if record.name == "shop"]
    levels = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL, logging.INFO]
    assert [record.levelno for record in records] == levels * 2
    assert [vars(record)["task_id"] for record in records] == [*ids[:1] * 6, *ids[1:] * 6]
    assert {vars(record)["task_queue"] for record in records} == {"default"}
    # What the task says itself is kept; a thread of the task's speaks for it, too.
    assert [vars(record)["task_name"] for record in records[-2:]] == [
        "of its own",
        "tests.core.cpu_tasks.log_at_every_level",
    ]


def test_a_process_that_never_stops_logging_is_over_its_timeout_all_the_same() -> None:
    async def scenario(worker: Worker) -> None:
        assert "TaskTimeout" in str(await failure(await cpu_tasks.log_for_ever.aenqueue()))

    logging.getLogger("shop").setLevel(logging.INFO)
    try:
        working(scenario)
    finally:
        logging.getLogger("shop").setLevel(logging.NOTSET)
