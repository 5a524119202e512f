"""What schedules promise: kept as they are, and fired by one of any number, with their tasks or not at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve

from omniq.schedule import Misfire, Overlap, Schedule
from omniq.storage import Enqueued, Storage
from omniq.storage.body import Header, as_task, dump_header, join_body, make_content
from omniq.storage.ids import new_id
from omniq.task import TaskState
from omniq.testing.contract.base import Contract
from omniq.testing.contract.steps import (
    FAR,
    SHORT,
    add,
    counts,
    later,
    new_schedule,
    new_task,
    record,
    states,
    take,
)
from omniq.testing.contract.stores import Stores

__all__ = ["ScheduleContract"]

LONG_AGO = datetime(2001, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)


async def put(store: Storage, schedule_id: str = "s", **options: object) -> Schedule:
    """Store a schedule, and give it as it is stored."""
    stored = await store.put_schedule(new_schedule(schedule_id, **options))
    assert stored is not None
    return stored


class ScheduleContract(Contract):
    """Schedules."""

    async def test_the_headers_of_a_schedules_task_come_to_each_of_its_runs(self, store: Storage) -> None:
        header = Header(headers={"request-id": "größe ☂"})
        body = join_body(make_content(dump_header(header), b"[[],{}]"))
        schedule = await put(store, task=new_task(body=body))
        for _ in range(2):
            run = evolve(schedule.task, id=new_id())
            stored = await store.fire(schedule, [run])
            assert stored is not None
            assert as_task(await record(store, run.id)).headers == header.headers
            (schedule,) = await store.get_schedules([schedule.id])

    async def test_a_schedule_comes_back_as_it_was_stored(self, store: Storage) -> None:
        schedule = Schedule(
            id="every monday, „größe“ / * > .",
            task=new_task(
                body=bytes(range(256)),
                queue="größe",
                priority=5,
                run_at=timedelta(seconds=1, microseconds=1),
                expires=FAR,
                unique="key",
                tags=("a", "b"),
                max_retries=0,
                result_ttl=0.5,
            ),
            trigger='["cron", {"text": "0 9 * * mon", "tz": "Europe/Berlin"}] ☂',
            next_run=FAR,
            misfire=Misfire.SKIP,
            overlap=Overlap.SKIP,
            jitter=2.5,
            start=LONG_AGO,
            end=FAR + timedelta(microseconds=1),
            paused=True,
            declared=True,
            apps=("shop.tasks:queue", "größe"),
            last_run=LONG_AGO,
            last_task=new_id(),
            live_tasks=(new_id(), new_id()),
        )
        stored = await store.put_schedule(schedule)
        assert stored is not None
        assert stored == evolve(schedule, revision=stored.revision)
        assert stored.revision > 0
        assert await store.get_schedules() == [stored]

    async def test_a_schedule_that_leaves_all_to_the_defaults_comes_back_with_them(self, store: Storage) -> None:
        schedule = new_schedule("s", next_run=None)
        await store.put_schedule(schedule)
        (stored,) = await store.get_schedules(["s"])
        assert stored == evolve(schedule, revision=stored.revision)

    @pytest.mark.parametrize("when", [None, timedelta(hours=1), LONG_AGO])
    async def test_the_task_of_a_schedule_is_kept_as_an_order_not_as_a_date(
        self, store: Storage, when: timedelta | datetime | None
    ) -> None:
        task = new_task(run_at=when, expires=when)
        await put(store, task=task)
        (stored,) = await store.get_schedules()
        assert stored.task == task
        assert await store.stats() == []

    async def test_each_change_raises_the_revision_by_one(self, store: Storage) -> None:
        first = (await put(store, revision=2**40)).revision
        assert 0 < first < 2**40, "the given revision plays no part"
        assert (await put(store, trigger="other", revision=0)).revision == first + 1
        stored = await put(store, trigger="third")
        assert (stored.revision, stored.trigger) == (first + 2, "third")
        assert await store.get_schedules() == [stored]

    async def test_a_change_that_expects_another_revision_is_refused(self, store: Storage) -> None:
        schedule = new_schedule("s")
        for wrong in (1, 99):
            assert await store.put_schedule(schedule, expected_revision=wrong) is None
        assert await store.get_schedules() == []
        stored = await store.put_schedule(schedule, expected_revision=0)
        assert stored is not None
        first = stored.revision
        for wrong in (0, first - 1, first + 1, first + 99):
            assert await store.put_schedule(evolve(schedule, trigger="wrong"), expected_revision=wrong) is None
        assert await store.get_schedules() == [stored]
        changed = await store.put_schedule(evolve(stored, trigger="right"), expected_revision=first)
        assert changed == evolve(stored, trigger="right", revision=first + 1)

    async def test_schedules_come_by_id(self, store: Storage) -> None:
        stored = {schedule_id: await put(store, schedule_id) for schedule_id in ("b", "c", "a")}
        assert await store.get_schedules() == [stored["a"], stored["b"], stored["c"]]
        assert await store.get_schedules(["c", "unknown", "a"]) == [stored["c"], stored["a"]]
        assert await store.get_schedules([]) == []
        assert await store.get_schedules(["unknown"]) == []

    async def test_a_deleted_schedule_is_gone_and_its_tasks_stay(self, store: Storage) -> None:
        schedule = await put(store)
        task = new_task()
        await store.fire(schedule, [task])
        assert await store.delete_schedule("s") is True
        assert await store.delete_schedule("s") is False
        assert await store.get_schedules() == []
        assert await states(store, [task.id]) == [TaskState.READY]

    # Due

    async def test_due_schedules_come_with_the_earliest_first(self, store: Storage) -> None:
        late = await put(store, "a", next_run=LONG_AGO + timedelta(microseconds=2))
        early = await put(store, "c", next_run=LONG_AGO)
        between = await put(store, "b", next_run=LONG_AGO + timedelta(microseconds=1))
        assert await store.due_schedules(10) == [early, between, late]
        assert await store.due_schedules(2) == [early, between]

    async def test_paused_future_and_spent_schedules_are_not_due(self, store: Storage) -> None:
        await put(store, "paused", next_run=LONG_AGO, paused=True)
        await put(store, "future")
        await put(store, "spent", next_run=None)
        assert await store.due_schedules(10) == []

    async def test_a_schedule_is_due_once_its_time_has_come(self, store: Storage) -> None:
        schedule = await put(store, next_run=await store.now() + timedelta(seconds=SHORT))
        await later(store, SHORT)
        assert await store.due_schedules(10) == [schedule]
        assert await store.due_schedules(10) == [schedule], "to look changes nothing"

    async def test_the_latest_change_decides_whether_a_schedule_is_due(self, store: Storage) -> None:
        schedule = await put(store, next_run=LONG_AGO)
        paused = await put(store, next_run=LONG_AGO, paused=True)
        assert await store.due_schedules(10) == []
        await store.put_schedule(evolve(paused, paused=False))
        assert [due.revision for due in await store.due_schedules(10)] == [paused.revision + 1]
        await store.put_schedule(evolve(schedule, next_run=FAR))
        assert await store.due_schedules(10) == []
        await put(store, next_run=LONG_AGO)
        await store.delete_schedule("s")
        assert await store.due_schedules(10) == []

    # Fire

    async def test_firing_stores_the_schedule_and_its_tasks(self, store: Storage) -> None:
        schedule = await put(store, next_run=LONG_AGO)
        tasks = [new_task(body=b"1"), new_task(run_at=FAR)]
        fired = evolve(schedule, next_run=FAR, last_run=LONG_AGO, last_task=tasks[0].id)
        assert await store.fire(fired, tasks) == [Enqueued(task.id, True) for task in tasks]
        assert await store.get_schedules() == [evolve(fired, revision=schedule.revision + 1)]
        assert await store.due_schedules(10) == []
        assert await states(store, [task.id for task in tasks]) == [TaskState.READY, TaskState.SCHEDULED]
        (claimed,) = await take(store, 9)
        assert (claimed.id, claimed.body) == (tasks[0].id, b"1")

    @pytest.mark.parametrize("where", ["queue", "name", "unique"])
    async def test_a_run_of_which_the_store_cannot_hold_a_task_leaves_the_schedule_as_it_is(
        self, store: Storage, where: str
    ) -> None:
        schedule = await put(store, next_run=LONG_AGO)
        good, odd = new_task(), new_task(**{where: "a\0\ud800"})
        fired = evolve(schedule, next_run=FAR)
        try:
            await store.fire(fired, [good, odd])
        except ValueError:
            assert await store.get_schedules() == [schedule]
            assert await states(store, [good.id, odd.id]) == [None, None]
        else:
            assert await states(store, [good.id, odd.id]) == [TaskState.READY] * 2
            fired = (await store.get_schedules())[0]
        assert await store.fire(fired, [new_task()]) is not None, "the store cannot be used any more"

    async def test_firing_without_tasks_advances_the_schedule(self, store: Storage) -> None:
        schedule = await put(store, next_run=LONG_AGO)
        assert await store.fire(evolve(schedule, next_run=None), []) == []
        (stored,) = await store.get_schedules()
        assert (stored.next_run, stored.revision) == (None, schedule.revision + 1)
        assert await store.stats() == []

    async def test_a_tick_fires_once(self, store: Storage) -> None:
        schedule = await put(store, next_run=LONG_AGO)
        first, second = new_task(), new_task()
        assert await store.fire(evolve(schedule, next_run=FAR), [first]) is not None
        assert await store.fire(evolve(schedule, next_run=FAR, last_task=second.id), [second]) is None
        assert await states(store, [first.id, second.id]) == [TaskState.READY, None]
        (stored,) = await store.get_schedules()
        assert (stored.revision, stored.last_task) == (schedule.revision + 1, None)

    async def test_a_schedule_that_was_changed_since_it_was_read_is_not_fired(self, store: Storage) -> None:
        schedule = await put(store, next_run=LONG_AGO)
        changed = await put(store, next_run=FAR, trigger="changed")
        assert await store.fire(schedule, [new_task()]) is None
        assert await store.get_schedules() == [changed]
        assert await store.stats() == []

    async def test_a_schedule_that_is_gone_is_not_fired_and_does_not_come_back(self, store: Storage) -> None:
        schedule = await put(store, next_run=LONG_AGO)
        await store.delete_schedule("s")
        assert await store.fire(schedule, [new_task()]) is None
        assert await store.fire(evolve(schedule, revision=0), [new_task()]) is None
        assert await store.get_schedules() == []
        assert await store.stats() == []

    @pytest.mark.parametrize("changes", [0, 1, 3])
    async def test_a_call_with_the_revision_of_a_schedule_that_was_deleted_and_put_anew_changes_nothing(
        self, store: Storage, changes: int
    ) -> None:
        read = [await put(store, next_run=LONG_AGO, trigger="old") for _ in range(1 + changes)]
        await store.delete_schedule("s")
        other = await put(store, "other")
        anew = await put(store, next_run=LONG_AGO, trigger="new")
        assert anew.revision > read[-1].revision
        for _ in range(changes + 2):
            for old in read:
                assert await store.fire(evolve(old, next_run=FAR), [new_task()]) is None
                assert await store.put_schedule(old, expected_revision=old.revision) is None
            assert await store.get_schedules() == [other, anew]
            anew = await put(store, next_run=LONG_AGO, trigger="new")
        assert await store.stats() == []

    async def test_a_schedule_that_is_put_and_deleted_again_and_again_never_has_a_revision_twice(
        self, store: Storage
    ) -> None:
        seen = []
        for changes in (3, 1, 0, 2, 0):
            stored = await store.put_schedule(new_schedule("s"), expected_revision=0)
            assert stored is not None
            seen.append(stored.revision)
            for _ in range(changes):
                stored = await store.put_schedule(stored, expected_revision=stored.revision)
                assert stored is not None
                seen.append(stored.revision)
            assert await store.delete_schedule("s") is True
        assert seen == sorted(set(seen))

    async def test_the_tasks_of_a_run_are_enqueued_as_any_other(self, store: Storage) -> None:
        (holder,) = await add(store, unique="key")
        schedule = await put(store, next_run=LONG_AGO)
        rival, again, free, twin = (
            new_task(unique="key"),
            new_task(id=holder),
            new_task(unique="b"),
            new_task(unique="b"),
        )
        assert await store.fire(evolve(schedule, next_run=FAR), [rival, again, free, twin]) == [
            Enqueued(holder, False),
            Enqueued(holder, False),
            Enqueued(free.id, True),
            Enqueued(free.id, False),
        ]
        assert [stored.next_run for stored in await store.get_schedules()] == [FAR]
        assert await states(store, [holder, rival.id, free.id, twin.id]) == [
            TaskState.READY,
            None,
            TaskState.READY,
            None,
        ]
        await store.cancel([free.id])
        assert await counts(store) == {TaskState.READY: 1, TaskState.CANCELLED: 1}
        assert (await record(store, holder)).unique == "key"

    async def test_schedules_are_shared(self, stores: Stores) -> None:
        store, other = await stores.open(), await stores.open()
        schedule = await put(store, next_run=LONG_AGO)
        assert await other.due_schedules(1) == [schedule]
        assert await other.fire(evolve(schedule, next_run=FAR), []) == []
        assert await store.fire(evolve(schedule, next_run=FAR), []) is None
        assert await store.delete_schedule("s") is True
        assert await other.get_schedules() == []
