"""A worker whose line to the store fails: what it gives up, what it repeats, and what is never recorded twice.

The store is the real one; between it and the worker stands a wire that can be cut.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Self

import pytest

from omniq import Fixed, StorageUnavailable, TaskFailed, TaskQueue, TaskState, current_task, hookimpl
from omniq.plugins import Plugins
from omniq.storage import Lease, LeaseState
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import Outcome, StoredTask
from omniq.testing import await_until
from omniq_local.memory.storage import MemoryStorage
from tests.core.running import Gate


class Wire(MemoryStorage):
    """A memory storage whose calls can be made to fail, or to get no answer, one kind of them at a time."""

    def __init__(self, name: str) -> None:
        super().__init__(parse_url(f"memory://{name}"))
        self.failing: set[str] = set()
        self.silent: set[str] = set()
        self.answers_to_lose = 0
        """How many answers to finish get lost on their way back."""
        self.calls: list[str] = []

    def sibling(self) -> Self:
        return copy(super().sibling())  # the same sets: one wire for all

    async def pass_through(self, call: str) -> None:
        self.calls.append(call)
        if call in self.failing:
            raise StorageUnavailable("the wire is cut")
        if call in self.silent:
            await asyncio.Event().wait()

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        await self.pass_through("heartbeat")
        return await super().heartbeat(worker, leases, lease, about)

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        await self.pass_through("finish")
        accepted = await super().finish(outcomes)
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise StorageUnavailable("the answer is lost")
        return accepted

    async def claim(self, *args: Any, **kwargs: Any) -> list[StoredTask]:
        await self.pass_through("claim")
        return await super().claim(*args, **kwargs)

    async def recover(self, limit: int) -> list[StoredTask]:
        await self.pass_through("recover")
        return await super().recover(limit)

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        await self.pass_through("wait_for_work")
        await super().wait_for_work(queues, timeout)


@pytest.fixture
def name() -> str:
    return new_id()


@pytest.fixture
def wire(name: str) -> Wire:
    return Wire(name)


@pytest.fixture
def gate() -> Any:
    gate = Gate()
    yield gate
    gate.open()


def both(wire: Wire, name: str, function: Callable[..., Any], **options: Any) -> tuple[TaskQueue, TaskQueue]:
    """Return a queue behind the wire and one on the same store that has a line of its own, with one task in common."""
    behind, beside = TaskQueue(wire), TaskQueue(f"memory://{name}")
    for queue in (behind, beside):
        queue.task(name="work", **options)(function)
    return behind, beside


@pytest.mark.parametrize("fault", ["failing", "silent"])
async def test_a_worker_whose_heartbeats_do_not_get_through_gives_its_tasks_up_before_their_leases_run_out(
    wire: Wire, name: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    stopped: list[bool] = []

    async def work() -> str:
        if current_task().attempt > 1:
            return "elsewhere"
        try:
            await asyncio.Event().wait()
        finally:
            record = await beside.arecord(handle.id)
            now = await (await beside.connections.current()).storage.now()
            stopped.append(record.lease_until is not None and now < record.lease_until)
        return "here"

    behind, beside = both(wire, name, work, max_retries=1)
    handle = await behind.functions["work"].aenqueue()
    # Given up half a second before the lease runs out: time enough on a busy machine, too.
    async with behind.worker(lease=3, recover_every=60):
        await await_until(lambda: wire.calls.count("heartbeat") >= 2)
        getattr(wire, fault).add("heartbeat")
        await await_until(lambda: stopped)
        wire.failing.update(["claim", "recover"])
        async with beside.worker(recover_every=0.05):
            assert await beside.handle(handle.id).aresult(30) == "elsewhere"
        wire.failing.clear()
        wire.silent.clear()

    assert stopped == [True]
    assert "giving up 1 tasks before their leases run out" in caplog.text
    record = await beside.arecord(handle.id)
    assert (record.attempt, record.delivery) == (2, 2)
    await beside.aclose()
    await behind.aclose()


@pytest.mark.parametrize("fault", ["failing", "silent"])
async def test_a_worker_whose_heartbeats_do_not_get_through_claims_nothing(
    wire: Wire, name: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What it claimed would be lost to others when the lease runs out, though it could be claimed and recorded."""

    async def work() -> str:
        return "done"

    async def beats(number: int) -> None:
        seen = wire.calls.count("heartbeat")
        await await_until(lambda: wire.calls.count("heartbeat") >= seen + number, 60)

    behind, beside = both(wire, name, work)
    faults: set[str] = getattr(wire, fault)
    faults.add("heartbeat")
    first = await behind.functions["work"].aenqueue()
    async with behind.worker(lease=0.6, recover_every=60):
        await beats(3)
        assert wire.calls.count("claim") == 0
        assert "cannot send heartbeats, and claims nothing without them" in caplog.text
        faults.clear()
        assert await first.aresult(30) == "done"

        faults.add("heartbeat")
        await beats(2)
        claims = wire.calls.count("claim")
        second = await behind.functions["work"].aenqueue()
        await beats(3)
        assert wire.calls.count("claim") <= claims + 1  # one may have been under way
        assert (await beside.arecord(second.id)).state is TaskState.READY
        faults.clear()
        assert await second.aresult(30) == "done"
    told = [record.getMessage() for record in caplog.records if "cannot send heartbeats" in record.getMessage()]
    assert not [text for text in told if text.rstrip().endswith(":")], "an error without a text"
    await beside.aclose()
    await behind.aclose()


async def test_a_worker_that_cannot_claim_for_long_says_so_rarely_and_is_not_listed_until_it_can(
    wire: Wire, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None: ...

    async def is_listed() -> bool:
        return bool(await beside.aworkers())

    async def is_gone() -> bool:
        return not await is_listed()

    caplog.set_level(logging.INFO, "omniq.worker")
    monkeypatch.setattr("omniq.storage.outages.REMINDER_SECONDS", 0.3)
    behind, beside = both(wire, name, work)
    async with behind.worker(lease=1, recover_every=60):
        await await_until(is_listed)
        # Its heartbeats get through all the time: a probe that asks whether it lives must not be told yes.
        wire.failing.add("claim")
        handle = await behind.functions["work"].aenqueue()
        await await_until(is_gone, 60)
        await await_until(lambda: any(record.levelname == "ERROR" for record in caplog.records), 60)
        wire.failing.clear()
        await await_until(is_listed, 60)
        assert [worker.about is not None for worker in await beside.aworkers()] == [True], "it had signed off"
        await handle.aresult(30)
    told = [(one.levelname, one.getMessage()) for one in caplog.records if "claim" in one.getMessage()]
    assert [level for level, _ in told[:2]] == ["WARNING", "ERROR"]
    assert told[-1][0] == "INFO"
    assert "claims tasks again after" in told[-1][1]
    assert len(told) < wire.calls.count("claim") + 2
    await beside.aclose()
    await behind.aclose()


async def test_a_short_break_of_the_wire_costs_nothing(wire: Wire, name: str, caplog: pytest.LogCaptureFixture) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        started.set()
        await release.wait()
        return "done"

    behind, _ = both(wire, name, work)
    handle = await behind.functions["work"].aenqueue()
    async with behind.worker(lease=3, recover_every=0.05):
        await started.wait()
        wire.failing.add("heartbeat")
        failed = wire.calls.count("heartbeat") + 2
        await await_until(lambda: wire.calls.count("heartbeat") >= failed)
        wire.failing.clear()
        passed = wire.calls.count("heartbeat") + 2
        await await_until(lambda: wire.calls.count("heartbeat") >= passed)
        release.set()
        assert await handle.aresult(30) == "done"
    assert (await handle.atask()).delivery == 1
    assert "cannot send heartbeats, and claims nothing without them, trying again: the wire is cut" in caplog.text
    assert "giving up" not in caplog.text
    await behind.aclose()


class Heard:
    def __init__(self) -> None:
        self.succeeded: list[str] = []

    @hookimpl
    def omniq_task_succeeded(self, task: StoredTask, worker: str, seconds: float) -> None:
        self.succeeded.append(f"{task.id} in attempt {task.attempt}")


async def test_the_late_completion_of_a_lost_task_is_rejected_logged_and_counted(
    wire: Wire, name: str, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> str:
        attempt = current_task().attempt
        if attempt == 1:
            gate.wait()
        return f"of attempt {attempt}"

    heard = Heard()
    plugins = Plugins()
    plugins.register(heard, name="heard")
    behind, beside = TaskQueue(wire, plugins=plugins), TaskQueue(f"memory://{name}")
    task = behind.task(name="work", max_retries=1)(work)
    beside.task(name="work", max_retries=1)(work)
    handle = await task.aenqueue()
    async with behind.worker(lease=1, recover_every=60) as worker:
        await await_until(lambda: gate.arrived == 1)
        wire.failing.update(["heartbeat", "claim", "recover"])
        async with beside.worker(recover_every=0.05):
            assert await beside.handle(handle.id).aresult(30) == "of attempt 2"
        gate.open()
        await await_until(lambda: worker.completer.rejected == 1)
        wire.failing.clear()

    assert await handle.aresult(0) == "of attempt 2"
    (record,) = [record for record in caplog.records if "rejected the late completion" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert vars(record)["task_id"] == handle.id
    assert heard.succeeded == []
    await beside.aclose()
    await behind.aclose()


@pytest.mark.parametrize("ending", ["succeeds", "fails", "fails once"])
async def test_an_outcome_whose_answer_was_lost_is_told_of_as_recorded(
    wire: Wire, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    plugins = Plugins()
    plugins.register(heard, name="heard")
    queue = TaskQueue(wire, plugins=plugins)

    # Not so soon that the next attempt has begun before the outcome is sent again.
    @queue.task(max_retries=1, retry=Fixed(2), retry_on=OSError)
    async def work() -> int:
        if ending == "fails":
            raise ValueError("for good")
        if ending == "fails once" and current_task().attempt == 1:
            raise OSError("for now")
        return 7

    wire.answers_to_lose = 1
    handle = await work.aenqueue()
    async with queue.worker() as worker:
        if ending == "fails":
            with pytest.raises(TaskFailed, match="for good"):
                await handle.aresult(30)
        else:
            assert await handle.aresult(30) == 7

    attempt = 2 if ending == "fails once" else 1
    assert heard.succeeded == ([] if ending == "fails" else [f"{handle.id} in attempt {attempt}"])
    assert worker.completer.rejected == 0
    assert "rejected the late completion" not in caplog.text
    assert ("failed: ValueError: for good" in caplog.text) is (ending == "fails")
    assert ("failed in attempt 1 of 2" in caplog.text) is (ending == "fails once")
    await queue.aclose()


async def test_a_late_completion_does_not_end_the_run_that_goes_on_elsewhere(wire: Wire, name: str) -> None:
    gates = {1: Gate(), 2: Gate()}

    def work() -> str:
        attempt = current_task().attempt
        gates[attempt].wait()
        return f"of attempt {attempt}"

    behind, beside = both(wire, name, work, max_retries=1)
    handle = await behind.functions["work"].aenqueue()
    async with behind.worker(lease=1, recover_every=60) as worker:
        await await_until(lambda: gates[1].arrived == 1)
        wire.failing.update(["heartbeat", "claim", "recover"])
        async with beside.worker(recover_every=0.05):
            await await_until(lambda: gates[2].arrived == 1)
            gates[1].open()
            await await_until(lambda: worker.completer.rejected == 1)
            assert (await beside.arecord(handle.id)).state is TaskState.RUNNING
            gates[2].open()
            assert await beside.handle(handle.id).aresult(30) == "of attempt 2"
        wire.failing.clear()
    await beside.aclose()
    await behind.aclose()


async def test_a_worker_that_learns_of_a_lost_lease_stops_the_task(wire: Wire, name: str) -> None:
    stopped = asyncio.Event()

    async def work() -> str:
        if current_task().attempt > 1:
            return "elsewhere"
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return "here"

    behind, beside = both(wire, name, work)
    handle = await behind.functions["work"].aenqueue()
    # Its heartbeats are so rare that a lease of another's making can run out between two of them.
    async with behind.worker(lease=1.5, recover_every=60):
        await await_until(lambda: wire.calls.count("heartbeat") >= 2)
        storage = (await beside.connections.current()).storage
        record = await beside.arecord(handle.id)

        async def is_lost() -> bool:
            # A heartbeat of its own may come between: then once more.
            mine = [Lease(handle.id, record.delivery)]
            return await storage.heartbeat("the same, by another way", mine, 0.01) == [LeaseState.LOST]

        wire.failing.update(["claim", "recover"])
        async with beside.worker(recover_every=0.02):
            await await_until(is_lost)
            assert await beside.handle(handle.id).aresult(30) == "elsewhere"
        async with asyncio.timeout(30):
            await stopped.wait()
        wire.failing.clear()
    assert (await beside.arecord(handle.id)).delivery == 2
    await beside.aclose()
    await behind.aclose()


async def test_an_outcome_is_repeated_until_the_store_has_it(wire: Wire, name: str) -> None:
    ran: list[int] = []

    async def work() -> str:
        ran.append(1)
        return "done"

    behind, _ = both(wire, name, work)
    wire.failing.add("finish")
    handle = await behind.functions["work"].aenqueue()
    async with behind.worker(recover_every=0.05):
        await await_until(lambda: wire.calls.count("finish") >= 4)
        assert (await handle.atask()).state is TaskState.RUNNING
        wire.failing.clear()
        assert await handle.aresult(30) == "done"
    assert ran == [1]
    await behind.aclose()


async def test_while_no_end_can_be_recorded_nothing_more_is_claimed(wire: Wire, name: str) -> None:
    async def work() -> None: ...

    behind, _ = both(wire, name, work)
    wire.failing.add("finish")
    handles = [await behind.functions["work"].aenqueue() for _ in range(200)]
    async with behind.worker(concurrency=4, recover_every=0.05):
        await await_until(lambda: wire.calls.count("finish") >= 6)
        (stats,) = await behind.astats()
        assert stats.counts[TaskState.READY] >= 150, "each more would only wait for its end to be recorded"
        wire.failing.clear()
        for handle in handles:
            await handle.aresult(30)
    await behind.aclose()


@pytest.mark.parametrize("call", ["claim", "recover", "wait_for_work"])
async def test_a_worker_goes_on_after_the_store_could_not_be_reached(
    wire: Wire, name: str, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> str:
        return "done"

    behind, beside = both(wire, name, work)
    wire.failing.add(call)
    async with behind.worker(recover_every=0.05):
        await await_until(lambda: wire.calls.count(call) >= 3)
        wire.failing.clear()
        handle = await beside.functions["work"].aenqueue()
        assert await handle.aresult(30) == "done"
    problems = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert problems
    assert all("the wire is cut" in record.getMessage() and record.exc_info is None for record in problems)
    await beside.aclose()
    await behind.aclose()


async def test_a_store_that_does_not_answer_does_not_keep_a_worker_from_stopping(wire: Wire, name: str) -> None:
    async def work() -> None: ...

    behind, _ = both(wire, name, work)
    worker = behind.worker(grace=0.2)
    async with asyncio.timeout(30), worker:
        wire.silent.add("claim")
        await await_until(lambda: "claim" in wire.calls)
    await behind.aclose()


async def test_a_store_that_takes_no_outcome_does_not_keep_a_worker_from_stopping(
    wire: Wire, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq._worker.worker.LAST_WORDS", 0.1)

    async def work() -> None: ...

    behind, beside = both(wire, name, work, max_retries=1, retry=Fixed(0))
    handle = await behind.functions["work"].aenqueue()
    wire.failing.add("finish")
    async with asyncio.timeout(30), behind.worker(grace=0.2, lease=0.3):
        await await_until(lambda: "finish" in wire.calls)
    assert "could not be recorded; it runs again when its lease has run out" in caplog.text

    async with beside.worker(recover_every=0.05):
        await beside.handle(handle.id).aresult(30)
    assert (await beside.arecord(handle.id)).delivery == 2
    await beside.aclose()
    await behind.aclose()


async def test_neither_the_last_outcomes_nor_the_last_heartbeat_are_waited_for_without_an_end(
    wire: Wire, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a lease is, and a call of the store may take."""
    for patience in ("worker.LAST_WORDS", "worker.FAREWELL", "heartbeat.FAREWELL"):
        monkeypatch.setattr(f"omniq._worker.{patience}", 0.1)

    async def work() -> None: ...

    behind, beside = both(wire, name, work)
    handle = await behind.functions["work"].aenqueue()
    wire.silent.add("finish")
    async with asyncio.timeout(30), behind.worker(grace=0.2, lease=600):
        await await_until(lambda: "heartbeat" in wire.calls)
        wire.silent.add("heartbeat")
        await await_until(lambda: "finish" in wire.calls)
    assert "could not be recorded; it runs again when its lease has run out: the store gave no answer" in caplog.text
    assert (await beside.arecord(handle.id)).state is TaskState.RUNNING
    await beside.aclose()
    await behind.aclose()


async def test_what_ended_while_the_store_was_away_for_longer_than_a_lease_is_recorded(wire: Wire, name: str) -> None:
    """The worker that holds the outcome tries now and then; one that looks for lost tasks must not come before it."""
    started, release = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        started.set()
        await release.wait()
        return "done"

    async def lease_is_over() -> bool:
        record = await beside.arecord(handle.id)
        now = await (await beside.connections.current()).storage.now()
        return record.lease_until is not None and record.lease_until < now

    behind, beside = both(wire, name, work, max_retries=0)
    handle = await behind.functions["work"].aenqueue()
    async with behind.worker(lease=0.9, recover_every=0.02):
        await started.wait()
        wire.failing.update(["finish", "heartbeat", "recover", "claim"])
        release.set()
        await await_until(lease_is_over, 60)
        wire.failing.clear()
        assert await handle.aresult(30) == "done"
    await beside.aclose()
    await behind.aclose()


class Crossing(Wire):
    """A wire on which the news that a task is no longer held overtakes the answer that its outcome was accepted."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.finished = threading.Event()
        self.told = threading.Event()

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        accepted = await super().finish(outcomes)
        self.finished.set()
        await await_until(self.told.is_set)
        return accepted

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        if self.finished.is_set() and self.calls[-1] == "told":
            self.told.set()
        if leases:
            await await_until(self.finished.is_set)
        states = await super().heartbeat(worker, leases, lease, about)
        if LeaseState.LOST in states:
            self.calls.append("told")
        return states


async def test_a_task_that_has_just_ended_is_not_taken_for_lost(name: str, caplog: pytest.LogCaptureFixture) -> None:
    release = asyncio.Event()

    async def work() -> str:
        await release.wait()
        return "done"

    crossing = Crossing(name)
    behind, beside = both(crossing, name, work)
    async with behind.worker(lease=3) as worker:
        handle = await behind.functions["work"].aenqueue()
        await await_until(lambda: len(worker.completer) == 1)
        release.set()
        assert await handle.aresult(30) == "done"
        await await_until(crossing.told.is_set)
        await await_until(lambda: len(worker.completer) == 0)

    assert worker.completer.rejected == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    await beside.aclose()
    await behind.aclose()
