"""Any sequence of operations, held against a model that is simple enough to be seen to be right."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any, ClassVar, TypeVar, cast

import hypothesis
import hypothesis.strategies as st
from attrs import evolve
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from omniq.ids import new_id
from omniq.storage import Lease, Storage, TaskQuery
from omniq.task import Failed, NewTask, Outcome, Progress, Retry, Succeeded, Task, TaskError, TaskState
from omniq.testing.contract.base import Contract
from omniq.testing.contract.scheduling import LONG_AGO
from omniq.testing.contract.steps import FAR, HELD, OUTCOMES, lapsed, new_schedule, new_task, outcome, passed, record
from omniq.testing.contract.stores import Stores
from omniq.testing.model import Model
from omniq.testing.waiting import await_until

__all__ = ["ModelContract"]

R = TypeVar("R")

QUEUES = ("a", "b")
WORKERS = ("w1", "w2")

indexes = st.integers(0, 11)
queues = st.sampled_from(QUEUES)
orders = st.fixed_dictionaries(
    {
        "queue": queues,
        "priority": st.integers(-1, 1),
        "unique": st.sampled_from([None, None, "key 1", "key 2"]),
        "max_retries": st.integers(0, 2),
        "name": st.sampled_from(["n", "m"]),
        "tags": st.sampled_from([(), ("t",), ("t", "u")]),
    }
)
schedule_ids = st.sampled_from(["s1", "s2"])
demands = st.one_of(
    st.fixed_dictionaries({"a": st.integers(0, 3), "b": st.integers(0, 3)}),
    st.fixed_dictionaries({"b": st.integers(1, 9)}),
    st.just({"a": 99}),
)


class StorageMachine(RuleBasedStateMachine):
    """Does to a store and to the model the same, and compares after each step.

    :param stores: opens storages on the store under test; each run takes an empty namespace.
    """

    patience: ClassVar[float] = 60.0

    def __init__(self, stores: Stores) -> None:
        super().__init__()
        self._stores = stores
        self._runs = 0
        self.model = Model()
        self.known: list[str] = []
        self.claimed: list[Task] = []
        self.store: Storage = self._do(stores.open(stores.new_namespace()))

    def teardown(self) -> None:
        self._do(self.store.close())

    def _do(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return self._stores.run(coroutine, self.patience)

    def _step(self) -> None:
        """Begin the next step: by the store's clock, too, later than the last, so that both agree what came first."""
        self.model.step += 1
        self._do(self._moment())

    async def _moment(self) -> None:
        moment = await self.store.now()

        async def has_moved() -> bool:
            return await self.store.now() > moment

        await await_until(has_moved, 10, "the store's clock to move")

    def _new(self, options: Mapping[str, Any], **more: Any) -> NewTask:
        task = new_task(**options, **more)
        self.known.append(task.id)
        return task

    def _pick(self, index: int) -> str:
        """Give the id of a task, more likely a late one; or of none."""
        return self.known[-1 - index] if index < len(self.known) else new_id()

    def _held(self, index: int) -> Task | None:
        return self.claimed[-1 - index] if index < len(self.claimed) else None

    # From producer to worker and back

    @rule(batch=st.lists(orders, min_size=1, max_size=4), old=st.none() | indexes, twice=st.booleans())
    def enqueue(self, batch: list[Mapping[str, Any]], old: int | None, twice: bool) -> None:
        self._step()
        repeated = None if old is None else self._pick(old)
        tasks = [self._new(options) for options in batch]
        if repeated in self.known:
            tasks.insert(1, evolve(tasks[0], id=repeated, payload=b'"an id that was used before"'))
        if twice:
            tasks.append(tasks[0])
        assert self._do(self.store.enqueue(tasks)) == self.model.enqueue(tasks)

    @rule(options=orders)
    def enqueue_for_later(self, options: Mapping[str, Any]) -> None:
        tasks = [self._new(options, run_at=FAR)]
        assert self._do(self.store.enqueue(tasks)) == self.model.enqueue(tasks, ready=False)

    @rule(options=orders)
    def enqueue_for_soon_and_wait(self, options: Mapping[str, Any]) -> None:
        self._step()
        task = self._new(options, run_at=timedelta(milliseconds=3))
        answers = self._do(self.store.enqueue([task]))
        assert answers == self.model.enqueue([task], ready=False)
        if answers[0].created:
            self._do(self._until_due(task.id))
            self.model.comes_due(task.id)

    async def _until_due(self, task_id: str) -> None:
        await passed(self.store, (await record(self.store, task_id)).run_at)

    @rule(options=orders, by_claim=st.booleans())
    def enqueue_and_let_expire(self, options: Mapping[str, Any], by_claim: bool) -> None:
        self._step()
        task = self._new(options, expires=timedelta(milliseconds=3))
        answers = self._do(self.store.enqueue([task]))
        assert answers == self.model.enqueue([task])
        if not answers[0].created:
            return
        self._do(self._until_expired(task.id))
        if by_claim and task.queue not in self.model.paused:
            self.model.cancel([task.id])
            self._claim({task.queue: 99}, "w1", None, HELD)
        else:
            # Nothing that has lapsed is to use up the step.
            self._recover(len(self.model.lapsed) + 10)
            self.model.cancel([task.id])

    async def _until_expired(self, task_id: str) -> None:
        await passed(self.store, (await record(self.store, task_id)).expires_at)

    @rule(demand=demands, worker=st.sampled_from(WORKERS), limit=st.none() | st.integers(0, 4))
    def claim(self, demand: Mapping[str, int], worker: str, limit: int | None) -> None:
        self._claim(demand, worker, limit, HELD)

    @rule(demand=demands, worker=st.sampled_from(WORKERS))
    def claim_and_fall_silent(self, demand: Mapping[str, int], worker: str) -> None:
        tasks = self._claim(demand, worker, None, 0.003)
        self._do(lapsed(self.store, tasks))
        for task in tasks:
            self.model.rows[task.id].lapsed = True

    def _claim(self, demand: Mapping[str, int], worker: str, limit: int | None, lease: float) -> list[Task]:
        tasks = self._do(self.store.claim(demand, worker=worker, lease=lease, limit=limit))
        expected = self.model.claim(demand, worker, limit)
        assert [task.id for task in tasks] == expected, "other tasks were claimed, or in another order"
        for task in tasks:
            assert self.model.rows[task.id].differences(task) == []
        self.claimed += tasks
        return tasks

    @rule(picks=st.lists(st.tuples(indexes, st.sampled_from(OUTCOMES)), min_size=1, max_size=4))
    @precondition(lambda self: self.claimed)
    def finish(self, picks: list[tuple[int, str]]) -> None:
        self._step()
        outcomes: list[Outcome] = []
        for index, kind in picks:
            task = self._held(index)
            if task is not None:
                outcomes.append(_told_apart(outcome(kind, task), self.model.step))
        assert self._do(self.store.finish(outcomes)) == self.model.finish(outcomes)

    @rule(options=orders, kind=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish_and_prune(self, options: Mapping[str, Any], kind: str) -> None:
        """Let a task whose result is not kept run and end, and be pruned."""
        queue = "in passing"
        task = self._new({**options, "queue": queue}, result_ttl=0.0)
        self._step()
        assert self._do(self.store.enqueue([task])) == self.model.enqueue([task])
        for claimed in self._claim({queue: 1}, "w1", None, HELD):
            outcomes = [outcome(kind, claimed)]
            assert self._do(self.store.finish(outcomes)) == self.model.finish(outcomes) == [True]
            self._step()
            assert self._do(self.store.prune(1000)) <= 1
            self.model.delete([claimed.id])

    @rule(picks=st.lists(indexes, max_size=5), worker=st.sampled_from(WORKERS))
    def heartbeat(self, picks: list[int], worker: str) -> None:
        held = [task for task in map(self._held, picks) if task is not None]
        leases = [Lease(task.id, task.delivery) for task in held]
        assert self._do(self.store.heartbeat(worker, leases, HELD)) == self.model.heartbeat(leases)

    @rule(limit=st.sampled_from([1, 2, 100]))
    def recover(self, limit: int) -> None:
        self._recover(limit)

    def _recover(self, limit: int) -> None:
        lost = self.model.lapsed
        tasks = self._do(self.store.recover(limit))
        ids = [task.id for task in tasks]
        assert len(set(ids)) == len(ids) == min(limit, len(lost))
        assert lost.issuperset(ids), "a task was recovered though its lease holds"
        self.model.recover(ids)
        for task in tasks:
            assert self.model.rows[task.id].differences(task) == []

    # Control

    @rule(picks=st.lists(indexes, max_size=3, unique=True))
    def cancel(self, picks: list[int]) -> None:
        self._on_tasks(picks, self.store.cancel, self.model.cancel)

    @rule(picks=st.lists(indexes, max_size=3, unique=True))
    def retry(self, picks: list[int]) -> None:
        # Which of two with one key is made ready is the store's choice: one call each.
        for pick in picks:
            self._on_tasks([pick], self.store.retry, self.model.retry)

    @rule(picks=st.lists(indexes, max_size=2, unique=True))
    def delete(self, picks: list[int]) -> None:
        self._on_tasks(picks, self.store.delete, self.model.delete)

    def _on_tasks(
        self,
        picks: list[int],
        operation: Callable[[list[str]], Coroutine[Any, Any, list[bool]]],
        expected: Callable[[list[str]], list[bool]],
    ) -> None:
        self._step()
        ids = [self._pick(index) for index in picks]
        assert self._do(operation(ids)) == expected(ids)

    @rule(queue=queues, state=st.none() | st.sampled_from(list(TaskState)), sure=st.integers(0, 3))
    def purge(self, queue: str, state: TaskState | None, sure: int) -> None:
        # A purge of everything ends every story, so it is rare. What is due may count as scheduled or as ready.
        undecided = any(row.perhaps_scheduled for row in self.model.ready(queue))
        if (state is None and sure) or (undecided and state in (TaskState.READY, TaskState.SCHEDULED)):
            return
        assert self._do(self.store.purge(queue, state)) == self.model.purge(queue, state)

    @rule(queue=queues)
    def pause(self, queue: str) -> None:
        assert self._do(self.store.pause(queue)) == self.model.pause(queue)

    @rule(queue=queues)
    def resume(self, queue: str) -> None:
        assert self._do(self.store.resume(queue)) == self.model.resume(queue)

    @rule(index=indexes, done=st.integers(0, 9))
    @precondition(lambda self: self.claimed)
    def set_progress(self, index: int, done: int) -> None:
        task = self._held(index)
        if task is not None:
            updates = {Lease(task.id, task.delivery): Progress(done=done, total=9)}
            self._do(self.store.set_progress(updates))
            self.model.set_progress(updates)

    # Schedules

    @rule(
        schedule_id=schedule_ids,
        due=st.booleans(),
        paused=st.booleans(),
        expected=st.none() | st.integers(0, 3),
    )
    def put_schedule(self, schedule_id: str, due: bool, paused: bool, expected: int | None) -> None:
        schedule = new_schedule(schedule_id, next_run=LONG_AGO if due else FAR, paused=paused)
        assert self._do(self.store.put_schedule(schedule, expected)) == self.model.put_schedule(schedule, expected)

    @rule(schedule_id=schedule_ids)
    def delete_schedule(self, schedule_id: str) -> None:
        expected = self.model.schedules.pop(schedule_id, None) is not None
        assert self._do(self.store.delete_schedule(schedule_id)) == expected

    @rule(schedule_id=schedule_ids, behind=st.sampled_from([0, 0, 0, 1]), batch=st.lists(orders, max_size=2))
    def fire(self, schedule_id: str, behind: int, batch: list[Mapping[str, Any]]) -> None:
        stored = self.model.schedules.get(schedule_id)
        if stored is None:
            return
        self._step()
        tasks = [self._new(options) for options in batch]
        schedule = evolve(stored, next_run=FAR, last_run=LONG_AGO, revision=stored.revision - behind)
        assert self._do(self.store.fire(schedule, tasks)) == self.model.fire(schedule, tasks)

    # What must hold after each step

    @invariant()
    def the_records_are_the_same(self) -> None:
        found = self._do(self.store.get(self.known))
        for task_id, task in zip(self.known, found, strict=True):
            row = self.model.rows.get(task_id)
            if row is None or task is None:
                assert task is None, f"{task_id} is still there"
                assert row is None, f"{task_id} is gone"
            else:
                assert row.differences(task) == [], task

    @invariant()
    def the_counts_are_the_same(self) -> None:
        stats = self._do(self.store.stats())
        rows = self.model.rows.values()
        names = {row.order.queue for row in rows} | self.model.paused
        assert [stat.queue for stat in stats] == sorted(names)
        for stat in stats:
            mine = [row for row in rows if row.order.queue == stat.queue]
            expected = {state: sum(row.state is state for row in mine) for state in TaskState}
            # What is due counts as scheduled or as ready.
            moved = stat.counts[TaskState.SCHEDULED] - expected[TaskState.SCHEDULED]
            assert 0 <= moved <= sum(row.perhaps_scheduled and row.state is TaskState.READY for row in mine)
            expected[TaskState.SCHEDULED] += moved
            expected[TaskState.READY] -= moved
            assert dict(stat.counts) == expected
            assert stat.paused is (stat.queue in self.model.paused)
            assert (stat.oldest_ready is not None) or not expected[TaskState.READY]

    @invariant()
    def the_pages_are_the_same(self) -> None:
        rows = sorted(self.model.rows.values(), key=lambda row: -row.sequence)
        self._runs += 1
        if self._runs % 3:
            query, wanted = TaskQuery(limit=4), [row.order.id for row in rows]
        else:
            query = TaskQuery(queue="a", name="n", tag="t", limit=2)
            wanted = [
                row.order.id
                for row in rows
                if (row.order.queue, row.order.name) == ("a", "n") and "t" in row.order.tags
            ]
        assert self._do(self._walk(query)) == wanted

    async def _walk(self, query: TaskQuery) -> list[str]:
        ids: list[str] = []
        cursor: str | None = None
        while True:
            page = await self.store.list_tasks(query, cursor)
            ids += [task.id for task in page.tasks]
            cursor = page.cursor
            if cursor is None:
                return ids
            assert len(ids) <= len(self.known), "the pages do not end"

    @invariant()
    def the_schedules_are_the_same(self) -> None:
        stored = sorted(self.model.schedules.values(), key=lambda schedule: schedule.id)
        assert self._do(self.store.get_schedules()) == stored
        due = [schedule for schedule in stored if schedule.next_run == LONG_AGO and not schedule.paused]
        found = self._do(self.store.due_schedules(9))
        assert sorted(found, key=lambda schedule: schedule.id) == due


def _told_apart(told: Outcome, step: int) -> Outcome:
    """Give an outcome that no earlier one can be mistaken for."""
    match told:
        case Succeeded():
            return evolve(told, result=b"%d" % step)
        case Failed() | Retry():
            return evolve(told, error=TaskError(type="ValueError", message=f"step {step}"))
    return told


class ModelContract(Contract):
    """The model."""

    def test_any_sequence_of_operations_does_what_the_model_does(self, stores: Stores) -> None:
        examples, steps = os.environ.get("OMNIQ_TESTING_EXAMPLES"), os.environ.get("OMNIQ_TESTING_STEPS")
        is_thorough = bool(examples or steps)
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        if is_thorough:
            # Minutes on a store that is not in memory: too long for everyday.
            phases.append(hypothesis.Phase.shrink)
        settings = hypothesis.settings(
            max_examples=int(examples or 40),
            stateful_step_count=int(steps or 30),
            deadline=None,
            derandomize=not is_thorough,
            phases=phases,
            database=None,
            print_blob=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        # Documented to take any factory, typed to take a class.
        run_state_machine_as_test(cast(Any, lambda: StorageMachine(stores)), settings=settings)
