"""What tasks do to the process that they share with their worker; the application of test_worker_process.py."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

from omniq import TaskQueue

queue = TaskQueue("sqlite:///jobs.db", max_retries=0)
forking = multiprocessing.get_context("fork")


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def _make_garbage() -> weakref.ref[_Cycle]:
    """Leave behind what only a full collection finds."""
    cycle = _Cycle()
    gc.collect()
    return weakref.ref(cycle)


garbage = _make_garbage()


def _wait_for(flag: Path) -> None:
    while not flag.exists():
        time.sleep(0.01)  # no event crosses processes


def _terminate_children() -> list[int | None]:
    codes = []
    for pause in (0.0, 0.2):
        child = forking.Process(target=time.sleep, args=(60,), daemon=True)
        child.start()
        time.sleep(pause)  # it ends while it starts, and while it runs
        child.terminate()
        child.join(20)
        codes.append(child.exitcode)
    with forking.Pool(2) as pool:
        codes.append(sum(pool.map(abs, [-1, -2])))
    for number in (signal.SIGINT, 0):
        forked = os.fork()
        if not forked:
            if number:
                time.sleep(60)  # until it is killed
            raise LookupError("a child that comes back into the worker's code")
        os.kill(forked, number)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]))
    return codes


@queue.task
def children_of_a_thread() -> list[int | None]:
    return _terminate_children()


@queue.task
async def children_of_a_coroutine() -> list[int | None]:
    return _terminate_children()


@queue.task(executor="process")
def children_of_a_process() -> list[int | None]:
    return _terminate_children()


@queue.task
async def add(left: int, right: int) -> int:
    return left + right


@queue.task
async def count_frozen() -> int:
    return gc.get_freeze_count()


@queue.task
async def garbage_is_gone() -> bool:
    return garbage() is None


@queue.task
async def leave_a_thread() -> None:
    await asyncio.to_thread(time.sleep, 600)


@queue.task
def leave_everything() -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()
    forking.Process(target=time.sleep, args=(600,)).start()


@queue.task
async def leave_a_stubborn_coroutine() -> None:
    async def stay() -> None:
        while True:
            try:
                await asyncio.sleep(600)  # until it is cancelled
            except asyncio.CancelledError:
                logging.getLogger("hazards").info("no")

    asyncio.get_running_loop().stays = asyncio.create_task(stay())  # type: ignore[attr-defined]  # to keep it alive


@queue.task
async def block(flag: Path) -> None:
    flag.touch()  # noqa: ASYNC240  # this, too, is
    time.sleep(600)  # noqa: ASYNC251  # the mistake that is tested


@queue.task(executor="process")
def hold_in_process(here: Path, flag: Path) -> str:
    here.touch()
    _wait_for(flag)
    return "ended"


@queue.task
def hold(here: Path, flag: Path) -> str:
    here.touch()
    _wait_for(flag)
    return "ended"


@queue.task
async def exit_in_a_child(how: str) -> None:
    async def leave() -> None:
        await asyncio.sleep(0)  # others run meanwhile
        if how == "exit":
            sys.exit()
        if how == "interrupt":
            raise KeyboardInterrupt
        asyncio.get_running_loop().stop()

    async with asyncio.TaskGroup() as group:
        group.create_task(leave())


@queue.task
async def cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()
