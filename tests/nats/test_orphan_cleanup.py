"""Messages that belong to nothing, since a process died or came too late between two steps, are taken away in time."""

from __future__ import annotations

from datetime import timedelta

import pytest

from omniq.flow import NewFlow, NewGate
from omniq.storage import Finding, Severity, Storage, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Failed, Feed, Retry, Succeeded, TaskError, TaskState
from omniq.testing import await_until
from omniq_nats import orphan_cleanup, overflow
from omniq_nats.orphan_cleanup import OrphanCleanup
from omniq_nats.storage import NatsStorage
from omniq_nats.transport import Write
from tests.nats.support import fresh, opened, task
from tests.servers.nats import NatsServer

LARGE = b"x" * 10_000


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have messages taken away however young they are, and at each round of pruning."""
    monkeypatch.setattr(orphan_cleanup, "SAFE_AGE", 0.0)
    monkeypatch.setattr(orphan_cleanup, "EVERY", 0.0)


async def stranded(storage: Storage) -> Finding:
    (found,) = [one for one in await storage.diagnose() if one.subject == "stranded"]
    return found


async def strays(storage: NatsStorage) -> list[str]:
    assert storage._opened is not None
    return await OrphanCleanup(storage._opened.state_store).strays()


async def leave_a_result_behind(late: NatsStorage, other: NatsStorage) -> str:
    """Have a worker come too late with a large result; give the id of the task, which another one has ended."""
    (answer,) = await other.enqueue([task()])
    (lost,) = await late.claim({"work": 1}, worker="late", lease=0.05)

    async def has_lapsed() -> bool:
        return bool(await other.recover(1))

    await await_until(has_lapsed, 30, "the lease to run out")
    (claimed,) = await other.claim({"work": 1}, worker="other", lease=99)
    assert await other.finish([Succeeded(id=claimed.id, delivery=claimed.delivery, result=b"small")]) == [True]
    assert await late.finish([Succeeded(id=lost.id, delivery=lost.delivery, result=LARGE)]) == [False]
    return answer.id


async def test_a_large_result_that_came_too_late_is_reported_and_taken_away(
    nats_server: NatsServer, at_once: None
) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as late, opened(url) as other:
        ended = await leave_a_result_behind(late, other)
        found = await stranded(other)
        assert found.severity is Severity.WARNING
        assert f"1 messages belong to nothing, the first is {(await strays(other))[0]}" in found.message
        await other.prune(100)
        assert (await stranded(other)).severity is Severity.OK
        (record,) = await other.get([ended])
        assert record is not None
        assert record.result_payload == b"small"


async def test_what_is_young_is_left_alone(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as late, opened(url) as other:
        await leave_a_result_behind(late, other)
        await other.prune(100)
        assert len(await strays(other)) == 1


async def test_a_worker_looks_for_them_now_and_then_only(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphan_cleanup, "SAFE_AGE", 0.0)
    url = fresh(nats_server.url)
    async with opened(url) as late, opened(url) as other:
        await other.prune(100)
        await leave_a_result_behind(late, other)
        await other.prune(100)
        assert len(await strays(other)) == 1


async def test_large_results_and_errors_that_belong_to_tasks_stay(nats_server: NatsServer, at_once: None) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await storage.enqueue([task(max_retries=1) for _ in range(4)])
        ended, failed, again, running = await storage.claim({"work": 4}, worker="w", lease=60)
        error = TaskError(type="ValueError", message="m", traceback="t" * 10_000)
        told = [
            Succeeded(id=ended.id, delivery=1, result=LARGE),
            Failed(id=failed.id, delivery=1, error=error),
            Retry(id=again.id, delivery=1, delay=3600, error=error),
        ]
        assert await storage.finish(told) == [True] * 3
        assert storage._opened is not None
        # A worker stores a large result, and the queue's record afterwards: it has come half the way.
        names, transport = storage._opened.state_store.names, storage._opened.transport
        await transport.store(Write(names.blob(running.id, "1-half"), LARGE))
        await transport.store(Write(names.blob(running.id, "0-gone"), LARGE))
        await storage.prune(100)
        assert await strays(storage) == []
        first, second, third, _ = await storage.get([ended.id, failed.id, again.id, running.id])
        assert first is not None
        assert first.result_payload == LARGE
        for record in (second, third):
            assert record is not None
            assert record.error == error
        assert [one.subject for one in await transport.last([names.blobs(running.id)])] == [
            names.blob(running.id, "1-half")
        ]


async def test_large_bodies_without_their_tasks_go_and_the_others_stay(nats_server: NatsServer, at_once: None) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        kept, gone = task(body=b"x" * 100_000), task(body=b"x" * 100_000)
        await storage.enqueue([kept, gone])
        assert storage._opened is not None
        names, transport = storage._opened.state_store.names, storage._opened.transport
        # A process removes a task, and is killed before it removes the body.
        await transport.purge(names.anywhere(gone.id))
        assert await strays(storage) == [names.body(gone.id)]
        await storage.prune(100)
        assert await strays(storage) == []
        (record,) = await storage.get([kept.id])
        assert record is not None
        assert record.body == kept.body


async def test_parts_of_flows_that_are_gone_go_and_the_others_stay(nats_server: NatsServer, at_once: None) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        kept, gone, ended = (
            NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),), unique=key) for key in ("kept", "gone", "ended")
        )
        for flow in (ended, kept, gone):
            await storage.enqueue([task(flow=flow.id, feeds=(Feed(0),)), task(flow=flow.id, behind=0)], flow)
        for _ in range(2):
            (claimed,) = await storage.claim({"work": 1}, worker="w", lease=60)
            await storage.finish([Succeeded(id=claimed.id, delivery=claimed.delivery, result=b"1")])
        assert storage._opened is not None
        names, transport = storage._opened.state_store.names, storage._opened.transport
        assert await strays(storage) == []
        # A process removes a flow, and is killed before it removes the rest of it.
        await transport.purge(names.either_flow(gone.id))
        left = {names.gates(gone.id, 0), names.roster(gone.id, 0), names.flow_key("gone")}
        assert set(await strays(storage)) == left
        await storage.prune(100)
        assert await strays(storage) == []
        found = await storage.get_flows([kept.id, gone.id, ended.id])
        assert [None if flow is None else (len(flow.gates), flow.finished_at is None) for flow in found] == [
            (1, True),
            None,
            (1, False),
        ]


async def test_shelves_of_waiting_tasks_stay_and_those_of_nobody_go(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    monkeypatch.setattr(overflow, "MOST_IN_BOOK", 2)
    monkeypatch.setattr(overflow, "KEPT_IN_BOOK", 1)
    async with opened(fresh(nats_server.url)) as storage:
        ids = [one.id for one in await storage.enqueue([task(run_at=timedelta(seconds=1)) for _ in range(20)])]
        counts = {stat.queue: stat.counts for stat in await storage.stats()}
        assert counts["work"][TaskState.SCHEDULED] + counts["work"][TaskState.READY] == 20
        assert storage._opened is not None
        names, transport = storage._opened.state_store.names, storage._opened.transport
        before = set(await transport.subjects(names.overflow))
        assert before
        await transport.store(Write(names.overflow_page("work", "lost"), b"[[],[],[]]"))
        assert await strays(storage) == [names.overflow_page("work", "lost")]
        await storage.prune(100)
        assert set(await transport.subjects(names.overflow)) == before
        found: list[str] = []

        async def all_are_claimed() -> bool:
            found.extend(one.id for one in await storage.claim({"work": 30}, worker="w", lease=60))
            return len(found) == 20

        await await_until(all_are_claimed, 60, "all tasks to be claimed")
        assert sorted(found) == sorted(ids)


async def test_whoever_laid_a_shelf_aside_and_was_held_up_cannot_name_it_once_it_is_gone(
    nats_server: NatsServer, at_once: None
) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as slow, opened(url) as other:
        await other.enqueue([task(run_at=timedelta(days=1))])
        await other.stats()
        assert slow._opened is not None
        state_store = slow._opened.state_store
        queue_state = (await state_store.read(["work"]))["work"]
        await state_store.transport.store(Write(state_store.names.overflow_page("work", "slow"), b"[[],[],[]]"))
        await other.prune(100)
        assert await strays(other) == []
        assert (await state_store.read(["work"]))["work"].seq > queue_state.seq


@pytest.mark.parametrize("newest_first", [False, True])
async def test_tasks_that_had_one_key_after_the_other_are_removed_with_it(
    nats_server: NatsServer, newest_first: bool
) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        ids = []
        for _ in range(3):
            ids += [answer.id for answer in await storage.enqueue([task(unique="key")])]
            (claimed,) = await storage.claim({"work": 1}, worker="w", lease=99)
            await storage.finish([Succeeded(id=claimed.id, delivery=claimed.delivery, result=b"1")])
        assert all(await storage.delete(ids[::-1] if newest_first else ids))

        assert storage._opened is not None
        store = storage._opened.state_store
        assert await store.transport.last([store.names.key("key")]) == []


async def test_what_a_process_that_died_left_on_the_list_of_failed_tasks_is_not_shown_and_goes(
    nats_server: NatsServer, at_once: None
) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        await storage.enqueue([task(), task()])
        fails, succeeds = await storage.claim({"work": 2}, worker="w", lease=99)
        error = TaskError(type="ValueError", message="it broke")
        await storage.finish([Failed(id=fails.id, delivery=fails.delivery, error=error)])
        assert storage._opened is not None
        store = storage._opened.state_store
        # As if each had been put there by a process that died before it noted the end: one succeeds, one is removed.
        for task_id in (succeeds.id, "gone"):
            await store.transport.publish(Write(store.names.listed("work", task_id), b"1 0"))

        async def listed() -> list[str]:
            page = await storage.list_tasks(TaskQuery(states=[TaskState.FAILED, TaskState.CANCELLED]))
            return [one.id for one in page]

        assert await listed() == [fails.id]
        await storage.finish([Succeeded(id=succeeds.id, delivery=succeeds.delivery, result=b"done")])
        assert await listed() == [fails.id]

        async def is_swept() -> bool:
            await storage.prune(100)
            return len(await store.transport.last_all(store.names.all_listed())) == 1

        await await_until(is_swept, 30, "what was left to be taken away")
        assert await listed() == [fails.id]
