"""What reading promises: every record, pages that do not shift, and counts that are right."""

from __future__ import annotations

from datetime import timedelta

import pytest

from omniq.storage import Count, Storage, TaskQuery
from omniq.storage.ids import new_id
from omniq.storage.validation import EARLIEST
from omniq.task import Failed, Omitted, StoredTask, Succeeded, TaskError, TaskState
from omniq.testing.contract.base import Contract
from omniq.testing.contract.steps import (
    FAR,
    SHORT,
    add,
    counts,
    later,
    new_task,
    outcome,
    record,
    take,
    take_lapsed,
)

__all__ = ["ReadContract"]
from omniq.storage.urls import parse_url
from omniq.testing.contract.stores import Stores


async def walk(store: Storage, query: TaskQuery) -> list[StoredTask]:
    """Follow the cursor from the first page to the last."""
    tasks: list[StoredTask] = []
    cursor: str | None = None
    for _ in range(1000):
        page = await store.list_tasks(query, cursor)
        assert len(page.tasks) <= query.limit
        tasks += page.tasks
        if page.cursor is None:
            return tasks
        assert page.cursor != cursor, "the cursor does not move"
        cursor = page.cursor
    raise AssertionError("the pages do not end")


async def ids_of(store: Storage, **query: object) -> list[str]:
    return [task.id for task in await walk(store, TaskQuery(**query))]  # type: ignore[arg-type]  # tests give what fits


async def one_of_each_state(store: Storage) -> list[str]:
    """Store a task in each state, in the order of the states; return their ids."""
    ids = await add(store, *(new_task() for _ in range(5)))
    (scheduled,) = await add(store, run_at=FAR)
    claimed = await take(store, 3)
    await store.finish([outcome("succeeded", claimed[0]), outcome("failed", claimed[1])])
    await store.cancel([ids[3]])
    return [scheduled, ids[4], ids[2], ids[0], ids[1], ids[3]]


class ReadContract(Contract):
    """Reading."""

    # get

    async def test_records_come_in_the_order_of_the_ids(self, store: Storage) -> None:
        first, second = await add(store, new_task(), new_task())
        wanted = [second, new_id(), first, second]
        found = await store.get(wanted)
        assert [task and task.id for task in found] == [second, None, first, second]

    async def test_to_read_nothing_gives_nothing(self, store: Storage) -> None:
        assert await store.get([]) == []
        assert await store.get([new_id()]) == [None]

    async def test_what_is_not_an_id_is_not_in_the_store(self, store: Storage) -> None:
        await add(store)
        strange = ["", "no id", "%", "*", "größe", "'; --", "a" * 300]
        assert await store.get(strange) == [None] * 7
        assert await store.cancel(strange) == await store.retry(strange) == await store.delete(strange) == [False] * 7

    # list_tasks

    async def test_an_empty_store_has_one_empty_page(self, store: Storage) -> None:
        page = await store.list_tasks(TaskQuery())
        assert (page.tasks, page.cursor) == ((), None)

    async def test_the_latest_enqueued_comes_first(self, store: Storage) -> None:
        ids = await add(store, *(new_task(priority=number % 3) for number in range(3)))
        ids += await add(store, run_at=FAR)
        ids += await add(store)
        await store.finish([outcome("succeeded", task) for task in await take(store)])
        assert await ids_of(store) == ids[::-1]

    async def test_a_listed_task_is_the_whole_record(self, store: Storage) -> None:
        (task_id,) = await add(store, body=b"payload", tags=("a", "b"), unique="key")
        await store.finish([outcome("failed", task) for task in await take(store)])
        page = await store.list_tasks(TaskQuery())
        assert page.tasks == (await record(store, task_id),)

    @pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 100])
    async def test_pages_hold_no_more_than_the_limit_and_all_in_the_end(self, store: Storage, limit: int) -> None:
        ids = await add(store, *(new_task() for _ in range(6)))
        assert await ids_of(store, limit=limit) == ids[::-1]

    async def test_each_filter_finds_what_matches_and_nothing_else(self, store: Storage) -> None:
        async def some(**options: object) -> str:
            (task_id,) = await add(store, **options)
            return task_id

        plain = await some()
        other = await some(queue="other")
        named = await some(name="named", run_at=FAR)
        tagged = await some(tags=("red", "blue"), queue="other", name="named")
        await store.finish([outcome("succeeded", task) for task in await take(store)])
        (running,) = await take(store, queue="other")
        assert running.id == other
        assert await ids_of(store, queue="work") == [named, plain]
        assert await ids_of(store, queue="other") == [tagged, other]
        assert await ids_of(store, queue="nowhere") == []
        assert await ids_of(store, name="named") == [tagged, named]
        assert await ids_of(store, name="name") == []
        assert await ids_of(store, tag="red") == await ids_of(store, tag="blue") == [tagged]
        assert await ids_of(store, tag="re") == await ids_of(store, tag="red,blue") == []
        assert await ids_of(store, states=[TaskState.SCHEDULED]) == [named]
        assert await ids_of(store, states=[TaskState.READY]) == [tagged]
        assert await ids_of(store, states=[TaskState.RUNNING]) == [other]
        assert await ids_of(store, states=[TaskState.SUCCEEDED]) == [plain]
        assert await ids_of(store, states=[TaskState.FAILED]) == []

    async def test_filters_hold_together_and_on_every_page(self, store: Storage) -> None:
        tasks = [
            new_task(queue=queue, name=name, tags=tags, run_at=run_at)
            for queue in ("a", "b")
            for name in ("n", "m")
            for tags in ((), ("t",), ("t", "u"))
            for run_at in (None, FAR)
        ]
        await add(store, *tasks)
        expected = [
            task.id for task in tasks if (task.queue, task.name, task.run_at) == ("b", "n", None) and "t" in task.tags
        ]
        query = {"queue": "b", "name": "n", "tag": "t", "states": [TaskState.READY]}
        assert len(expected) == 2
        assert await ids_of(store, **query) == await ids_of(store, **query, limit=1) == expected[::-1]

    async def test_pages_do_not_shift_while_tasks_come_and_go(self, store: Storage) -> None:
        ids = await add(store, *(new_task(queue="kept") for _ in range(9)))
        doomed = await add(store, queue="doomed")
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = await store.list_tasks(TaskQuery(limit=2), cursor)
            seen += [task.id for task in page.tasks]
            if (cursor := page.cursor) is None:
                break
            await add(store, new_task(), new_task(queue="kept"), new_task())
            await store.finish([outcome("succeeded", task) for task in await take(store, 1, queue="kept")])
            await store.delete(doomed)
            await take(store, 1, queue="kept")
        assert [task_id for task_id in seen if task_id in ids] == ids[::-1]
        assert len(set(seen)) == len(seen), "a task was shown twice"

    async def test_the_task_at_the_edge_of_a_page_may_be_deleted(self, store: Storage) -> None:
        ids = await add(store, *(new_task() for _ in range(6)))
        page = await store.list_tasks(TaskQuery(limit=2))
        await store.delete([task.id for task in page.tasks])
        following = await store.list_tasks(TaskQuery(limit=2), page.cursor)
        assert [task.id for task in following.tasks] == [ids[3], ids[2]]

    @pytest.mark.parametrize("cursor", ["no cursor", "-1 or 1=1", "größe", "²"])
    async def test_a_cursor_of_another_store_is_refused(self, store: Storage, cursor: str) -> None:
        await add(store)
        with pytest.raises(ValueError, match=r".+"):
            await store.list_tasks(TaskQuery(), cursor)

    async def test_several_states_are_listed_together(self, store: Storage) -> None:
        scheduled, ready, running, succeeded, failed, cancelled = await one_of_each_state(store)
        every = [scheduled, ready, running, succeeded, failed, cancelled]
        latest_first = await ids_of(store)
        assert sorted(latest_first) == sorted(every)

        async def listed(*states: TaskState, **query: object) -> set[str]:
            found = await ids_of(store, states=states, **query)
            assert found == [task_id for task_id in latest_first if task_id in found]
            return set(found)

        for limit in (1, 100):
            assert await listed(TaskState.FAILED, TaskState.CANCELLED, limit=limit) == {failed, cancelled}
            assert await listed(TaskState.SUCCEEDED, TaskState.RUNNING, limit=limit) == {succeeded, running}
            assert await listed(TaskState.SCHEDULED, TaskState.READY, limit=limit) == {scheduled, ready}
            assert await listed(TaskState.FAILED, TaskState.READY, limit=limit) == {failed, ready}
            assert await listed(*TaskState, limit=limit) == set(every)
            assert await listed(*TaskState, queue="work", limit=limit) == set(every)
            assert await listed(TaskState.FAILED, TaskState.READY, queue="elsewhere", limit=limit) == set()
        assert await listed() == set()

    async def test_failed_and_cancelled_tasks_are_listed_as_long_as_they_are_that(self, store: Storage) -> None:
        async def ended() -> list[str]:
            return await ids_of(store, states=[TaskState.FAILED, TaskState.CANCELLED], limit=2)

        ids = await add(store, *(new_task(max_retries=0) for _ in range(6)), new_task(queue="other"))
        fails, lapses, asked, waits, deleted, purged, other = ids
        assert await ended() == []
        await store.cancel([waits])
        assert await ended() == [waits]
        await store.finish([outcome("failed", task) for task in await take(store, 1)])
        assert await ended() == [waits, fails]
        (task,) = await take_lapsed(store)
        assert task.id == lapses
        await store.recover(9)
        assert await ended() == [waits, lapses, fails]
        (task,) = await take(store, 1)
        assert task.id == asked
        await store.cancel([asked])
        await store.finish([outcome("cancelled", task)])
        await store.finish(
            [outcome("failed", task) for task in [*await take(store, 9), *await take(store, queue="other")]]
        )
        assert await ended() == [other, purged, deleted, waits, asked, lapses, fails]
        await store.retry([lapses, other])
        await store.delete([deleted])
        assert await ended() == [purged, waits, asked, fails]
        await store.finish([outcome("succeeded", task) for task in await take(store, queue="other")])
        (task,) = await take(store)
        assert task.id == lapses
        await store.finish([outcome("failed", task)])
        assert await ended() == [purged, waits, asked, lapses, fails]
        assert await store.purge("work", TaskState.FAILED) == 3
        assert await ended() == [waits, asked]
        await store.purge("work")
        assert await ended() == []

    async def test_pruned_tasks_are_not_listed_any_more(self, store: Storage) -> None:
        soon, kept = await add(store, new_task(result_ttl=0), new_task())
        await store.finish([outcome("failed", task) for task in await take(store, 2)])
        await later(store, 0.01)
        assert await store.prune(9) == 1
        assert await ids_of(store, state=TaskState.FAILED) == [kept]
        assert await store.get([soon]) == [None]

    async def test_tasks_are_found_by_when_they_were_enqueued(self, store: Storage) -> None:
        ids = []
        for _ in range(4):
            ids += await add(store)
            await later(store, 0.01)
        times = [(await record(store, task_id)).created_at for task_id in ids]
        assert sorted(set(times)) == times
        assert await ids_of(store, enqueued_before=times[2]) == [ids[1], ids[0]]
        assert await ids_of(store, enqueued_after=times[2]) == [ids[3], ids[2]]
        assert await ids_of(store, enqueued_after=times[1], enqueued_before=times[3], limit=1) == [ids[2], ids[1]]
        assert await ids_of(store, enqueued_after=times[3], enqueued_before=times[1]) == []
        await store.cancel([ids[0], ids[2]])
        query = {"states": [TaskState.CANCELLED], "queue": "work"}
        assert await ids_of(store, **query, enqueued_before=times[2]) == [ids[0]]
        assert await ids_of(store, **query, enqueued_after=times[1]) == [ids[2]]
        far = await store.now() + timedelta(days=9000)
        assert await ids_of(store, enqueued_before=far) == ids[::-1]
        assert await ids_of(store, enqueued_after=far) == await ids_of(store, enqueued_before=EARLIEST) == []

    async def test_a_bare_page_has_sizes_in_place_of_what_is_large(self, store: Storage) -> None:
        large = b"x" * 20_000
        fails, succeeds, waits = await add(
            store, new_task(body=large), new_task(body=b"b", tags=("t",)), new_task(queue="other")
        )
        error = TaskError(type="ValueError", message="it broke", traceback="größe\n" * 1000)
        failed, succeeded = await take(store, 2)
        await store.finish(
            [
                Failed(id=fails, delivery=failed.delivery, error=error),
                Succeeded(id=succeeds, delivery=succeeded.delivery, result=large),
            ]
        )
        page = await store.list_tasks(TaskQuery(bare=True))
        assert [task.id for task in page] == [waits, succeeds, fails]
        for task in page:
            whole = await record(store, task.id)
            assert whole.omitted is None
            assert task == whole.bare()
        sizes = {task.id: task.omitted for task in page}
        assert sizes[fails] == Omitted(body=20_000, result=None, traceback=8000)
        assert sizes[succeeds] == Omitted(body=1, result=20_000, traceback=0)
        listed = await walk(store, TaskQuery(bare=True, states=[TaskState.FAILED], queue="work"))
        assert [(task.error and task.error.message, task.body) for task in listed] == [("it broke", b"")]
        tagged = await walk(store, TaskQuery(bare=True, tag="t"))
        assert [task.omitted for task in tagged] == [sizes[succeeds]]

    @pytest.mark.parametrize("look_at", [1, 3, 100])
    async def test_a_page_can_be_limited_by_what_is_looked_at(self, store: Storage, look_at: int) -> None:
        ids = await add(store, *(new_task(name="rare" if number in (1, 6) else "n") for number in range(8)))
        expected = [ids[6], ids[1]]
        assert await ids_of(store, name="rare", look_at=look_at) == expected
        assert await ids_of(store, name="rare", look_at=look_at, limit=1) == expected
        assert await ids_of(store, name="rare", look_at=look_at, queue="work") == expected
        assert await ids_of(store, name="rare", look_at=look_at, states=[TaskState.READY]) == expected
        assert await ids_of(store, look_at=look_at) == ids[::-1]
        page = await store.list_tasks(TaskQuery(look_at=look_at))
        assert [task.id for task in page] == ids[::-1][:look_at]

    # count_tasks

    async def test_tasks_are_counted_by_what_they_are(self, store: Storage) -> None:
        assert await store.count_tasks(TaskQuery()) == Count(0)
        await one_of_each_state(store)
        await add(store, *(new_task(tags=("t",), queue="other") for _ in range(3)))
        assert await store.count_tasks(TaskQuery()) == Count(9)
        assert await store.count_tasks(TaskQuery(queue="other")) == Count(3)
        assert await store.count_tasks(TaskQuery(states=[TaskState.FAILED, TaskState.SUCCEEDED])) == Count(2)
        assert await store.count_tasks(TaskQuery(states=[])) == Count(0)
        assert await store.count_tasks(TaskQuery(tag="t")) == Count(3)
        assert await store.count_tasks(TaskQuery(tag="t"), 3) == Count(3)
        assert await store.count_tasks(TaskQuery(tag="t"), 2) == Count(2, at_least=True)
        assert await store.count_tasks(TaskQuery(tag="t", states=[TaskState.FAILED]), 2) == Count(0)
        assert await store.count_tasks(TaskQuery(enqueued_before=await store.now() + timedelta(days=1))) == Count(9)
        some = await store.count_tasks(TaskQuery(name="nothing", look_at=2))
        assert some.number == 0

    # stats

    async def test_each_state_is_counted(self, store: Storage) -> None:
        await add(store, *(new_task() for _ in range(21)))
        for number, kind in enumerate(["succeeded", "failed", "cancelled", "retry later", "released"], start=1):
            await store.finish([outcome(kind, task) for task in await take(store, number)])
        await take(store, 4)
        (stats,) = await store.stats()
        assert (stats.queue, stats.paused) == ("work", False)
        assert dict(stats.counts) == {
            TaskState.BLOCKED: 0,
            TaskState.SCHEDULED: 4,
            TaskState.READY: 7,
            TaskState.RUNNING: 4,
            TaskState.SUCCEEDED: 1,
            TaskState.FAILED: 2,
            TaskState.CANCELLED: 3,
        }

    async def test_queues_come_by_name_and_only_those_with_tasks_or_paused(self, store: Storage) -> None:
        await add(store, *(new_task(queue=queue) for queue in ("b", "a", "gone", "deleted")))
        await store.pause("paused")
        await store.pause("resumed")
        await store.resume("resumed")
        await store.purge("gone")
        (task,) = await take(store, queue="deleted")
        await store.finish([outcome("succeeded", task)])
        await store.delete([task.id])
        stats = await store.stats()
        assert [(stat.queue, stat.paused) for stat in stats] == [("a", False), ("b", False), ("paused", True)]
        assert all(set(stat.counts) == set(TaskState) for stat in stats)
        assert not any(stats[2].counts.values())

    async def test_counts_follow_a_task_wherever_it_goes(self, store: Storage) -> None:
        ready, running, scheduled = TaskState.READY, TaskState.RUNNING, TaskState.SCHEDULED
        (task_id,) = await add(store, max_retries=1)
        assert await counts(store) == {ready: 1}
        (claimed,) = await take(store)
        assert await counts(store) == {running: 1}
        await store.finish([outcome("retry later", claimed)])
        assert await counts(store) == {scheduled: 1}
        await store.cancel([task_id])
        assert await counts(store) == {TaskState.CANCELLED: 1}
        await store.retry([task_id])
        assert await counts(store) == {ready: 1}
        for expected in (ready, TaskState.FAILED):
            await take_lapsed(store)
            assert await counts(store) == {running: 1}
            await store.recover(1)
            assert await counts(store) == {expected: 1}
        await store.delete([task_id])
        assert await store.stats() == []

    async def test_the_age_of_the_oldest_ready_task_is_told(self, store: Storage) -> None:
        async def oldest(expected: StoredTask | None) -> None:
            before = await store.now()
            (stats,) = await store.stats()
            after = await store.now()
            if expected is None:
                assert stats.oldest_ready is None
                return
            assert stats.oldest_ready is not None
            age, slack = timedelta(seconds=stats.oldest_ready), timedelta(milliseconds=2)
            assert before - expected.run_at - slack <= age <= after - expected.run_at + slack

        first, low, high = await add(store, new_task(priority=1), new_task(), new_task(priority=1, run_at=FAR))
        await later(store, SHORT)
        (middle,) = await add(store, priority=1)
        await oldest(await record(store, first))
        assert [task.id for task in await take(store)] == [first]
        await later(store, 0.02)
        await oldest(await record(store, low))
        assert [task.id for task in await take(store)] == [middle]
        await oldest(await record(store, low))
        (latest,) = await add(store, priority=-1)
        await store.cancel([low])
        await oldest(await record(store, latest))
        await take(store)
        await oldest(None)
        await store.delete([high])
        await oldest(None)

    async def test_a_store_that_can_tell_its_namespaces_names_them(self, store: Storage, stores: Stores) -> None:
        if type(store).namespaces is Storage.namespaces:
            return  # it says that it cannot tell
        capital = f"{stores.new_namespace()}-Shop"
        other = await stores.open(capital)
        await add(store, new_task())
        await add(other, new_task())

        # Its own: of others a store may leave some out, as a cluster does that keeps them on other nodes.
        assert parse_url(stores.url).namespace in await store.namespaces()
        assert capital in await other.namespaces()
