"""Under ``python -W error`` everything can be imported, and tasks run wherever they can: nothing warns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

IMPORT = """
import importlib, pkgutil, sys
for package in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        # The former run at once; the latter are for a project of Django.
        if not module.name.endswith("__main__") and not module.name.startswith("omniq.contrib.django."):
            importlib.import_module(module.name)
"""
TASKS = """
import os
from omniq import Exponential, TaskQueue

queue = TaskQueue("sqlite:///jobs.db")

@queue.task
async def on_the_loop() -> int:
    return os.getpid()

@queue.task
def on_a_thread() -> int:
    return os.getpid()

@queue.task(executor="process")
def in_a_process() -> int:
    return os.getpid()

@queue.task(retry=Exponential(delay=0.01), max_retries=1)
async def fails() -> None:
    raise ValueError("it fails")
"""
RUN = """
import asyncio, os, tasks
from omniq import TaskFailed

async def main() -> None:
    async with tasks.queue, tasks.queue.worker(processes=1):
        assert await (await tasks.on_the_loop.aenqueue()) == os.getpid()
        assert await (await tasks.on_a_thread.aenqueue()) == os.getpid()
        assert await (await tasks.in_a_process.aenqueue()) != os.getpid()
        try:
            await (await tasks.fails.aenqueue())
        except TaskFailed:
            print("all of them ended")

asyncio.run(main())
"""
PACKAGES = ("omniq", "omniq_local", "omniq_nats", "omniq_postgres", "omniq_redis")


def run(folder: Path, program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    # What is raised where nothing can catch it, as at the end of the process, is only printed.
    assert (done.returncode, "Warning" in done.stderr) == (0, False), done.stderr
    return done.stdout


def test_no_import_warns(tmp_path: Path) -> None:
    run(tmp_path, IMPORT, *PACKAGES)


def test_a_worker_and_its_child_process_do_not_warn(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS, encoding="utf-8")
    assert run(tmp_path, RUN).split("\n")[0] == "all of them ended"
