"""The ways that save messages: each must end as the long one does, also where somebody else was quicker."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from omniq.errors import CorruptRecord
from omniq.storage import Lease, TaskQuery
from omniq.task import NewTask, StoredTask, Succeeded, TaskState
from omniq.testing import await_until
from omniq_nats.messages import Lost, Write
from omniq_nats.queue_state import QueueState
from omniq_nats.storage import NatsStorage
from omniq_nats.sync_client import SyncClient
from tests.nats.support import fresh, make, opened, task
from tests.servers.nats import NatsServer


@pytest.fixture(autouse=True)
def nobody_looks_for_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let those who wait for news find them only if they are told, however long that takes on a busy machine."""
    monkeypatch.setattr("omniq_nats.waiting.LOOK_EVERY", 600.0)


def done(claimed: StoredTask) -> Succeeded:
    return Succeeded(id=claimed.id, delivery=claimed.delivery, result=b"1")


async def work(storage: NatsStorage, count: int) -> list[StoredTask]:
    claimed = await storage.claim({"work": count}, worker="w", lease=60)
    assert all(await storage.finish([done(one) for one in claimed]))
    return claimed


async def woken(storage: NatsStorage, producer: NatsStorage, new: NewTask) -> None:
    """Have a storage wait, and be woken by a task of another."""
    waits = asyncio.create_task(storage.wait_for_work(["work"], 600))
    await asyncio.sleep(0.1)  # by then it waits
    await producer.enqueue([new])
    async with asyncio.timeout(60):
        await waits


async def prepare(storage: NatsStorage, *priorities: int) -> None:
    """Have a queue known to everybody, with nothing in it."""
    for priority in priorities:
        await storage.enqueue([task(priority=priority)])
    await work(storage, len(priorities))


# Claiming what came with the word


async def test_a_task_that_a_worker_was_woken_by_takes_it_one_question(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as worker, opened(url) as producer:
        await prepare(worker, 0)
        await prepare(producer, 0)
        asked = -1
        for _ in range(3):  # the first time it may have to look around
            new = task()
            await woken(worker, producer, new)
            before = nats_server.received
            (claimed,) = await worker.claim({"work": 10}, worker="w", lease=60)
            asked = nats_server.received - before
            assert claimed.id == new.id
            await worker.finish([done(claimed)])
        assert asked == 1


async def test_a_task_of_higher_priority_that_nobody_told_of_is_not_passed_over(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as worker, opened(url) as producer:
        await prepare(worker, 0, 5)
        await prepare(producer, 0, 5)
        low, high = task(), task(priority=5)
        for _ in range(2):
            await woken(worker, producer, task())
            await work(worker, 10)
        await woken(worker, producer, low)
        assert worker._opened is not None
        worker._opened.waiting._hear_stored = lambda message: 0  # type: ignore[method-assign]  # the next word is lost
        await producer.enqueue([high])
        (claimed,) = await worker.claim({"work": 1}, worker="w", lease=60)
        assert claimed.id == high.id


async def test_several_tasks_that_come_after_each_other_are_all_claimed_in_order(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as worker, opened(url) as producer, opened(url) as other:
        for storage in (worker, producer, other):
            await prepare(storage, 0)
        for _ in range(5):
            news = [task() for _ in range(6)]
            await woken(worker, producer, news[0])
            for number, new in enumerate(news[1:]):
                await (producer, other)[number % 2].enqueue([new])
            assert [one.id for one in await work(worker, 10)] == [new.id for new in news]


async def test_a_paused_queue_gives_nothing_to_whom_a_task_woke(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as worker, opened(url) as producer:
        await prepare(worker, 0)
        await prepare(producer, 0)
        await woken(worker, producer, task())
        await producer.pause("work")
        assert await worker.claim({"work": 10}, worker="w", lease=60) == []


async def test_a_task_that_waits_wakes_a_worker_when_its_time_has_come(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as worker, opened(url) as producer:
        await producer.enqueue([task(run_at=timedelta(days=1))])
        waits = asyncio.create_task(worker.wait_for_work(["work"], 600))
        await asyncio.sleep(0.1)  # by then it waits
        new = task(run_at=timedelta(seconds=0.3))
        await producer.enqueue([new])
        async with asyncio.timeout(60):
            await waits
        assert [one.id for one in await worker.claim({"work": 10}, worker="w", lease=60)] == [new.id]


async def test_a_large_task_wakes_a_worker_too(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as worker, opened(url) as producer:
        await prepare(producer, 0)
        new = task(body=b"x" * 100_000)
        async with asyncio.timeout(60):
            await woken(worker, producer, new)
        assert [one.body for one in await work(worker, 1)] == [new.body]


# Reading on before a claim needs it


async def enqueue_singles(producer: NatsStorage, count: int) -> list[str]:
    """Enqueue tasks one by one; return their ids."""
    tasks = [task() for _ in range(count)]
    for new in tasks:
        await producer.enqueue([new])
    return [new.id for new in tasks]


async def test_a_claim_of_a_long_line_does_not_wait_for_a_read(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as worker, opened(url) as producer:
        ids = await enqueue_singles(producer, 60)
        assert worker._opened is not None
        state_store = worker._opened.state_store
        claimed = []
        for _ in range(4):  # as many as the first claim read
            claimed += await work(worker, 10)
            await await_until(lambda: not state_store._chores)

        async def never(*_: object, **__: object) -> object:
            raise AssertionError("a claim had to read")

        with monkeypatch.context() as patch:
            patch.setattr(state_store.transport, "scan", never)
            claimed += await work(worker, 10)
        claimed += await work(worker, 10)
        assert [one.id for one in claimed] == ids


async def test_what_was_read_ahead_is_neither_given_twice_nor_passed_over(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as first, opened(url) as second, opened(url) as producer:
        ids = await enqueue_singles(producer, 100)
        more = asyncio.create_task(enqueue_singles(producer, 100))
        claimed: list[str] = []
        while len(claimed) < 200:
            for part in await asyncio.gather(work(first, 7), work(second, 5), work(first, 3)):
                claimed += [one.id for one in part]
        assert sorted(claimed) == sorted(ids + await more)


async def test_two_who_read_a_line_from_different_places_at_once_find_what_each_is_to_find(
    nats_server: NatsServer,
) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        (task_id,) = await enqueue_singles(storage, 1)
        assert storage._opened is not None
        state_store = storage._opened.state_store
        lookup = state_store.task_lookup
        before = (await state_store.read(["work"]))["work"]
        (line,) = before.lines
        behind = (await state_store.read(["work"]))["work"]
        behind.lines[line] = [state_store.transport.last_seen + 1, 0]

        part = lookup._part("work", line)
        async with part.reading:
            first = asyncio.create_task(lookup.ahead(before, line, None, 1))
            second = asyncio.create_task(lookup.ahead(behind, line, None, 1))
            await await_until(lambda: len(part.reading._waiters or ()) == 2)
        found = await first
        assert await second is None
        assert found is not None
        assert [row[0] for row in found.rows] == [task_id]


# Looking where a task was a moment ago


async def test_a_task_that_was_removed_and_enqueued_elsewhere_is_found_there(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage, opened(url) as other:
        await prepare(storage, 0)
        new = task()
        await storage.enqueue([new])
        assert [one is not None and one.queue for one in await storage.get([new.id])] == ["work"]
        assert await other.delete([new.id]) == [True]
        assert await storage.get([new.id]) == [None]
        await other.enqueue([NewTask(id=new.id, queue="elsewhere", name="test.task", body=b"[]")])
        assert [one is not None and one.queue for one in await storage.get([new.id])] == ["elsewhere"]
        assert await storage.wait_finished([new.id], 0.01) == set()


async def test_a_word_of_an_earlier_end_does_not_end_a_wait(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage, opened(url) as other:
        await storage.enqueue([task(max_retries=0)])
        (claimed,) = await storage.claim({"work": 1}, worker="w", lease=60)
        assert await storage.cancel([claimed.id]) == [True]
        await storage.finish([done(claimed)])
        opened_other = other._opened
        assert opened_other is not None
        subject = opened_other.state_store.names.end(claimed.id)
        new = task()
        await storage.enqueue([new])
        waits = asyncio.create_task(storage.wait_finished([new.id], 600))
        await asyncio.sleep(0.1)  # by then it waits
        await opened_other.transport.tell(opened_other.state_store.names.end(new.id), b"1")
        await opened_other.transport.tell(subject, b"1")
        await asyncio.sleep(0.2)  # what must not happen would have by now
        assert not waits.done()
        await work(other, 1)
        async with asyncio.timeout(60):
            assert await waits == {new.id}


# Changes of one queue state at the same time


async def test_changes_that_come_together_are_one_step(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await storage.enqueue([task() for _ in range(50)])
        claimed = await storage.claim({"work": 50}, worker="w", lease=60)
        before = await changes(storage)
        ends = [storage.finish([done(one)]) for one in claimed]
        assert await asyncio.gather(*ends) == [[True]] * 50
        assert await changes(storage) - before <= 3


async def test_a_step_that_fails_spoils_none_of_the_others(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await storage.enqueue([task() for _ in range(3)])
        claimed = await storage.claim({"work": 3}, worker="w", lease=60)
        assert storage._opened is not None
        state_store = storage._opened.state_store

        async def fail(queue_state: QueueState) -> tuple[None, bool]:
            queue_state.paused = True
            raise CorruptRecord("not a good one")

        outcomes = await asyncio.gather(
            storage.finish([done(claimed[0])]),
            storage.finish([done(claimed[1])]),
            state_store.change("work", fail),
            storage.finish([done(claimed[2])]),
            return_exceptions=True,
        )
        assert [outcomes[0], outcomes[1], outcomes[3]] == [[True]] * 3
        assert isinstance(outcomes[2], CorruptRecord)
        (stats,) = await storage.stats()
        assert not stats.paused
        assert stats.counts[TaskState.SUCCEEDED] == 3


async def test_whoever_is_cancelled_while_he_waits_for_his_turn_changes_nothing(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await storage.enqueue([task() for _ in range(2)])
        claimed = await storage.claim({"work": 2}, worker="w", lease=60)
        first = asyncio.create_task(storage.finish([done(claimed[0])]))
        second = asyncio.create_task(storage.finish([done(claimed[1])]))
        await asyncio.sleep(0)  # both begin
        second.cancel()
        assert await first == [True]
        with pytest.raises(asyncio.CancelledError):
            await second
        assert await storage.finish([done(claimed[1])]) == [True]


async def test_two_that_change_one_book_all_the_time_lose_nothing(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as one, opened(url) as other:
        await one.enqueue([task() for _ in range(400)])
        ended: list[str] = []

        async def drain(storage: NatsStorage) -> None:
            while claimed := await storage.claim({"work": 5}, worker=str(id(storage)), lease=60):
                assert all(await storage.finish([done(one) for one in claimed]))
                ended.extend(one.id for one in claimed)

        async with asyncio.timeout(60):
            await asyncio.gather(drain(one), drain(other))
        assert len(ended) == len(set(ended)) == 400
        (stats,) = await one.stats()
        assert stats.counts[TaskState.SUCCEEDED] == 400


async def test_a_lease_that_was_extended_stays_so_through_changes_of_others(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as one, opened(url) as other:
        await one.enqueue([task() for _ in range(3)])
        (held, *_) = await one.claim({"work": 1}, worker="w", lease=1)
        await other.heartbeat("w", [Lease(held.id, held.delivery)], 600)
        for _ in range(2):
            await work(one, 1)
        (found,) = await other.get([held.id])
        assert found is not None
        assert found.lease_until is not None
        assert found.started_at is not None
        assert found.lease_until - found.started_at > timedelta(seconds=500)


async def changes(storage: NatsStorage) -> int:
    assert storage._opened is not None
    return (await storage._opened.state_store.read(["work"]))["work"].changes


# Enqueueing on the calling thread


async def test_a_task_is_stored_on_the_calling_thread_and_wakes_a_worker(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage, opened(url) as worker:
        await prepare(storage, 0)
        waits = asyncio.create_task(worker.wait_for_work(["work"], 600))
        await asyncio.sleep(0.1)  # by then it waits
        new = task()
        answers = storage.enqueue_blocking([new])
        assert answers is not None
        assert [(answer.id, answer.created) for answer in answers] == [(new.id, True)]
        async with asyncio.timeout(60):
            await waits
        assert [one.id for one in await work(worker, 10)] == [new.id]
        # Once more: it is there already, and the other way says so.
        assert storage.enqueue_blocking([new]) is None
        assert [answer.created for answer in await storage.enqueue([new])] == [False]


async def test_what_takes_more_than_one_message_goes_the_other_way(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await prepare(storage, 0)
        for new in (
            task(unique="k"),
            task(run_at=timedelta(seconds=9)),
            task(body=b"x" * 9000),
            task(queue="unknown"),
        ):
            assert storage.enqueue_blocking([new]) is None
        assert storage.enqueue_blocking([task(), task()]) is None
        assert (await storage.list_tasks(TaskQuery(states=[TaskState.READY]))).tasks == ()


async def test_an_answer_that_was_lost_leaves_the_task_created_and_stored_once(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await prepare(storage, 0)
        assert storage._opened is not None
        sync_client = storage._opened.producer._sync_client
        publish = sync_client.publish

        def lose(write: Write) -> None:
            publish(write)
            raise Lost("no answer")

        sync_client.publish = lose  # type: ignore[method-assign]  # the network between us and the server
        new = task()
        assert storage.enqueue_blocking([new]) is None
        assert [(answer.id, answer.created) for answer in await storage.enqueue([new])] == [(new.id, True)]
        assert [one.id for one in await work(storage, 10)] == [new.id]


async def test_threads_that_enqueue_at_the_same_time_each_store_theirs(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await prepare(storage, 0)
        loop = asyncio.get_running_loop()
        stored: list[str] = []

        def produce() -> None:
            for _ in range(30):
                new = task()
                answers = storage.enqueue_blocking([new])
                if answers is None:
                    answers = asyncio.run_coroutine_threadsafe(storage.enqueue([new]), loop).result(30)
                assert answers[0].created
                stored.append(new.id)

        threads = [threading.Thread(target=produce) for _ in range(4)]
        for thread in threads:
            thread.start()

        async def have_ended() -> bool:
            return not any(thread.is_alive() for thread in threads)

        await await_until(have_ended, 60, "the threads to end")
        assert sorted(one.id for one in await work(storage, 200)) == sorted(stored)
        assert len(stored) == 120


async def test_a_server_that_went_away_is_nothing_that_the_calling_thread_waits_for(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        async with opened(fresh(server.url)) as storage:
            await prepare(storage, 0)
            assert storage.enqueue_blocking([task()]) is not None
            await asyncio.to_thread(server.kill)
            new = task()
            assert storage.enqueue_blocking([new]) is None
            await asyncio.to_thread(server.start)
            assert [answer.created for answer in await storage.enqueue([new])] == [True]


def test_keys_and_certificates_are_left_to_the_client() -> None:
    for url in ("tls://localhost", "ws://localhost", "nats://localhost?nkey=/nowhere"):
        sync_client = SyncClient(make(url)._settings, lambda: ("127.0.0.1", 1), lambda: None)
        assert sync_client.publish(Write("omniq.omniq.w.x", b"")) is None


# Results of single tasks


async def test_results_of_tasks_that_were_enqueued_one_by_one_do_not_take_a_message_each(
    nats_server: NatsServer,
) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        ids = [(await storage.enqueue([task()]))[0].id for _ in range(200)]
        assert storage._opened is not None
        transport = storage._opened.transport
        before = await transport.end()
        for _ in range(2):
            claimed = await storage.claim({"work": 100}, worker="w", lease=99)
            assert await storage.finish([done(one) for one in claimed]) == [True] * 100
        await storage._opened.state_store.close()  # what is left to be done is done then
        assert await transport.end() - before < 40
        records = await storage.get(ids)
        assert {record and record.state for record in records} == {TaskState.SUCCEEDED}


async def test_neighbours_that_share_a_page_of_results_are_removed_one_by_one(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage, opened(storage._settings.shown) as other:
        results = [b"1", b"x" * 5000]
        ids = [(await storage.enqueue([task(body=b"p" * (1 + 6000 * (n % 2)))]))[0].id for n in range(40)]
        claimed = await storage.claim({"work": 99}, worker="w", lease=99)
        told = [Succeeded(id=one.id, delivery=1, result=results[n % 2]) for n, one in enumerate(claimed)]
        assert await storage.finish(told) == [True] * 40
        gone, left = ids[::2], ids[1::2]
        assert await other.delete(gone[:10]) == [True] * 10
        assert await storage.delete(gone[10:]) == [True] * 10
        for reader in (storage, other):
            assert await reader.get(gone) == [None] * 20
            records = await reader.get(left)
            assert [record and record.result_payload for record in records] == [results[1]] * 20
        assert (await storage.stats())[0].counts[TaskState.SUCCEEDED] == 20
        assert await other.purge("work") == 20
        assert storage._opened is not None
        names = storage._opened.state_store.names
        stored = await storage._opened.transport.subjects(f"{names.root}.>")
        assert sorted(stored) == sorted(
            [names.queue_state("work"), names.note("work", "p0"), names.reserve, f"{names.root}.w.="]
        )
