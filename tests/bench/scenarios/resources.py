"""What a worker costs that has nothing to do, and what a waiting task costs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.job import Job
from tests.bench.marks import Marks
from tests.bench.probes import Probe
from tests.bench.scenarios.draining import wait_until
from tests.bench.workers import WorkerProcess

__all__ = ["idle", "memory_of", "waiting"]

SETTLE = 2.0
"""Seconds for a worker to come to rest."""
REPORTED = 12.0
"""Seconds after which an idle PostgreSQL backend has told how many transactions it had."""


class Counter:
    """Counts what a worker asks of its store."""

    def __init__(self) -> None:
        self.calls = 0
        self.transactions = 0

    def trace_sqlite(self) -> None:
        """Count the transactions of connections opened from now on; a statement outside of any counts as one."""
        connect = sqlite3.connect

        def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **kwargs)

            def on_statement(_: str) -> None:
                self.transactions += not connection.in_transaction

            connection.set_trace_callback(on_statement)
            return connection

        sqlite3.connect = traced  # type: ignore[assignment]  # what takes anything takes what the overloads take

    def trace_omniq(self, job: Job) -> None:
        """Count the calls of the storage contract, by the worker and its heartbeat, whatever they come to."""
        from omniq.plugins import default_plugins
        from omniq.storage import Storage
        from omniq.storage.urls import parse_url
        from tests.bench.contenders.omniq_queue import url

        # Never opened: only its class is asked for.
        storage = type(default_plugins().open_storage(parse_url(url(job))))
        for name in Storage.__abstractmethods__ - {"open", "close", "sibling"}:
            setattr(storage, name, self._counted(getattr(storage, name)))

    def _counted(self, method: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return method(*args, **kwargs)

        return counted


def idle(job: Job, marks: Marks) -> dict[str, float]:
    """Let a worker with nothing to do run for ``size`` seconds."""
    counter = Counter()
    probe = Probe(job)
    counter.trace_sqlite()
    if job.contender == "omniq":
        counter.trace_omniq(job)

    async def run() -> dict[str, float]:
        contender = job.make(marks)
        async with contender.worker():
            await contender.aenqueue(0)
            settled = REPORTED if job.store == "postgres" else min(SETTLE, job.size)
            await asyncio.sleep(settled)  # what starting costs is over by then
            probe.begin()
            before = contender.seconds_of_cpu(), counter.calls, counter.transactions, time.monotonic()
            await asyncio.sleep(job.size)  # what is measured
            cpu, calls, transactions, took = (
                after - earlier
                for after, earlier in zip(
                    (contender.seconds_of_cpu(), counter.calls, counter.transactions, time.monotonic()),
                    before,
                    strict=True,
                )
            )
            asked = probe.requests()
            memory = sum(memory_of(pid) for pid in contender.pids())
            measured = {"idle cpu": 100 * cpu / took, "idle rss": memory / 1e6}
            if job.url:
                measured["idle requests"] = 60 * asked / took
            if job.contender == "omniq":
                measured["idle calls"] = 60 * calls / took
            if job.store == "sqlite":
                measured["idle sql"] = 60 * transactions / took
        await contender.close()
        return measured

    return asyncio.run(run())


def waiting(job: Job, marks: Marks) -> dict[str, float]:
    """Let many tasks wait: what they take of a process that holds them, or how large a worker is in front of them."""

    async def in_memory() -> dict[str, float]:
        contender = job.make(marks)
        await contender.enqueue_many(range(10))
        before = memory_of(os.getpid())
        await contender.enqueue_many(range(job.size))
        after = memory_of(os.getpid())
        return {"waiting task": (after - before) / job.size, "waiting rss": after / 1e6}

    async def in_a_store() -> dict[str, float]:
        held = replace(job, kind="hold")
        contender = held.make(marks)
        probe = Probe(job)
        await contender.enqueue_many(range(10))
        before = probe.bytes_held()
        await contender.enqueue_many(range(job.size))
        held_by_server = probe.bytes_held() - before
        await contender.close()
        worker = WorkerProcess(replace(held, start_at_once=True))

        async def has_begun() -> bool:
            worker.check()
            return marks[0] != 0

        try:
            await wait_until(has_begun, "the first task has begun")
            await asyncio.sleep(min(SETTLE, job.size / 10_000))  # nothing tells that it is done
            measured = {"waiting rss": memory_of(worker.pid) / 1e6}
            if held_by_server:
                measured["waiting task"] = held_by_server / job.size
            return measured
        finally:
            worker.kill()

    return asyncio.run(in_memory() if job.store == "memory" else in_a_store())


def memory_of(pid: int) -> int:
    """Return how many bytes of a process are in memory."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) * 1024
