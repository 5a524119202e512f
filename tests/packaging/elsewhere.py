"""Run by test_elsewhere.py: takes away what only POSIX systems have, imports all of OmniQ, and runs tasks."""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path

import nats
import psycopg
import redis.asyncio

_LIBRARIES = asyncio, multiprocessing.connection, nats, psycopg, redis, subprocess
"""Imported before: they have guards of their own for what is taken away here."""
PACKAGES = "omniq", "omniq_local", "omniq_redis", "omniq_postgres", "omniq_nats"
GONE = {
    os: (
        "fork killpg getpgid setpgid setsid getuid geteuid getgid chown fchmod pread pwrite fdatasync register_at_fork "
        "sched_getaffinity sysconf O_DIRECTORY O_NOFOLLOW O_NONBLOCK WNOHANG"
    ),
    signal: "SIGQUIT SIGKILL SIGSTOP SIGCONT SIGHUP SIGCHLD SIGALRM pthread_sigmask setitimer",
}
"""What Windows does not have of what Linux has, as far as OmniQ might use it."""
MODULES = "fcntl", "resource", "termios", "pwd", "grp", "tty", "pty"
REFUSED = "omniq_local.files"
"""The store that needs more of the system than there is."""
OWN_EXTRA = "omniq.contrib", "omniq.dashboard", "omniq.testing.pytest_plugin"
"""What needs libraries beside those of the core."""


def take_away() -> None:
    for module, names in GONE.items():
        for name in names.split():
            delattr(module, name)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # so says the import system: there is none


def import_all() -> list[str]:
    failed = []
    for package in PACKAGES:
        root = importlib.import_module(package)
        for found in pkgutil.walk_packages(root.__path__, f"{package}.", onerror=lambda _: None):
            if found.name.startswith((REFUSED, *OWN_EXTRA)) or found.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(found.name)
            except Exception as error:
                failed.append(f"{found.name}: {type(error).__name__}: {error}")
    return failed


def work(url: str) -> list[int]:
    from omniq import TaskQueue

    queue = TaskQueue(url)

    @queue.task
    def double(number: int) -> int:
        return 2 * number

    @queue.task
    async def add(number: int) -> int:
        return number + 1

    async def both() -> list[int]:
        async with queue, queue.worker():
            return [await (await double.aenqueue(3)), await (await add.aenqueue(3))]

    return asyncio.run(both())


def refusals(folder: Path) -> list[str]:
    from omniq import ConfigurationError, TaskQueue
    from omniq.cli import main

    told = []
    for url in (f"file://{folder}/jobs", "memory://"):
        try:
            queue = TaskQueue(url)
            queue.task(executor="process")(_compute)
            queue.worker()
            asyncio.run(queue.worker().run())
        except ConfigurationError as error:
            told.append(str(error))
    assert main(["demo"]) != 0
    return told


def _compute() -> None: ...


if __name__ == "__main__":
    take_away()
    assert import_all() == [], "\n".join(import_all())
    here = Path(sys.argv[1])
    assert work("memory://") == work(f"sqlite:///{here}/jobs.db") == [6, 4]
    print(*refusals(here), sep="\n")
