"""Drives random flows through any operations, and checks after each what must hold whatever has happened."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

from attrs import evolve

from omniq.errors import FlowClosed
from omniq.flow import Flow, GateState, NewFlow, NewGate
from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.task import Failed, Feed, NewTask, Outcome, Released, Retry, StoredTask, Succeeded, TaskError, TaskState
from omniq.testing.contract.steps import FAR, HELD, lapsed, moved, new_task

__all__ = ["FlowDriver", "settled"]

OPERATIONS = {
    "claim": 8,
    "finish": 8,
    "finish_stale": 2,
    "recover": 2,
    "cancel": 1,
    "retry": 2,
    "settle": 5,
    "spawn": 1,
    "repeat": 1,
    "retry_flow": 1,
    "cancel_flow": 1,
    "delete": 1,
    "purge": 1,
    "run_now": 1,
}
"""What is done, and how often compared with others."""
ERROR = TaskError(type="ValueError", message="at random")


async def settled(store: Storage) -> None:
    """Have the store do all that is left to do."""
    while await store.settle(1000):
        pass


class FlowDriver:
    """One random flow.

    :param step: the limit of each step of ``settle``.
    """

    def __init__(self, store: Storage, rng: random.Random, step: int = 2) -> None:
        self._store = store
        self._rng = rng
        self._step = step
        self._queue = f"q{rng.random()}"
        self._flow, self._tasks = self._graph()
        self._leases: list[StoredTask] = []
        self._gone: set[str] = set()
        self._is_retried = False
        """Whether a retry of the flow may not be through: until it is, no gate opens, and the flow has not ended."""

    def _graph(self) -> tuple[NewFlow, list[NewTask]]:
        rng = self._rng
        count = rng.randint(2, 9)
        # Gate n divides the tasks before its cut from those after it.
        cuts = sorted(rng.sample(range(1, count), min(rng.randint(0, 5), count - 1)))
        gates = tuple(NewGate(n=n, rank=f"{cut:03d}.{n:03d}") for n, cut in enumerate(cuts))
        flow = NewFlow(id=new_id(), gates=gates)
        tasks = []
        for place in range(count):
            before = [n for n, cut in enumerate(cuts) if cut <= place]
            after = [n for n, cut in enumerate(cuts) if cut > place]
            feeds = tuple(Feed(n, rng.random() < 0.7) for n in after if rng.random() < 0.5)
            behind = rng.choice(before) if before and rng.random() < 0.8 else None
            tasks.append(self._task(flow, behind, feeds))
        return flow, tasks

    def _task(self, flow: NewFlow, behind: int | None, feeds: tuple[Feed, ...]) -> NewTask:
        rng = self._rng
        place: dict[str, Any] = {"flow": flow.id, "behind": behind, "feeds": feeds}
        if self._store.limits.task_limits:
            place |= {"key": rng.choice((None, "k1", "k2")), "limit": rng.choice((None, None, "x"))}
        if rng.random() < 0.3:
            place["run_at"] = rng.choice((FAR, timedelta(hours=1)))
        return new_task(queue=self._queue, max_retries=rng.randint(0, 2), **place)

    async def run(self, other: Storage | None = None) -> None:
        """Build it, do anything to it, and drive it to its end.

        :param other: another store, to which it moves in between; None: it stays.
        """
        await self._anything()
        if other is not None:
            await self._release_running()
            await self._store.finish([Released(id=task.id, delivery=task.delivery) for task in self._leases])
            self._leases.clear()
            await moved(self._store, other, size=self._rng.randint(1, 5))
            self._store = other
            await self._check()
        await self._to_the_end()

    async def _anything(self) -> None:
        await self._store.enqueue(self._tasks, self._flow)
        await self._check()
        names, weights = list(OPERATIONS), list(OPERATIONS.values())
        for _ in range(self._rng.randint(5, 40)):
            await getattr(self, f"_{self._rng.choices(names, weights)[0]}")()
            await self._check()

    # Operations

    def _any(self) -> str:
        return self._rng.choice(self._tasks).id

    async def _claim(self, most: int = 1) -> None:
        claimed = await self._store.claim({self._queue: most}, worker="w", lease=HELD)
        gates = {gate.n: gate for gate in (await self._now()).gates}
        for task in claimed:
            assert task.behind is None or gates[task.behind].state is GateState.OPEN, "it ran before its gate opened"
        self._leases += claimed

    def _outcome(self, task: StoredTask) -> Outcome:
        kind = self._rng.choice([Succeeded, Succeeded, Failed, Retry])
        held: dict[str, Any] = {"id": task.id, "delivery": task.delivery}
        if kind is Succeeded:
            return Succeeded(**held, result=b"1")
        if kind is Retry and task.attempt <= task.max_retries:
            return Retry(**held, delay=0, error=ERROR)
        return Failed(**held, error=ERROR)

    async def _finish(self) -> None:
        if self._leases:
            task = self._leases.pop(self._rng.randrange(len(self._leases)))
            await self._store.finish([self._outcome(task)])

    async def _finish_stale(self) -> None:
        if self._leases:
            await self._store.finish([self._outcome(self._rng.choice(self._leases))])

    async def _recover(self) -> None:
        lost = await self._store.claim({self._queue: 1}, worker="dead", lease=0.001)
        await lapsed(self._store, lost)
        await self._store.recover(100)

    async def _cancel(self) -> None:
        await self._store.cancel([self._any()])

    async def _retry(self) -> None:
        await self._store.retry([self._any()])

    async def _retry_flow(self) -> None:
        await self._store.retry_flow(self._flow.id)
        self._is_retried = True

    async def _cancel_flow(self) -> None:
        if self._rng.random() < 0.3:
            await self._store.cancel_flow(self._flow.id)

    async def _settle(self) -> None:
        if not await self._store.settle(self._step):
            self._is_retried = False

    async def _delete(self) -> None:
        # A live one: then its gates count it as cancelled, for good.
        victim = self._any()
        (task,) = await self._store.get([victim])
        if task is not None and not task.state.is_final and self._rng.random() < 0.3:
            await self._store.delete([victim])

    async def _purge(self) -> None:
        await self._store.purge(self._queue, self._rng.choice((TaskState.SCHEDULED, TaskState.READY)))

    async def _run_now(self) -> None:
        await self._store.run_now([task.id for task in self._tasks if self._rng.random() < 0.5])

    async def _spawn(self) -> None:
        if self._leases:
            parent = self._rng.choice(self._leases)
            task = evolve(self._task(self._flow, None, parent.feeds))
            try:
                await self._store.enqueue([task])
            except FlowClosed:
                return
            self._tasks.append(task)

    async def _repeat(self) -> None:
        answers = await self._store.enqueue([task for task in self._tasks if task.id not in self._gone], self._flow)
        assert not any(answer.created for answer in answers), "what is stored already was stored again"

    # What must hold

    async def _now(self) -> Flow:
        (flow,) = await self._store.get_flows([self._flow.id])
        assert flow is not None
        return flow

    async def _records(self) -> dict[str, StoredTask]:
        found = await self._store.get([task.id for task in self._tasks])
        self._gone = {new.id for new, task in zip(self._tasks, found, strict=True) if task is None}
        return {task.id: task for task in found if task is not None}

    async def _check(self) -> None:
        flow, tasks = await self._now(), await self._records()
        counted = {state: sum(task.state is state for task in tasks.values()) for state in TaskState}
        assert dict(flow.counts) == counted
        assert self._is_retried or (flow.finished_at is not None) == all(t.state.is_final for t in tasks.values())
        for gate in flow.gates:
            fed = [(task, feed.needs_success) for task in tasks.values() for feed in task.feeds if feed.gate == gate.n]
            gone = [
                feed.needs_success
                for task in self._tasks
                if task.id in self._gone
                for feed in task.feeds
                if feed.gate == gate.n
            ]
            if gate.state is GateState.OPEN:
                continue
            assert gate.unmet == sum(not task.state.is_final for task, _ in fed), gate
            bad = (TaskState.FAILED, TaskState.CANCELLED)
            assert gate.failed == sum(needs and task.state in bad for task, needs in fed) + sum(gone), gate
            # A cancellation breaks what would have opened, and what is left to do after a retry shuts it again.
            by_cancellation = gate.state is GateState.BROKEN and gate.error == "the flow was cancelled"
            assert by_cancellation or (gate.state is GateState.BROKEN) == (gate.failed > 0), gate
            assert gate.state is GateState.BROKEN or gate.unmet > 0 or self._is_retried, gate

    async def _to_the_end(self) -> None:
        for _ in range(500):
            await self._settle()
            await self._store.run_now([task.id for task in self._tasks])
            await self._claim(3)
            while self._leases:
                await self._finish()
            await self._check()
            tasks = (await self._records()).values()
            if all(task.state.is_final for task in tasks) and not await self._store.settle(self._step):
                self._is_retried = False
                await self._check()
                break
            await self._release_running()
        flow = await self._now()
        gates = {gate.n: gate for gate in flow.gates}
        for task in (await self._records()).values():
            assert task.state.is_final, f"task {task.id} is {task.state} for ever"
            upstream = task.state is TaskState.CANCELLED and task.error is not None
            if upstream and task.error is not None and task.error.type == "UpstreamFailed":
                assert task.behind is not None
                assert flow.cancelled or gates[task.behind].failed, "it was not revived"

    async def _release_running(self) -> None:
        # Leases that a stale outcome, or the choice of one, has forgotten.
        running = [task for task in (await self._records()).values() if task.state is TaskState.RUNNING]
        self._leases += running
