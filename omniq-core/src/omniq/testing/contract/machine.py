"""Does any sequence of operations to a store and to the model, and compares after each."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import hypothesis.strategies as st
from attrs import evolve
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from omniq.storage import Lease, Storage, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import (
    Cancelled,
    Failed,
    NewTask,
    Outcome,
    Progress,
    Released,
    Retry,
    StoredTask,
    Succeeded,
    TaskError,
    TaskState,
)
from omniq.testing.contract.scheduling import LONG_AGO
from omniq.testing.contract.steps import FAR, HELD, OUTCOMES, lapsed, new_schedule, new_task, outcome, passed, record
from omniq.testing.contract.stores import Stores
from omniq.testing.model import Model
from omniq.testing.waiting import await_until

__all__ = ["StorageMachine"]

R = TypeVar("R")

QUEUES = ("a", "b")

indexes = st.integers(0, 15)
queues = st.sampled_from(QUEUES)
workers = st.sampled_from(["w1", "w2"])
kinds = st.sampled_from(OUTCOMES)
orders = st.fixed_dictionaries(
    {
        "queue": st.sampled_from(["a", "a", "b"]),
        "priority": st.integers(-1, 1),
        "unique": st.sampled_from([None, None, None, "key 1", "key 2"]),
        "max_retries": st.integers(0, 2),
        "name": st.sampled_from(["n", "m"]),
        "tags": st.sampled_from([(), ("t",), ("t", "u")]),
    }
)
demands = st.one_of(
    st.fixed_dictionaries({"a": st.integers(1, 3)}),
    st.fixed_dictionaries({"b": st.integers(1, 9), "a": st.integers(0, 4)}),
    st.just({"a": 99, "b": 99}),
)
Order = Mapping[str, Any]
Method = TypeVar("Method", bound=Callable[..., None])

OPERATIONS: list[st.SearchStrategy[tuple[str, dict[str, Any]]]] = []


def operation(often: int = 1, **arguments: st.SearchStrategy[Any]) -> Callable[[Method], Method]:
    """Let the machine call a method of its own accord.

    One rule chooses among all operations. Were each a rule of its own, hypothesis would leave out most of them in each
    run, to see what the others do when left to themselves; but here all that is interesting lies in how they mix.

    :param often: how often, compared with others.
    :param arguments: what to call it with.
    """

    def add(method: Method) -> Method:
        OPERATIONS.extend([st.tuples(st.just(method.__name__), st.fixed_dictionaries(arguments))] * often)
        return method

    return add


class StorageMachine(RuleBasedStateMachine):
    """A store and the model of it.

    :param stores: opens storages on the store under test; each run takes an empty namespace.
    """

    patience: ClassVar[float] = 60.0

    def __init__(self, stores: Stores) -> None:
        super().__init__()
        self._stores = stores
        self.model = Model()
        self.known: list[str] = []
        self.claimed: list[StoredTask] = []
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

    def _new(self, order: Order, **more: Any) -> NewTask:
        task = new_task(**order, **more)
        self.known.append(task.id)
        return task

    def _pick(self, index: int) -> str:
        """Return the id of some task, or once in a while of none."""
        return new_id() if index == 15 else self.known[-1 - index % len(self.known)]

    def _held(self, indexes: Sequence[int]) -> list[StoredTask]:
        """Return some of the deliveries so far, late ones rather than early ones; many are stale."""
        return [self.claimed[-1 - index % min(len(self.claimed), 8)] for index in indexes if self.claimed]

    # From producer to worker and back

    @initialize(batch=st.lists(orders, min_size=4, max_size=8))
    def begin(self, batch: list[Order]) -> None:
        self._enqueue([self._new(order) for order in batch])

    def _enqueue(self, tasks: Sequence[NewTask], *, ready: bool = True) -> bool:
        self._step()
        answers = self._do(self.store.enqueue(tasks))
        assert answers == self.model.enqueue(tasks, ready=ready)
        return answers[0].created

    @operation(often=3, batch=st.lists(orders, min_size=1, max_size=4), old=st.none() | indexes, twice=st.booleans())
    def enqueue(self, batch: list[Order], old: int | None, twice: bool) -> None:
        repeated = None if old is None else self._pick(old)
        tasks = [self._new(order) for order in batch]
        if repeated in self.known:
            tasks.insert(1, evolve(tasks[0], id=repeated, body=b'"an id that was used before"'))
        if twice:
            tasks.append(tasks[0])
        self._enqueue(tasks)

    @operation(often=2, order=orders, soon=st.booleans())
    def enqueue_for_later(self, order: Order, soon: bool) -> None:
        task = self._new(order, run_at=timedelta(milliseconds=3) if soon else FAR)
        if self._enqueue([task], ready=False) and soon:
            self._do(self._until(task.id, "run_at"))
            self.model.comes_due(task.id)

    async def _until(self, task_id: str, moment: str) -> None:
        await passed(self.store, getattr(await record(self.store, task_id), moment))

    @operation(order=orders, by_claim=st.booleans())
    def enqueue_and_let_expire(self, order: Order, by_claim: bool) -> None:
        task = self._new(order, expires=timedelta(milliseconds=3))
        if not self._enqueue([task]):
            return
        self._do(self._until(task.id, "expires_at"))
        if by_claim and task.queue not in self.model.paused:
            self.model.cancel([task.id])
            self._claim({task.queue: 99}, "w1")
        else:
            # So many that nothing that has lapsed uses up the step.
            self.recover(len(self.model.lapsed) + 10)
            self.model.cancel([task.id])

    @operation(order=orders, kind=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def enqueue_and_let_be_pruned(self, order: Order, kind: str) -> None:
        queue = "in passing"
        task = self._new({**order, "queue": queue}, result_ttl=0.0)
        self._enqueue([task])
        for claimed in self._claim({queue: 1}, "w1"):
            self._finish([outcome(kind, claimed)])
            self._step()
            assert self._do(self.store.prune(1000)) <= 1
            self.model.delete([claimed.id])

    @operation(often=3, demand=demands, worker=workers, limit=st.sampled_from([None, None, 0, 1, 2, 3]))
    def claim(self, demand: Mapping[str, int], worker: str, limit: int | None) -> None:
        self._claim(demand, worker, limit=limit)

    @operation(often=2, demand=demands, worker=workers)
    def claim_and_fall_silent(self, demand: Mapping[str, int], worker: str) -> None:
        tasks = self._claim(demand, worker, lease=0.003)
        self._do(lapsed(self.store, tasks))
        for task in tasks:
            self.model.rows[task.id].lapsed = True

    def _claim(
        self, demand: Mapping[str, int], worker: str, *, lease: float = HELD, limit: int | None = None
    ) -> list[StoredTask]:
        tasks = self._do(self.store.claim(demand, worker=worker, lease=lease, limit=limit))
        expected = self.model.claim(demand, worker, limit)
        assert [task.id for task in tasks] == expected, "other tasks were claimed, or in another order"
        for task in tasks:
            assert self.model.rows[task.id].differences(task) == []
        self.claimed += tasks
        return tasks

    @operation(
        often=3,
        indexes=st.lists(indexes, min_size=1, max_size=4),
        kinds=st.lists(st.sampled_from(OUTCOMES), min_size=4),
    )
    def finish(self, indexes: list[int], kinds: list[str]) -> None:
        self._finish([outcome(kind, task) for kind, task in zip(kinds, self._held(indexes), strict=False)])

    @operation(kinds=st.lists(kinds, min_size=3, max_size=3))
    def finish_all(self, kinds: list[str]) -> None:
        self._finish([outcome(kinds[number % 3], task) for number, task in enumerate(self.claimed)])

    def _finish(self, outcomes: list[Outcome]) -> None:
        self._step()
        told_apart = [_told_apart(told, self.model.step, number) for number, told in enumerate(outcomes)]
        assert self._do(self.store.finish(told_apart)) == self.model.finish(told_apart)

    @operation(often=2, indexes=st.lists(indexes, min_size=1, max_size=5), worker=workers, done=st.integers(0, 9))
    def heartbeat(self, indexes: list[int], worker: str, done: int) -> None:
        leases = [Lease(task.id, task.delivery) for task in self._held(indexes)]
        assert self._do(self.store.heartbeat(worker, leases, HELD)) == self.model.heartbeat(leases)
        updates = {lease: Progress(done=done, total=9) for lease in leases[:1]}
        self._do(self.store.set_progress(updates))
        self.model.set_progress(updates)

    @operation(often=2, limit=st.sampled_from([1, 2, 100]))
    def recover(self, limit: int) -> None:
        lost = self.model.lapsed
        tasks = self._do(self.store.recover(limit))
        ids = [task.id for task in tasks]
        assert len(set(ids)) == len(ids) == min(limit, len(lost))
        assert lost.issuperset(ids), "a task was recovered though its lease holds"
        self.model.recover(ids)
        for task in tasks:
            assert self.model.rows[task.id].differences(task) == []

    # Control

    @operation(often=2, picks=st.lists(indexes, min_size=1, max_size=3))
    def cancel(self, picks: list[int]) -> None:
        self._on_tasks("cancel", list(dict.fromkeys(map(self._pick, picks))))

    @operation(often=2, picks=st.lists(indexes, min_size=1, max_size=3))
    def delete(self, picks: list[int]) -> None:
        self._on_tasks("delete", list(dict.fromkeys(map(self._pick, picks))))

    @operation(often=2, picks=st.lists(indexes, min_size=1, max_size=3))
    def run_now(self, picks: list[int]) -> None:
        # More likely those that can be. Of those of one step the store chooses the order: one call each.
        scheduled = [task_id for task_id, row in self.model.rows.items() if row.state is TaskState.SCHEDULED]
        for pick in picks:
            can_be = scheduled and pick < 12
            self._on_tasks("run_now", [scheduled[pick % len(scheduled)] if can_be else self._pick(pick)])

    @operation(often=2, picks=st.lists(indexes, min_size=1, max_size=3))
    def retry(self, picks: list[int]) -> None:
        # Which of two with one key is made ready is the store's choice: one call each. More likely those that can be.
        ended = [task_id for task_id, row in self.model.rows.items() if row.state.is_final]
        for pick in picks:
            self._on_tasks("retry", [ended[pick % len(ended)] if ended and pick < 12 else self._pick(pick)])

    def _on_tasks(self, what: str, ids: list[str]) -> None:
        self._step()
        operation: Callable[[list[str]], Coroutine[Any, Any, list[bool]]] = getattr(self.store, what)
        expected: Callable[[list[str]], list[bool]] = getattr(self.model, what)
        assert self._do(operation(ids)) == expected(ids)

    @operation(what=st.sampled_from(["pause", "resume", "resume"]), queue=queues)
    def switch(self, what: str, queue: str) -> None:
        operation: Callable[[str], Coroutine[Any, Any, bool]] = getattr(self.store, what)
        expected: Callable[[str], bool] = getattr(self.model, what)
        assert self._do(operation(queue)) == expected(queue)

    @operation(queue=queues, state=st.sampled_from([*TaskState, TaskState.SUCCEEDED, None]))
    def purge(self, queue: str, state: TaskState | None) -> None:
        # What is due may count as scheduled or as ready, so one of both cannot be purged alone.
        undecided = any(row.perhaps_scheduled for row in self.model.ready(queue))
        if not (undecided and state in (TaskState.READY, TaskState.SCHEDULED)):
            assert self._do(self.store.purge(queue, state)) == self.model.purge(queue, state)

    # Schedules

    @operation(schedule_id=st.sampled_from("st"), next_run=st.sampled_from([LONG_AGO, FAR, None]), paused=st.booleans())
    def put_schedule(self, schedule_id: str, next_run: Any, paused: bool) -> None:
        schedule = new_schedule(schedule_id, next_run=next_run, paused=paused)
        revision = self.model.revision(schedule_id)
        for expected in (revision + 1, revision, None):
            stored = self._do(self.store.put_schedule(schedule, expected))
            assert stored == self.model.put_schedule(schedule, expected, stored)

    @operation(schedule_id=st.sampled_from("st"), batch=st.lists(orders, max_size=2), deleted=st.integers(0, 3))
    def fire(self, schedule_id: str, batch: list[Order], deleted: int) -> None:
        revision = self.model.revision(schedule_id)
        for wrong_by in (1, 0, 0):
            self._step()
            schedule = new_schedule(schedule_id, next_run=FAR, last_run=LONG_AGO, revision=revision - wrong_by)
            tasks = [self._new(order) for order in batch]
            assert self._do(self.store.fire(schedule, tasks)) == self.model.fire(schedule, tasks)
        if not deleted:
            expected = self.model.schedules.pop(schedule_id, None) is not None
            assert self._do(self.store.delete_schedule(schedule_id)) == expected

    @rule(step=st.one_of(OPERATIONS))
    def do(self, step: tuple[str, dict[str, Any]]) -> None:
        name, arguments = step
        getattr(self, name)(**arguments)

    # What must hold after each step

    @invariant()
    def both_are_the_same(self) -> None:
        self._do(self._compare())

    async def _compare(self) -> None:
        await self._compare_records()
        await self._compare_counts()
        await self._compare_schedules()
        rows = sorted(self.model.rows.values(), key=lambda row: -row.sequence)
        if self.model.step % 3 == 2:
            ended = TaskState.FAILED, TaskState.CANCELLED
            expected = [row.order.id for row in rows if row.state in ended]
            await self._compare_pages(TaskQuery(states=ended, limit=2, bare=True), expected)
        elif self.model.step % 3:
            await self._compare_pages(TaskQuery(limit=4), [row.order.id for row in rows])
        else:
            rows = [row for row in rows if (row.order.queue, row.order.name) == ("a", "n") and "t" in row.order.tags]
            await self._compare_pages(TaskQuery(queue="a", name="n", tag="t", limit=2), [row.order.id for row in rows])

    async def _compare_records(self) -> None:
        for task_id, task in zip(self.known, await self.store.get(self.known), strict=True):
            row = self.model.rows.get(task_id)
            if row is None or task is None:
                assert task is None, f"{task_id} is still there"
                assert row is None, f"{task_id} is gone"
            else:
                assert row.differences(task) == [], task

    async def _compare_counts(self) -> None:
        stats = await self.store.stats()
        rows = self.model.rows.values()
        assert [stat.queue for stat in stats] == sorted({row.order.queue for row in rows} | self.model.paused)
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

    async def _compare_schedules(self) -> None:
        stored = sorted(self.model.schedules.values(), key=lambda schedule: schedule.id)
        assert await self.store.get_schedules() == stored
        due = [schedule for schedule in stored if schedule.next_run == LONG_AGO and not schedule.paused]
        assert sorted(await self.store.due_schedules(9), key=lambda schedule: schedule.id) == due

    async def _compare_pages(self, query: TaskQuery, expected: list[str]) -> None:
        ids: list[str] = []
        cursor: str | None = None
        while True:
            page = await self.store.list_tasks(query, cursor)
            ids += [task.id for task in page.tasks]
            cursor = page.cursor
            if cursor is None:
                break
            assert len(ids) <= len(expected), "the pages do not end"
        assert ids == expected


def _told_apart(told: Outcome, step: int, number: int) -> Outcome:
    """Return an outcome that no other one can be mistaken for."""
    match told:
        case Succeeded():
            return evolve(told, result=b"%d.%d" % (step, number))
        case Failed() | Retry():
            error = TaskError(type="ValueError", message=f"{step}.{number}")
            return evolve(told, error=error, attempt_log=f"log {step}.{number}")
        case Cancelled():
            return evolve(told, attempt_log=f"log {step}.{number}")
        case Released() if number % 2:
            return evolve(told, error=TaskError(type="UnknownTask", message=f"{step}.{number}"))
    return told
