"""A soak, run by hand: tasks flow while a transaction is held open that keeps vacuum from removing anything.

``python -m tests.postgres.soak [--minutes 10] [--rate 2000] [--url postgresql://…]`` starts a server of its own (with
default durability) unless a URL is given, enqueues and works on so many tasks a second, and prints every so often:
how many were done, how long claims took, how many rows are dead. For the second half of the time the transaction is
held; in a last tenth it has ended and vacuum can catch up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import psycopg

from omniq.plugins import default_plugins
from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import NewTask, Succeeded
from tests.servers.postgres import PostgresServer

BATCH = 100


class Soak:
    """The flow of tasks, and what is measured of it.

    :param rate: tasks a second.
    """

    def __init__(self, url: str, rate: int) -> None:
        self.url = url
        self.rate = rate
        self.done = 0
        self.claims: list[float] = []
        self.finishes: list[float] = []
        self.backlog = 0

    def storage(self) -> Storage:
        return default_plugins().open_storage(parse_url(self.url, "soak"))

    async def produce(self, storage: Storage, until: float) -> None:
        began, sent = time.monotonic(), 0
        while (now := time.monotonic()) < until:
            due = int((now - began) * self.rate) - sent
            if due >= BATCH:
                await storage.enqueue(
                    [
                        NewTask(id=new_id(), queue="soak", name="soak.task", body=b"[]", result_ttl=30)
                        for _ in range(due)
                    ]
                )
                sent += due
                self.backlog += due
            await asyncio.sleep(0.02)  # until the next are due

    async def work(self, storage: Storage, until: float) -> None:
        while time.monotonic() < until:
            began = time.perf_counter()
            claimed = await storage.claim({"soak": BATCH}, worker="soak", lease=60)
            took = time.perf_counter()
            self.claims.append(took - began)
            if not claimed:
                await storage.wait_for_work(["soak"], 1)
                continue
            outcomes = [Succeeded(id=task.id, delivery=task.delivery, result=b"1") for task in claimed]
            assert all(await storage.finish(outcomes))
            self.finishes.append(time.perf_counter() - took)
            self.done += len(claimed)
            self.backlog -= len(claimed)

    async def keep_up(self, storage: Storage, until: float) -> None:
        while time.monotonic() < until:
            await storage.recover(100)
            while await storage.prune(1000) == 1000:
                pass
            await asyncio.sleep(1)  # as a worker's upkeep does

    async def report(self, until: float, every: float, held: tuple[float, float]) -> None:
        began, last = time.monotonic(), 0
        print(
            "    s  tasks/s  backlog  claim ms p50   max  finish ms  dead rows: live    delta   ended   held",
            flush=True,
        )
        while time.monotonic() < until:
            await asyncio.sleep(every)  # until the next line of the report
            elapsed = time.monotonic() - began
            dead = await asyncio.to_thread(self.dead)
            claims, self.claims = [1000 * value for value in self.claims] or [0.0], []
            finishes, self.finishes = [1000 * value for value in self.finishes] or [0.0], []
            is_held = "yes" if held[0] <= elapsed <= held[1] else "no"
            print(
                f"{elapsed:5.0f} {(self.done - last) / every:8.0f} {self.backlog:8} {statistics.median(claims):13.1f} "
                f"{max(claims):5.0f} {statistics.median(finishes):10.1f} {dead['live']:16,} {dead['delta']:8,} "
                f"{dead['ended']:7,} {is_held:>6}",
                flush=True,
            )
            last = self.done

    def dead(self) -> dict[str, int]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT relname, n_dead_tup FROM pg_stat_all_tables WHERE schemaname = 'omniq' AND relname LIKE 'soak%'"
            ).fetchall()
        return {name.removeprefix("soak_"): number for name, number in rows}

    async def hold(self, begin: float, end: float) -> None:
        """Hold a transaction open that sees everything as it was when it began."""
        await asyncio.sleep(begin)  # when the run wants it
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            await connection.execute("SELECT count(*) FROM pg_class")
            await asyncio.sleep(end - begin)  # how long the run wants it

    async def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        held = (seconds * 0.2, seconds * 0.9)
        async with contextlib.AsyncExitStack() as stack:
            storages = []
            for _ in range(3):
                storage = self.storage()
                await storage.open()
                stack.push_async_callback(storage.close)
                storages.append(storage)
            await asyncio.gather(
                self.produce(storages[0], until),
                self.work(storages[1], until),
                self.keep_up(storages[2], until),
                self.report(until, max(5.0, seconds / 30), held),
                self.hold(*held),
            )
        print(f"{self.done} tasks in {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--url")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = options.url
        if url is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(PostgresServer(folder)).url
        asyncio.run(Soak(url, options.rate).run(options.minutes * 60))


if __name__ == "__main__":
    main()
