"""What ``enqueue`` promises: whole, once, and as it was given."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from attrs import evolve

from omniq.errors import PayloadTooLarge
from omniq.storage import Enqueued, Lease, LeaseState, Storage, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Failed, Progress, TaskError, TaskState
from omniq.testing.contract.base import Contract
from omniq.testing.contract.steps import (
    FAR,
    HELD,
    OUTCOMES,
    SHORT,
    add,
    counts,
    later,
    new_schedule,
    new_task,
    outcome,
    passed,
    record,
    states,
    take,
    take_lapsed,
)
from omniq.testing.contract.stores import Stores

__all__ = ["EnqueueContract"]

BATCH = 1000
"""How many tasks are stored together where a store has no limit of its own."""
MOST_BYTES = 4 << 20
"""The longest body that a test stores."""
TEXT = "Größe 日本語 🦜 '\"; DROP TABLE tasks; -- {x} %s \\ * > . / : \t|"
"""Text with everything in it that some store might take for its own syntax."""


BYTES = (b"", bytes(range(256)), b"\x00" * 9, b"\xff\xfe\r\n'\"\\", "日本語🦜".encode())
ENDS = (
    "succeeded",
    "failed",
    "cancelled",
    "cancelled while ready",
    "cancelled while scheduled",
    "asked to stop",
    "lost",
    "lost and asked to stop",
    "expired before its claim",
    "expired and swept",
    "deleted",
    "purged",
)


async def bring_to_an_end(store: Storage, task_id: str, end: str) -> None:
    """End the only task of queue ``work`` in one of the :data:`ENDS`."""
    match end:
        case "succeeded" | "failed" | "cancelled":
            await store.finish([outcome(end, task) for task in await take(store)])
        case "cancelled while ready" | "cancelled while scheduled":
            await store.cancel([task_id])
        case "asked to stop":
            (task,) = await take(store)
            await store.cancel([task_id])
            await store.finish([outcome("retry", task)])
        case "lost":
            await take_lapsed(store)
            await store.recover(10)
        case "lost and asked to stop":
            await take_lapsed(store)
            await store.cancel([task_id])
            await store.recover(10)
        case "expired before its claim" | "expired and swept":
            await passed(store, (await record(store, task_id)).expires_at)
            if end == "expired and swept":
                await store.recover(10)
            else:
                assert await take(store) == []
        case "deleted":
            await store.delete([task_id])
        case "purged":
            await store.purge("work")


class EnqueueContract(Contract):
    """Enqueueing."""

    async def test_a_task_comes_back_as_it_was_enqueued(self, store: Storage) -> None:
        task = new_task(
            body=bytes(range(256)),
            priority=-7,
            max_retries=11,
            run_at=FAR,
            expires=FAR + timedelta(microseconds=1),
            unique="key",
            tags=("red", "blue", "red"),
            result_ttl=1234.5,
        )
        await add(store, task)
        stored = await record(store, task.id)
        assert stored.queue == "work"
        assert stored.name == "kit.task"
        assert stored.body == bytes(range(256))
        assert stored.priority == -7
        assert stored.max_retries == 11
        assert stored.run_at == FAR
        assert stored.expires_at == FAR + timedelta(microseconds=1)
        assert stored.unique == "key"
        assert stored.tags == ("red", "blue", "red")
        assert stored.result_ttl == 1234.5

    async def test_a_task_that_leaves_all_to_the_defaults_comes_back_with_them(self, store: Storage) -> None:
        (task_id,) = await add(store)
        stored = await record(store, task_id)
        assert (stored.priority, stored.max_retries) == (0, 3)
        assert (stored.expires_at, stored.unique, stored.tags) == (None, None, ())
        assert stored.result_ttl == 86400.0

    async def test_a_new_task_is_ready_and_nothing_has_happened_to_it(self, store: Storage) -> None:
        before = await store.now()
        (task_id,) = await add(store)
        after = await store.now()
        stored = await record(store, task_id)
        assert stored.state is TaskState.READY
        assert before <= stored.created_at <= after
        assert before <= stored.run_at <= after
        assert (stored.attempt, stored.delivery) == (0, 0)
        assert (stored.started_at, stored.finished_at, stored.lease_until, stored.worker) == (None, None, None, None)
        assert (stored.error, stored.progress, stored.result_payload) == (None, None, None)
        assert stored.cancel_requested is False

    async def test_datetimes_come_back_aware_and_in_utc(self, store: Storage) -> None:
        summer = datetime(2101, 7, 8, 11, 30, 0, 999999, tzinfo=timezone(timedelta(hours=5, minutes=45)))
        (task_id,) = await add(store, run_at=summer, expires=summer)
        stored = await record(store, task_id)
        assert stored.run_at == stored.expires_at == summer
        for moment in (stored.run_at, stored.expires_at, stored.created_at):
            assert moment.utcoffset() == timedelta(0)

    async def test_a_task_for_later_is_scheduled(self, store: Storage) -> None:
        (task_id,) = await add(store, run_at=FAR)
        assert await states(store, [task_id]) == [TaskState.SCHEDULED]
        assert await take(store) == []

    async def test_a_delay_counts_from_the_stores_now(self, store: Storage) -> None:
        delay, expires = timedelta(hours=1, microseconds=1), timedelta(hours=2)
        before = await store.now()
        (task_id,) = await add(store, run_at=delay, expires=expires)
        after = await store.now()
        stored = await record(store, task_id)
        assert stored.state is TaskState.SCHEDULED
        assert before + delay <= stored.run_at <= after + delay
        assert stored.expires_at is not None
        assert before + expires <= stored.expires_at <= after + expires

    @pytest.mark.parametrize("run_at", [timedelta(0), datetime(2001, 2, 3, tzinfo=UTC)])
    async def test_a_task_whose_time_has_come_already_is_ready(
        self, store: Storage, run_at: datetime | timedelta
    ) -> None:
        (task_id,) = await add(store, run_at=run_at)
        assert await states(store, [task_id]) == [TaskState.READY]
        assert [task.id for task in await take(store)] == [task_id]

    async def test_nothing_to_enqueue_is_nothing_done(self, store: Storage) -> None:
        assert await store.enqueue([]) == []
        assert await store.stats() == []

    async def test_answers_come_in_the_order_of_the_tasks(self, store: Storage) -> None:
        old = new_task()
        await add(store, old)
        first, last = new_task(), new_task()
        assert await store.enqueue([first, old, last]) == [
            Enqueued(first.id, True),
            Enqueued(old.id, False),
            Enqueued(last.id, True),
        ]

    async def test_a_thousand_tasks_go_in_one_call(self, store: Storage) -> None:
        tasks = [new_task(body=b"%d" % number) for number in range(1200)]
        ids = await add(store, *tasks)
        stored = await store.get(ids)
        assert [task and task.body for task in stored] == [task.body for task in tasks]
        claimed = await take(store, 1200)
        assert [task.id for task in claimed] == ids
        leases = [Lease(task.id, task.delivery) for task in claimed]
        assert await store.heartbeat("w", leases, HELD) == [LeaseState.HELD] * 1200
        assert await store.cancel(ids[:600]) == [True] * 600
        assert await store.finish([outcome("succeeded", task) for task in claimed]) == [True] * 1200
        assert await counts(store) == {TaskState.SUCCEEDED: 1200}
        assert await store.delete(ids) == [True] * 1200

    @pytest.mark.parametrize("unique", [False, True])
    async def test_as_many_tasks_as_the_limits_say_are_stored_all_or_none(self, store: Storage, unique: bool) -> None:
        limit = store.limits.atomic_unique_tasks if unique else store.limits.atomic_tasks
        # In pairs that have something in common, as a store may keep such tasks together.
        tasks = [
            new_task(
                queue=f"queue {number % 3}",
                result_ttl=100.0 + number // 6,
                unique=f"key {number}" if unique else None,
            )
            for number in range(min(limit or BATCH, BATCH))
        ]
        unwritable: Any = (object(),)
        last = evolve(tasks[-1], id=new_id(), tags=unwritable)
        with contextlib.suppress(Exception):
            await store.enqueue([*tasks[:-1], last])
        found = await store.get([task.id for task in tasks[:-1]])
        assert found.count(None) in (0, len(found)), "a part of the batch was stored"
        if found.count(None):
            assert await store.enqueue(tasks) == [Enqueued(task.id, True) for task in tasks]

    async def test_the_longest_body_that_the_limits_promise_is_stored(self, store: Storage) -> None:
        longest = store.limits.body
        if longest is None or longest > MOST_BYTES:
            self.not_asked("it holds more than a test has to spare")
            return
        task = new_task(body=b"x" * longest, unique="k" * 500, tags=tuple("t" * 100 + str(n) for n in range(10)))
        await add(store, task)
        assert [len(claimed.body) for claimed in await take(store)] == [longest]

    # Idempotent by id

    async def test_enqueueing_an_id_again_changes_nothing(self, store: Storage) -> None:
        task = new_task(body=b"first")
        await add(store, task)
        stored = await record(store, task.id)
        again = evolve(task, body=b"second", queue="other", priority=9, run_at=FAR)
        assert await store.enqueue([again]) == [Enqueued(task.id, False)]
        assert await record(store, task.id) == stored
        assert await counts(store) == {TaskState.READY: 1}
        assert await counts(store, "other") == {}

    async def test_an_id_twice_in_a_batch_is_stored_once(self, store: Storage) -> None:
        task = new_task(body=b"first")
        again = evolve(task, body=b"second")
        assert await store.enqueue([task, again]) == [Enqueued(task.id, True), Enqueued(task.id, False)]
        assert (await record(store, task.id)).body == b"first"
        assert len(await take(store, 10)) == 1

    async def test_a_batch_repeated_after_a_lost_answer_stores_nothing_twice(self, store: Storage) -> None:
        batch = [new_task(unique="key"), new_task(), new_task(run_at=FAR)]
        await add(store, *batch)
        assert await store.enqueue(batch) == [Enqueued(task.id, False) for task in batch]
        assert await counts(store) == {TaskState.READY: 2, TaskState.SCHEDULED: 1}

    @pytest.mark.parametrize("kind", OUTCOMES)
    async def test_an_id_is_remembered_through_its_whole_life(self, store: Storage, kind: str) -> None:
        task = new_task()
        await add(store, task)
        (claimed,) = await take(store)
        assert await store.enqueue([task]) == [Enqueued(task.id, False)]
        assert await record(store, task.id) == claimed
        await store.finish([outcome(kind, claimed)])
        stored = await record(store, task.id)
        assert await store.enqueue([task]) == [Enqueued(task.id, False)]
        assert await record(store, task.id) == stored

    # Unique keys

    async def test_a_task_whose_key_is_taken_is_not_stored_and_the_holder_is_named(self, store: Storage) -> None:
        (holder,) = await add(store, unique="key")
        rival = new_task(unique="key", queue="another queue: the key is the store's, not the queue's")
        assert await store.enqueue([rival]) == [Enqueued(holder, False)]
        assert await store.get([rival.id]) == [None]
        assert [stats.queue for stats in await store.stats()] == ["work"]

    async def test_of_two_with_one_key_in_a_batch_the_earlier_is_stored(self, store: Storage) -> None:
        first, second, other = new_task(unique="key"), new_task(unique="key"), new_task(unique="other key")
        assert await store.enqueue([first, second, other]) == [
            Enqueued(first.id, True),
            Enqueued(first.id, False),
            Enqueued(other.id, True),
        ]
        assert await states(store, [first.id, second.id]) == [TaskState.READY, None]

    async def test_a_repeated_call_names_the_task_itself_though_another_has_its_key(self, store: Storage) -> None:
        old = new_task(unique="key")
        await add(store, old)
        await store.cancel([old.id])
        await add(store, unique="key")
        assert await store.enqueue([old]) == [Enqueued(old.id, False)]

    @pytest.mark.parametrize("kind", ["scheduled", "ready", "running", "retry", "retry later", "released", "recovered"])
    async def test_a_live_task_keeps_its_key(self, store: Storage, kind: str) -> None:
        (holder,) = await add(store, unique="key", run_at=FAR if kind == "scheduled" else None)
        if kind == "recovered":
            await take_lapsed(store)
            await store.recover(10)
        elif kind not in ("scheduled", "ready"):
            (claimed,) = await take(store)
            if kind != "running":
                await store.finish([outcome(kind, claimed)])
        assert await store.enqueue([new_task(unique="key")]) == [Enqueued(holder, False)]

    @pytest.mark.parametrize(
        "end",
        ENDS,
    )
    async def test_a_key_is_free_once_its_task_has_ended(self, store: Storage, end: str) -> None:
        task = new_task(
            unique="key",
            max_retries=0,
            run_at=FAR if end == "cancelled while scheduled" else None,
            expires=timedelta(seconds=0.01) if end.startswith("expired") else None,
        )
        await add(store, task)
        await bring_to_an_end(store, task.id, end)
        assert await states(store, [task.id]) != [TaskState.READY]
        (following,) = await add(store, unique="key")
        assert await store.enqueue([new_task(unique="key")]) == [Enqueued(following, False)]

    async def test_deleting_an_ended_task_frees_no_key_of_its_successor(self, store: Storage) -> None:
        (old,) = await add(store, unique="key")
        await store.cancel([old])
        (following,) = await add(store, unique="key")
        await store.delete([old])
        assert await store.enqueue([new_task(unique="key")]) == [Enqueued(following, False)]

    # What a task can hold

    async def test_text_of_any_kind_is_kept(self, store: Storage) -> None:
        task = new_task(id=new_id(), queue=TEXT, name=TEXT, unique=TEXT, tags=(TEXT, "", "a,b", "a"))
        await add(store, task)
        (claimed,) = await store.claim({TEXT: 1}, worker=TEXT, lease=HELD)
        assert claimed == await record(store, task.id)
        assert (claimed.queue, claimed.name, claimed.worker, claimed.unique) == (TEXT, TEXT, TEXT, TEXT)
        assert claimed.tags == (TEXT, "", "a,b", "a")
        assert [stats.queue for stats in await store.stats()] == [TEXT]

    @pytest.mark.parametrize("length", [300, 3000])
    async def test_long_texts_are_kept_in_every_place(self, store: Storage, length: int) -> None:
        # Of any script up to 300; a longer one takes three times the bytes, and perhaps six in a store's own writing.
        text = ((TEXT if length == 300 else "LongText") * length)[:length]
        error = TaskError(type=text, message=text, traceback=text)
        task = new_task(queue=text, name=text, unique=text, tags=(text,))
        ids = await add(store, task, new_task(queue=text))
        assert (await store.enqueue([new_task(unique=text)]))[0] == Enqueued(task.id, False)
        schedule = await store.put_schedule(new_schedule(text, task=task, trigger=text, apps=(text,)))
        assert await store.get_schedules([text]) == [schedule]
        assert [stats.queue for stats in await store.stats()] == [text]
        await store.pause(text)
        await store.resume(text)
        await store.wait_for_work([text], 0.1)
        claimed = await store.claim({text: 2}, worker=text, lease=HELD)
        await store.heartbeat(text, [Lease(task.id, 1)], HELD)
        assert [(worker.id, set(worker.running)) for worker in await store.workers()] == [(text, set(ids))]
        await store.set_progress({Lease(task.id, 1): Progress(done=1, note=text)})
        stored = await record(store, task.id)
        assert stored == evolve(claimed[0], progress=Progress(done=1, note=text), lease_until=stored.lease_until)
        assert (stored.queue, stored.name, stored.unique, stored.tags) == (text, text, text, (text,))
        await store.finish([Failed(id=task.id, delivery=1, error=error), outcome("succeeded", claimed[1])])
        assert (await record(store, task.id)).error == error
        assert (await store.list_tasks(TaskQuery(queue=text, name=text, tag=text))).tasks[0].id == task.id
        assert await store.delete_schedule(text)
        assert await store.purge(text) == 2

    @pytest.mark.parametrize("where", ["queue", "name", "unique", "tags"])
    @pytest.mark.parametrize("strange", ["a\0b", "\ud800", "ä" * 20_000], ids=["NUL", "surrogate", "long"])
    async def test_a_batch_of_which_the_store_cannot_hold_one_is_refused_as_a_whole(
        self, store: Storage, where: str, strange: str
    ) -> None:
        good = [new_task() for _ in range(8)]
        odd = new_task(**{where: (strange,) if where == "tags" else strange})
        ids = [task.id for task in (*good, odd)]
        try:
            await store.enqueue([*good[:6], odd, *good[6:]])
        except (ValueError, PayloadTooLarge):
            assert await states(store, ids) == [None] * 9
            assert await store.stats() == []
        else:
            (stored,) = await store.get([odd.id])
            assert getattr(stored, where) == getattr(odd, where)
        assert [answer.id for answer in await store.enqueue(good)] == ids[:8], "the store cannot be used any more"

    @pytest.mark.parametrize("body", BYTES)
    async def test_bodies_of_any_bytes_are_kept(self, store: Storage, body: bytes) -> None:
        (task_id,) = await add(store, body=body)
        (claimed,) = await take(store)
        assert claimed.body == body
        assert (await record(store, task_id)).body == body

    async def test_a_body_of_a_megabyte_is_kept(self, store: Storage) -> None:
        body = bytes(range(256)) * 3900
        (task_id,) = await add(store, body=body)
        assert (await record(store, task_id)).body == body
        (claimed,) = await take(store)
        assert claimed.body == body

    # From any thread

    async def test_the_blocking_way_does_the_same_or_says_that_there_is_none(self, stores: Stores) -> None:
        store = await stores.open()
        old, first, second = new_task(unique="key"), new_task(), new_task(unique="key")
        await add(store, old)

        async def enqueue(_: Storage) -> list[Enqueued] | None:
            return store.enqueue_blocking([first, second, old])

        (answers,) = await stores.in_threads(store, [enqueue])
        if answers is not None:
            assert answers == [Enqueued(first.id, True), Enqueued(old.id, False), Enqueued(old.id, False)]
            assert await states(store, [first.id, second.id]) == [TaskState.READY, None]
            assert store.enqueue_blocking([]) == []
        await store.close()
        assert store.enqueue_blocking([new_task()]) is None
        assert stores.make().enqueue_blocking([new_task()]) is None

    async def test_a_task_that_waits_for_its_time_is_claimed_once_it_has_come(self, store: Storage) -> None:
        (task_id,) = await add(store, run_at=timedelta(seconds=SHORT))
        await later(store, SHORT)
        (claimed,) = await take(store, 2)
        assert claimed.id == task_id
        assert claimed.started_at is not None
        assert claimed.started_at >= claimed.run_at
