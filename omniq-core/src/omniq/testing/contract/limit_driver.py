"""Drives tasks under random limits through any operations, and checks each claim by what it knows itself.

It knows which tasks run and what each limit is, by its own count, and nothing of how a store keeps limits.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from omniq.limit import Limit
from omniq.storage import Storage
from omniq.task import StoredTask, TaskState
from omniq.testing.contract.steps import HELD, SHORT, add, lapsed, new_task, outcome

__all__ = ["Crowd", "LimitDriver"]

OPERATIONS = {
    "enqueue": 10,
    "claim": 10,
    "finish": 8,
    "lose": 1,
    "cancel": 1,
    "delete": 1,
    "run_now": 1,
    "change": 2,
}
"""What is done, and how often compared with others."""
QUEUES = ("a", "b")
KEYS = (None, "k1", "k2", "k3", "k4")
NAMES = (None, None, "x", "y")
STEPS = 40


class LimitDriver:
    """One random run.

    :param salt: what the names of queues and limits end with, so that several runs can share a store.
    """

    def __init__(self, store: Storage, rng: random.Random, salt: str = "") -> None:
        self._store = store
        self._rng = rng
        self._salt = salt
        self._caps: dict[tuple[str, ...], int] = {}
        self._tasks: dict[str, StoredTask | None] = {}
        """By id: what was claimed of a task that runs; None of one that waits."""
        self._places: dict[str, tuple[str, str | None, str | None]] = {}

    async def run(self) -> None:
        for queue in QUEUES:
            await self._change_queue(queue)
        for name in ("x", "y"):
            await self._change_name(name)
        names, weights = list(OPERATIONS), list(OPERATIONS.values())
        for _ in range(STEPS):
            await getattr(self, f"_{self._rng.choices(names, weights)[0]}")()
        await self._drain()

    # What it does

    async def _enqueue(self) -> None:
        tasks = []
        for _ in range(self._rng.randint(1, 6)):
            queue, key, name = self._rng.choice(QUEUES), self._rng.choice(KEYS), self._rng.choice(NAMES)
            place: dict[str, Any] = {"queue": queue + self._salt, "key": key, "limit": name and name + self._salt}
            later = 3600 if self._rng.random() < 0.1 else None
            task = new_task(**place, priority=self._rng.choice((0, 0, 5)), max_retries=10, run_at=_after(later))
            tasks.append(task)
            self._places[task.id] = (queue, key, name)
            self._tasks[task.id] = None
        await self._store.enqueue(tasks)

    async def _claim(self, queue: str | None = None, lease: float = HELD) -> list[StoredTask]:
        queue = queue or self._rng.choice(QUEUES)
        most = self._rng.randint(1, 4)
        claimed = await self._store.claim({queue + self._salt: most}, worker="w", lease=lease)
        assert len(claimed) <= most
        for task in claimed:
            assert self._tasks[task.id] is None, "it was claimed twice"
            self._tasks[task.id] = task
        running = self._running()
        for task in claimed:
            for scope in self._scopes(task.id):
                cap = self._caps.get(scope)
                assert cap is None or running[scope] <= cap, f"{running[scope]} tasks run under {scope}, not {cap}"
        return claimed

    async def _finish(self) -> None:
        running = [task for task in self._tasks.values() if task is not None]
        if not running:
            return
        task = self._rng.choice(running)
        kind = self._rng.choice(("succeeded", "succeeded", "failed", "retry", "released", "released later"))
        assert await self._store.finish([outcome(kind, task)]) == [True]
        self._ended(task.id) if kind in ("succeeded", "failed") else self._waits(task.id)

    async def _lose(self) -> None:
        claimed = await self._claim(lease=0.01)
        await lapsed(self._store, claimed)
        await self._store.recover(100)
        for task in claimed:
            self._waits(task.id)

    async def _cancel(self) -> None:
        waiting = [one for one, task in self._tasks.items() if task is None]
        if waiting:
            await self._store.cancel(chosen := [self._rng.choice(waiting)])
            self._ended(*chosen)

    async def _delete(self) -> None:
        waiting = [one for one, task in self._tasks.items() if task is None]
        if waiting:
            await self._store.delete(chosen := [self._rng.choice(waiting)])
            self._ended(*chosen)

    async def _run_now(self) -> None:
        await self._store.run_now([one for one, task in self._tasks.items() if task is None][:3])

    async def _change(self) -> None:
        if self._rng.random() < 0.5:
            await self._change_queue(self._rng.choice(QUEUES))
        else:
            await self._change_name(self._rng.choice(("x", "y")))

    async def _change_queue(self, queue: str) -> None:
        rng, own = self._rng, queue + self._salt
        whole = rng.choice((None, None, rng.randint(1, 3)))
        each = rng.choice((None, rng.randint(1, 2)))
        for key in KEYS:
            self._cap(("key", queue, str(key)), None if key is None else each)
        self._cap(("queue", queue), whole)
        if whole is None and each is None:
            await self._store.delete_limit(f"queue:{own}")
        else:
            per_key = None if each is None else Limit(concurrency=each)
            await self._store.put_limit(Limit(queue=own, concurrency=whole, per_key=per_key))

    async def _change_name(self, name: str) -> None:
        most = self._rng.choice((None, 1, 2, 3))
        self._cap(("name", name), most)
        if most is None:
            await self._store.delete_limit(f"name:{name}{self._salt}")
        else:
            await self._store.put_limit(Limit(name=name + self._salt, concurrency=most))

    async def _drain(self) -> None:
        """Work everything off. Where nothing can be claimed, each ready task must have a limit that is full."""
        for _ in range(10_000):
            waiting = [one for one, task in self._tasks.items() if task is None]
            if waiting:
                await self._store.run_now(waiting)
            idle = 0
            while idle < len(QUEUES):
                idle = 0
                for queue in QUEUES:
                    idle += not await self._claim(queue)
            running = self._running()
            for task_id in [one for one, task in self._tasks.items() if task is None]:
                full = [scope for scope in self._scopes(task_id) if running[scope] >= self._caps.get(scope, 10**9)]
                assert full, f"a slot is idle beside {self._places[task_id]} with {running} of {self._caps}"
            held = [task for task in self._tasks.values() if task is not None]
            if not held:
                break
            chosen = self._rng.sample(held, self._rng.randint(1, len(held)))
            answers = await self._store.finish([outcome("succeeded", task) for task in chosen])
            assert answers == [True] * len(chosen)
            self._ended(*[task.id for task in chosen])
        assert not self._tasks, f"{len(self._tasks)} tasks are stuck"
        stored = [stats for stats in await self._store.stats() if stats.queue in {q + self._salt for q in QUEUES}]
        assert not any(stats.counts[state] for stats in stored for state in (TaskState.READY, TaskState.RUNNING))

    # What it knows

    def _cap(self, scope: tuple[str, ...], most: int | None) -> None:
        if most is None:
            self._caps.pop(scope, None)
        else:
            self._caps[scope] = most

    def _scopes(self, task_id: str) -> list[tuple[str, ...]]:
        queue, key, name = self._places[task_id]
        found: list[tuple[str, ...]] = [("queue", queue)]
        if key is not None:
            found.append(("key", queue, key))
        if name is not None:
            found.append(("name", name))
        return found

    def _running(self) -> Counter[tuple[str, ...]]:
        return Counter(scope for one, task in self._tasks.items() if task is not None for scope in self._scopes(one))

    def _waits(self, task_id: str) -> None:
        self._tasks[task_id] = None

    def _ended(self, *ids: str) -> None:
        for one in ids:
            del self._tasks[one]


class Crowd:
    """Claimers of many keys under random limits, of which some are lost with what they have claimed.

    What runs is counted from the answer to a claim until a finish is sent, or until the lease has run out: never more
    than the store may count.
    """

    def __init__(self, several: Sequence[Storage], rng: random.Random) -> None:
        self._several = several
        self._rng = rng
        self._caps: dict[tuple[str, ...], int] = {
            ("queue",): rng.randint(8, 30),
            ("key",): rng.randint(1, 2),
            ("x",): 1,
            ("y",): rng.randint(2, 9),
        }
        self._running: Counter[tuple[str, ...]] = Counter()
        self._lost: list[StoredTask] = []
        self._left: set[str] = set()

    async def fill(self, number: int) -> None:
        """Store limits, and two tasks of each of so many keys."""
        store, caps = self._several[0], self._caps
        per_key = Limit(concurrency=caps["key",])
        await store.put_limit(Limit(queue="work", concurrency=caps["queue",], per_key=per_key))
        for name in ("x", "y"):
            await store.put_limit(Limit(name=name, concurrency=caps[name,]))
        names = [self._rng.choice((None, None, None, "x", "y")) for _ in range(2 * number)]
        tasks = [new_task(key=f"k{n % number}", limit=name, max_retries=99) for n, name in enumerate(names)]
        self._left.update(await add(store, *tasks))

    async def work(self, store: Storage) -> None:
        """Claim and finish until nothing is left."""
        while self._left:
            is_lost = self._rng.random() < 0.15
            lease = SHORT if is_lost else HELD
            tasks = await store.claim({"work": self._rng.randint(1, 6)}, worker="w", lease=lease)
            for task in tasks:
                assert task.started_at is not None
                # A claim may have read the clock before it counted what runs: the end of a lease comes between.
                self._give_up(max(task.started_at, datetime.now(UTC)))
                self._count(task, 1)
            if is_lost:
                self._lost += tasks
            elif tasks:
                await asyncio.sleep(0)  # others claim meanwhile
                for task in tasks:
                    self._count(task, -1)
                answers = await store.finish([outcome("succeeded", task) for task in tasks])
                assert answers == [True] * len(tasks)
                self._left.difference_update(task.id for task in tasks)
            if not tasks or self._rng.random() < 0.1:
                await store.recover(100)
            if not tasks:
                await store.wait_for_work(["work"], SHORT)

    def _give_up(self, moment: datetime) -> None:
        """Take what was lost and may have been recovered by a moment for no longer running."""
        for task in self._lost[:]:
            assert task.lease_until is not None
            if task.lease_until <= moment:
                self._lost.remove(task)
                self._count(task, -1)

    def _count(self, task: StoredTask, step: int) -> None:
        scopes: list[tuple[str, ...]] = [("queue",), ("key", task.key or "")]
        if task.limit is not None:
            scopes.append((task.limit,))
        for scope in scopes:
            self._running[scope] += step
            assert self._running[scope] <= self._caps[scope[:1]], f"too many tasks run under {scope}"


def _after(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
