"""What holds when several do the same at the same time, each in a thread of its own: one of them gets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

from attrs import evolve

from omniq.storage import Enqueued, Storage
from omniq.task import StoredTask, TaskState
from omniq.testing.contract.base import Contract
from omniq.testing.contract.scheduling import LONG_AGO, put
from omniq.testing.contract.steps import (
    FAR,
    HELD,
    add,
    counts,
    new_schedule,
    new_task,
    outcome,
    record,
    states,
    take,
    take_lapsed,
)
from omniq.testing.contract.stores import Stores

__all__ = ["RaceContract"]

RIVALS = 4
ROUNDS = 15


class RaceContract(Contract):
    """Races between threads."""

    async def test_two_claimers_never_share_a_task(self, stores: Stores) -> None:
        store = await stores.open()
        ids = await add(store, *(new_task(priority=number % 3) for number in range(300)))

        def drain(number: int) -> Callable[[Storage], Awaitable[list[StoredTask]]]:
            async def work(sibling: Storage) -> list[StoredTask]:
                mine: list[StoredTask] = []
                while claimed := await sibling.claim({"work": 1 + number}, worker=f"w{number}", lease=HELD):
                    mine += claimed
                    answers = await sibling.finish([outcome("succeeded", task) for task in claimed])
                    assert all(answers)
                return mine

            return work

        shares = await stores.in_threads(store, [drain(number) for number in range(RIVALS)])
        claimed = [task for share in shares for task in share]
        assert Counter(task.id for task in claimed) == Counter(ids)
        assert {task.delivery for task in claimed} == {1}
        assert await counts(store) == {TaskState.SUCCEEDED: 300}

    async def test_of_those_who_enqueue_one_key_one_stores_his_task(self, stores: Stores) -> None:
        store = await stores.open()

        async def enqueue(sibling: Storage) -> list[Enqueued]:
            return [(await sibling.enqueue([new_task(unique=f"key {round_}")]))[0] for round_ in range(ROUNDS)]

        for answers in zip(*await stores.in_threads(store, [enqueue] * RIVALS), strict=True):
            assert [answer.created for answer in answers].count(True) == 1
            assert len({answer.id for answer in answers}) == 1
        assert await counts(store) == {TaskState.READY: ROUNDS}

    async def test_of_those_who_enqueue_one_id_one_stores_it(self, stores: Stores) -> None:
        store = await stores.open()
        tasks = [new_task() for _ in range(ROUNDS)]

        async def enqueue(sibling: Storage) -> list[bool]:
            return [(await sibling.enqueue([task]))[0].created for task in tasks]

        for answers in zip(*await stores.in_threads(store, [enqueue] * RIVALS), strict=True):
            assert answers.count(True) == 1
        assert await counts(store) == {TaskState.READY: ROUNDS}

    async def test_of_those_who_finish_one_delivery_one_is_heard(self, stores: Stores) -> None:
        store = await stores.open()
        await add(store, *(new_task() for _ in range(ROUNDS)))
        claimed = await take(store, ROUNDS)

        def finish(kind: str) -> Callable[[Storage], Awaitable[list[bool]]]:
            async def work(sibling: Storage) -> list[bool]:
                return [(await sibling.finish([outcome(kind, task)]))[0] for task in claimed]

            return work

        kinds = ("succeeded", "failed", "cancelled", "retry later")
        recorded = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.SCHEDULED)
        answers = await stores.in_threads(store, [finish(kind) for kind in kinds])
        for task, heard in zip(claimed, zip(*answers, strict=True), strict=True):
            assert heard.count(True) == 1
            assert (await record(store, task.id)).state is recorded[heard.index(True)]

    async def test_of_those_who_recover_at_once_each_task_goes_to_one(self, stores: Stores) -> None:
        store = await stores.open()
        ids = await add(store, *(new_task() for _ in range(60)))
        await take_lapsed(store, 60)

        async def recover(sibling: Storage) -> list[str]:
            mine: list[str] = []
            while recovered := await sibling.recover(7):
                mine += [task.id for task in recovered]
            return mine

        shares = await stores.in_threads(store, [recover] * RIVALS)
        assert Counter(task_id for share in shares for task_id in share) == Counter(ids)
        assert await counts(store) == {TaskState.READY: 60}
        assert [task.id for task in await take(store, 99)] == ids

    async def test_a_late_finish_and_a_recovery_do_not_both_win(self, stores: Stores) -> None:
        store = await stores.open()
        await add(store, *(new_task() for _ in range(60)))
        claimed = await take_lapsed(store, 60)

        async def finish(sibling: Storage) -> set[str]:
            won = set()
            for task in claimed:
                if await sibling.finish([outcome("succeeded", task)]) == [True]:
                    won.add(task.id)
            return won

        async def recover(sibling: Storage) -> set[str]:
            won: set[str] = set()
            while recovered := await sibling.recover(1):
                won |= {task.id for task in recovered}
            return won

        finished, recovered = await stores.in_threads(store, [finish, recover])
        assert not finished & recovered
        assert len(finished) + len(recovered) == 60
        for task in claimed:
            expected = TaskState.SUCCEEDED if task.id in finished else TaskState.READY
            assert (await record(store, task.id)).state is expected

    async def test_a_claim_and_a_cancellation_do_not_both_win(self, stores: Stores) -> None:
        store = await stores.open()
        ids = await add(store, *(new_task() for _ in range(60)))

        async def claim(sibling: Storage) -> set[str]:
            won: set[str] = set()
            while claimed := await sibling.claim({"work": 1}, worker="w", lease=HELD):
                won |= {task.id for task in claimed}
            return won

        async def cancel(sibling: Storage) -> set[str]:
            assert all([(await sibling.cancel([task_id]))[0] for task_id in reversed(ids)])
            return set()

        claimed, _ = await stores.in_threads(store, [claim, cancel])
        for task_id in ids:
            task = await record(store, task_id)
            assert task.state is (TaskState.RUNNING if task_id in claimed else TaskState.CANCELLED)
            assert task.delivery == (task_id in claimed)
        assert sum((await counts(store)).values()) == 60

    async def test_of_those_who_fire_one_tick_one_succeeds_and_his_tasks_alone_are_stored(self, stores: Stores) -> None:
        store = await stores.open()
        schedules = [await put(store, f"schedule {number:02}", next_run=LONG_AGO) for number in range(ROUNDS)]

        async def fire(sibling: Storage) -> list[str | None]:
            fired: list[str | None] = []
            for schedule in schedules:
                task = new_task()
                won = await sibling.fire(evolve(schedule, next_run=FAR, last_task=task.id), [task])
                fired.append(None if won is None else task.id)
            return fired

        winners = []
        for tasks in zip(*await stores.in_threads(store, [fire] * RIVALS), strict=True):
            (winner,) = [task for task in tasks if task is not None]
            winners.append(winner)
        stored = await store.get_schedules()
        assert [schedule.last_task for schedule in stored] == winners
        assert [schedule.revision for schedule in stored] == [schedule.revision + 1 for schedule in schedules]
        assert await states(store, winners) == [TaskState.READY] * ROUNDS
        assert await counts(store) == {TaskState.READY: ROUNDS}

    async def test_of_those_who_make_ready_tasks_of_one_key_one_succeeds(self, stores: Stores) -> None:
        store = await stores.open()
        ids: list[str] = []
        for _ in range(RIVALS):
            ids += await add(store, unique="key")
            await store.cancel(ids)

        def retry(task_id: str) -> Callable[[Storage], Awaitable[list[bool]]]:
            return lambda sibling: sibling.retry([task_id])

        answers = await stores.in_threads(store, [retry(task_id) for task_id in ids])
        assert answers.count([True]) == 1
        assert await counts(store) == {TaskState.READY: 1, TaskState.CANCELLED: RIVALS - 1}

    async def test_of_those_who_change_a_schedule_at_one_revision_one_succeeds(self, stores: Stores) -> None:
        store = await stores.open()
        schedule = await put(store)

        async def change(sibling: Storage) -> int:
            won = 0
            for revision in range(schedule.revision, schedule.revision + ROUNDS):
                won += await sibling.put_schedule(schedule, expected_revision=revision) is not None
            return won

        wins = await stores.in_threads(store, [change] * RIVALS)
        (stored,) = await store.get_schedules()
        assert stored.revision == schedule.revision + sum(wins)

    async def test_those_who_put_and_delete_a_schedule_at_once_never_see_a_revision_twice(self, stores: Stores) -> None:
        store = await stores.open()

        async def put_and_delete(sibling: Storage) -> list[int]:
            revisions = []
            for _ in range(ROUNDS):
                stored = await sibling.put_schedule(new_schedule("s"))
                assert stored is not None
                revisions.append(stored.revision)
                await sibling.delete_schedule("s")
            return revisions

        seen = [one for each in await stores.in_threads(store, [put_and_delete] * RIVALS) for one in each]
        assert len(set(seen)) == len(seen) == RIVALS * ROUNDS

    async def test_nothing_is_lost_when_all_happens_at_once(self, stores: Stores) -> None:
        store = await stores.open()

        async def produce(sibling: Storage) -> list[str]:
            ids = []
            for size in (1, 2, 30, 3, 40, 1) * 2:
                ids += await add(sibling, *(new_task(priority=size) for _ in range(size)))
            return ids

        async def work(sibling: Storage) -> list[str]:
            done: list[str] = []
            for _ in range(60):
                claimed = await take(sibling, 9)
                kinds = ["succeeded" if task.delivery > 1 else "retry" for task in claimed]
                answers = await sibling.finish([outcome(*pair) for pair in zip(kinds, claimed, strict=True)])
                assert all(answers)
                done += [task.id for task in claimed if task.delivery > 1]
            return done

        *produced, first, second = await stores.in_threads(store, [produce, produce, work, work])
        ids = [task_id for share in produced for task_id in share]
        done = first + second + await work(store)
        assert Counter(done) <= Counter(ids)
        found = Counter(await states(store, ids))
        assert found == Counter(await counts(store))
        assert found[TaskState.SUCCEEDED] == len(done)
        assert None not in found
