"""What holds where a record of the store has been damaged: it harms nothing but itself.

A store's tests say how one record is read and written behind the storage's back; the damages are made up here. Many
records are damaged at once, each in another way, between others that are not: these must all run, each call must
answer, and what cannot be read must be named by ``check`` and go when it is deleted.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias

import pytest
from attrs import evolve

from omniq.flow import NewFlow, NewGate
from omniq.limit import Limit, Scope, UnreadableLimit
from omniq.storage import Lease, LeaseState, Storage, TaskQuery
from omniq.storage.corrupt_records import is_corrupt
from omniq.storage.ids import new_id
from omniq.storage.validation import check_schedule, check_task, check_worker
from omniq.task import Feed, NewTask, Progress, StoredTask, TaskState
from omniq.testing.contract.base import Contract, needs_fixtures, patient, with_flows, with_limits
from omniq.testing.contract.flow_driver import settled
from omniq.testing.contract.scheduling import LONG_AGO
from omniq.testing.contract.steps import (
    FAR,
    HELD,
    OUTCOMES,
    PROMPT,
    add,
    lapsed,
    later,
    new_schedule,
    new_task,
    outcome,
    record,
    take,
)
from omniq.testing.contract.stores import Stores
from omniq.testing.contract.waiting import TEN_MINUTES, waiting

__all__ = ["Spoil", "SpoilContract", "Value", "damages"]

Value: TypeAlias = bytes | str | int | float | datetime | list[Any] | None
"""What can stand in one place of a record. ``float("inf")`` stands for a database's infinite time, too."""


class Spoil(Protocol):
    """How a store's records are read and written by a program that knows the store, but not the storage.

    Called on threads of their own while storages are open; what it writes must be what they see. A record is made up of
    one or more places: the columns of a row, the fields of a hash, keys, messages, files.

    ``kind`` is one of: ``task`` (the record of a task, with the entries by which it is found, such as its place among
    the ready ones), ``result`` (of a task that succeeded), ``schedule``, ``worker``, ``limit`` (by their ids),
    ``queue`` (what is stored of a queue besides its tasks, such as counters), ``pause`` (of a queue), ``unique`` (a
    key).
    """

    def read(self, kind: str, name: str) -> Mapping[str, Value]:
        """Return what stands in each place of a record, by the place's name; empty if the store has no such record.

        Leave out what is no part of the record but of the store's structure (a row's primary key).
        """

    def write(self, kind: str, name: str, place: str, value: Value) -> bool:
        """Write something else there; return False if the store's own rules do not let anybody write that."""


# What stands for bytes or text that are no longer what they were.
_TORN: tuple[bytes, ...] = (
    b"",
    b"\xff" * 60,
    b"\0" * 9,
    b"x\x1b]0;title\x07",
    b"[" * 100_000,
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 400,
    b'"\\ud800"',
    b"a long text " * 2000,
)
_LEAVES: tuple[object, ...] = (None, -1, 2**31 - 1, 10**30, math.inf, math.nan, "\ud800", "x\0", [], {"a": {}}, True)
"""What takes the place of one value within JSON."""
_INTEGERS: tuple[Value, ...] = (-1, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), math.inf, "x", b"\xff", None)
_FLOATS: tuple[Value, ...] = (math.nan, math.inf, -math.inf, -1.0, 1e300, "x", None)
_TIMES: tuple[Value, ...] = (math.inf, -math.inf, datetime.max.replace(tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC), None)
_UNSET: tuple[Value, ...] = ("x", "{", "\x1b[2J", b"\xff\xfe", -1, 2**63 - 1, math.inf)
_LISTS: tuple[Value, ...] = ([None], [["a"], ["b"]], ["\x1b[2J"], None)


def damages(value: Value) -> Iterator[Value]:
    """Return what a value may have become: of a wrong type, out of range, cut short, altered."""
    if isinstance(value, bytes):
        yield from _torn(value)
    elif isinstance(value, str):
        for torn in _torn(value.encode(errors="surrogatepass")):
            yield torn.decode(errors="surrogateescape")
        yield from (None, -1, b"\xff\xfe")
    elif isinstance(value, datetime):
        yield from _TIMES
    elif isinstance(value, list):
        yield from _LISTS
    else:
        yield from _UNSET if value is None else _FLOATS if isinstance(value, float) else _INTEGERS


def _torn(data: bytes) -> Iterator[bytes]:
    yield from _TORN
    if data:
        yield data[: len(data) // 2]
        yield data[:-1]
        yield data + data
        for place in {0, len(data) // 3, len(data) // 2, len(data) - 1}:
            yield data[:place] + bytes([data[place] ^ 0x80]) + data[place + 1 :]
            yield data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :]
    for begin, end, stored in _json_parts(data):
        for changed in _changed(stored):
            yield data[:begin] + json.dumps(changed).encode() + data[end:]


def _json_parts(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Return each line that is JSON, with where it begins and ends."""
    begin = 0
    for line in data.split(b"\n"):
        try:
            stored = json.loads(line)
        except (ValueError, RecursionError):
            stored = None
        if isinstance(stored, list | dict):
            yield begin, begin + len(line), stored
        begin += len(line) + 1


def _changed(value: Any, depth: int = 0) -> Iterator[Any]:
    """Return a JSON value with each of its leaves changed in each way."""
    if not isinstance(value, list | dict) or not value or depth > 3:
        yield from _LEAVES
        return
    names = list(value) if isinstance(value, dict) else range(len(value))
    for name in names:
        for changed in _changed(value[name], depth + 1):
            copy = value.copy()
            copy[name] = changed
            yield copy
    if isinstance(value, dict):
        for name in names:
            yield {other: value[other] for other in value if other != name}


class SpoilContract(Contract):
    """Records that cannot be read. Asked where a fixture of the class says how to damage one."""

    @pytest.fixture
    def spoil(self) -> Spoil | None:
        """Return what reads and writes single records, see :class:`Spoil`; None: the tests are not asked."""
        return None

    @pytest.fixture
    def most_damages(self) -> int:
        """Return how many records of a kind a test damages at most; fewer are evenly taken from all damages."""
        return 1000

    async def _plan(self, spoil: Spoil, kind: str, name: str, most: int) -> list[tuple[str, Value]]:
        """Return the damages to a record that is there: places, and what to write to each.

        :param most: how many at most, taken evenly from all.
        """
        places = await asyncio.to_thread(spoil.read, kind, name)
        found = [(place, damage) for place, value in places.items() for damage in damages(value)]
        if not found:
            self.not_asked(f"it keeps no record of the kind {kind!r}")
        step = max(1.0, len(found) / most)
        return [found[int(number * step)] for number in range(int(len(found) / step))]

    async def _spoiled(
        self, spoil: Spoil, kind: str, names: Sequence[str], plan: Sequence[tuple[str, Value]]
    ) -> dict[str, str]:
        """Damage records, each in another way; return how, by their names, without those that cannot be damaged so."""

        def write() -> dict[str, str]:
            done = {}
            for name, (place, value) in zip(names, plan, strict=True):
                if spoil.write(kind, name, place, value):
                    done[name] = f"{place} = {value!r:.60}"
            return done

        return await asyncio.to_thread(write)

    async def test_of_a_store_in_which_all_can_be_read_there_is_nothing_to_say(self, store: Storage) -> None:
        await add(store, *(_full_task() for _ in OUTCOMES))
        claimed = await take(store, len(OUTCOMES))
        await store.finish([outcome(kind, task) for kind, task in zip(OUTCOMES, claimed, strict=True)])
        await add(store, new_task(), new_task(run_at=FAR))
        await store.set_progress({Lease(task.id, task.delivery): Progress(done=1) for task in await take(store)})
        await store.heartbeat("w", [], HELD, "about it")
        await store.put_schedule(_due("a schedule"))
        await store.pause("work")
        assert await store.check() == []

    # Tasks

    @needs_fixtures("spoil")
    async def test_ready_tasks_run_beside_those_that_cannot_be_read(
        self, stores: Stores, store: Storage, spoil: Spoil, most_damages: int
    ) -> None:
        (probe,) = await add(store, _full_task())
        plan = await self._plan(spoil, "task", probe, most_damages)
        if not plan:
            return
        await store.delete([probe])
        tasks = [_full_task() for _ in plan]
        good = [new_task(body=b"good %d" % number) for number in range(len(plan) // 4 + 10)]
        ids = await add(store, *_mixed(tasks, good))
        how = await self._spoiled(spoil, "task", [task.id for task in tasks], plan)
        other = await stores.open()
        await self._answers(other)
        await other.wait_for_work(["work"], 0.05)
        claimed = {task.id: task for task in await _claim_all(other, len(ids))}
        assert {task.id for task in good} <= claimed.keys(), "tasks that are not damaged were not claimed"
        assert all(claimed[task.id].body == task.body for task in good)
        running = (await other.list_tasks(TaskQuery(states=[TaskState.RUNNING], limit=10_000))).tasks
        left = [task.id for task in running if not is_corrupt(task) and task.id not in claimed]
        assert not left, f"a lease on what was not returned: {[how.get(one, one) for one in left]}"
        await other.set_progress({Lease(task.id, 1): Progress(done=1) for task in good})
        leases = [Lease(task.id, claimed[task.id].delivery) for task in good]
        assert await other.heartbeat("w", leases, HELD) == [LeaseState.HELD] * len(good)
        assert await other.finish([outcome("succeeded", claimed[task.id]) for task in good]) == [True] * len(good)
        await other.finish([outcome("failed", claimed[name]) for name in how if name in claimed])
        await self._answers(other)
        await self._shown_and_removed(other, how, [task.id for task in good])

    @needs_fixtures("spoil")
    async def test_running_tasks_are_recovered_beside_those_that_cannot_be_read(
        self, stores: Stores, store: Storage, spoil: Spoil, most_damages: int
    ) -> None:
        (probe,) = await add(store, _full_task())
        await take(store)
        plan = await self._plan(spoil, "task", probe, most_damages)
        if not plan:
            return
        await store.cancel([probe])
        tasks = [_full_task(max_retries=0) for _ in plan]
        good = [new_task(max_retries=3) for _ in range(20)]
        await add(store, *_mixed(tasks, good))
        claimed = {task.id: task for task in await take(store, len(tasks) + len(good), lease=0.2)}
        finishing, lapsing = good[::2], good[1::2]
        how = await self._spoiled(spoil, "task", [task.id for task in tasks], plan)
        await lapsed(store, [claimed[task.id] for task in good])
        finished = [outcome("succeeded", claimed[task.id]) for task in finishing]
        assert await store.finish(finished) == [True] * len(finishing)
        await store.heartbeat("w", [Lease(name, 1) for name in how], 0.05)
        await later(store, 0.06)
        recovered = await self._recover_all(store)
        assert {task.id for task in lapsing} <= recovered
        again = {task.id for task in await _claim_all(store, len(claimed) + 1)}
        assert {task.id for task in lapsing} <= again
        await self._answers(await stores.open())
        await self._shown_and_removed(store, how, [task.id for task in finishing])

    @needs_fixtures("spoil")
    @pytest.mark.parametrize("kind", ["task", "result"])
    async def test_results_are_kept_beside_those_that_cannot_be_read(
        self, stores: Stores, store: Storage, spoil: Spoil, kind: str, most_damages: int
    ) -> None:
        (probe,) = await add(store, _full_task())
        await store.finish([outcome("succeeded", task) for task in await take(store)])
        plan = await self._plan(spoil, kind, probe, most_damages)
        if not plan:
            return
        tasks = [_full_task() for _ in plan]
        good = [new_task() for _ in range(20)]
        ids = await add(store, *_mixed(tasks, good))
        claimed = {task.id: task for task in await take(store, len(ids))}
        assert all(await store.finish([outcome("succeeded", task) for task in claimed.values()]))
        how = await self._spoiled(spoil, kind, [task.id for task in tasks], plan)
        other = await stores.open()
        await self._answers(other)
        assert {task.id for task in good} <= await other.wait_finished(ids, 0.05)
        assert await other.retry([task.id for task in good]) == [False] * len(good)
        await other.retry(list(how))
        await other.run_now(list(how))
        await other.cancel(list(how))
        assert await other.finish([outcome("failed", claimed[task.id]) for task in good]) == [False] * len(good)
        for task in good:
            assert (await record(other, task.id)).result_payload == b"result of delivery 1"
        # A result may be any bytes to a store.
        await self._shown_and_removed(other, how, [task.id for task in good], some=kind == "task")

    @needs_fixtures("spoil")
    @with_flows
    @patient(240)
    async def test_no_flow_hangs_whose_tasks_cannot_be_read(
        self, store: Storage, spoil: Spoil, most_damages: int
    ) -> None:
        probe = _fan_in()
        await store.enqueue(*probe)
        first = probe[0][0].id
        plan = await self._plan(spoil, "task", first, most_damages)
        if not plan:
            return
        await store.cancel_flow(probe[1].id)
        flows = [_fan_in() for _ in plan]
        good = [_fan_in() for _ in range(5)]
        for made in _mixed(flows, good):
            await store.enqueue(*made)
        how = await self._spoiled(spoil, "task", [tasks[0].id for tasks, _ in flows], plan)
        for task in await _claim_all(store, 3 * len(flows)):
            await store.finish([outcome("succeeded", task)])
        await self._recover_all(store)
        for task in await _claim_all(store, 3 * len(flows)):
            await store.finish([outcome("succeeded", task)])
        for tasks, _ in good:
            assert (await record(store, tasks[1].id)).state is TaskState.SUCCEEDED
        # Some were altered to such that can be read, and wait for a time or a queue of their own.
        for _, flow in flows:
            await store.cancel_flow(flow.id)
        await settled(store)
        await self._recover_all(store)
        for (tasks, _), shown in zip(flows, await store.get_flows([flow.id for _, flow in flows]), strict=True):
            damage = how.get(tasks[0].id)
            assert shown is not None, damage
            assert shown.finished_at is not None, damage
            assert (await record(store, tasks[1].id)).state.is_final, damage

    async def _answers(self, store: Storage) -> None:
        """Call all that reads or removes, and hold that what it returns is sound."""
        await store.stats()
        for worker in await store.workers():
            check_worker(worker)
        for schedule in await store.get_schedules():
            check_schedule(schedule)
        await store.due_schedules(100)
        await store.recover(10)
        await store.prune(10)
        await store.wait_for_work(["nothing"], 0.01)
        await store.diagnose()
        await store.namespaces()
        cursor, listed = None, []
        while True:
            page = await store.list_tasks(TaskQuery(limit=100), cursor)
            listed += [check_task(task).id for task in page]
            cursor = page.cursor
            if cursor is None:
                break
        assert len(listed) == len(set(listed)), "a task is listed twice"

    async def _recover_all(self, store: Storage) -> set[str]:
        recovered: set[str] = set()
        while found := await store.recover(50):
            new = {task.id for task in found} - recovered
            assert new, f"what was recovered comes again and again: {found[0]}"
            recovered |= new
        return recovered

    async def _shown_and_removed(
        self, store: Storage, how: Mapping[str, str], good: Sequence[str], *, some: bool = True
    ) -> None:
        """Hold that each bad task is shown for what it is, named by ``check`` and gone once it was deleted."""
        await self._recover_all(store)
        shown: list[StoredTask | None] = []
        for names in _parts(list(how)):
            shown += await store.get(names)
        for name, task in zip(how, shown, strict=True):
            if task is not None:
                assert check_task(task).id == name, f"another task was returned: {how[name]}"
        bad = [task.id for task in shown if task is not None and is_corrupt(task)]
        assert bad or not some, "nothing of what was written made a task unreadable"
        found = "\n".join(finding.message for finding in await store.check(limit=10_000))
        unnamed = [how[name] for name in bad if name not in found]
        assert not unnamed, f"check does not name what has {unnamed[:5]}"
        assert not any(task_id in found for task_id in good)
        removed: list[bool] = []
        for names in _parts(bad):
            removed += await store.delete(names)
        stays = [how[name] for name, gone in zip(bad, removed, strict=True) if not gone]
        assert not stays, f"what has {stays[:5]} cannot be deleted"
        assert await store.get(bad) == [None] * len(bad)
        assert {task.id for task in await store.get(good) if task is not None} == set(good)

    # The others

    @needs_fixtures("spoil")
    async def test_schedules_fire_beside_those_that_cannot_be_read(
        self, stores: Stores, store: Storage, spoil: Spoil, most_damages: int
    ) -> None:
        await store.put_schedule(_due("probe"))
        plan = await self._plan(spoil, "schedule", "probe", most_damages)
        if not plan:
            return
        await store.delete_schedule("probe")
        bad = [f"bad {new_id()}" for _ in plan]
        good = [f"good {new_id()}" for _ in range(20)]
        for name in _mixed(bad, good):
            assert await store.put_schedule(_due(name)) is not None
        how = await self._spoiled(spoil, "schedule", bad, plan)
        other = await stores.open()
        await self._answers(other)
        fired: set[str] = set()
        while due := await other.due_schedules(5):  # few at a time, so that none of the bad stands before the good
            for schedule in due:
                assert schedule.id not in fired, f"what was fired is due again: {schedule}"
                assert await other.fire(evolve(schedule, next_run=None), [new_task()]) is not None, schedule
                fired.add(schedule.id)
        assert set(good) <= fired
        assert set(good) <= {schedule.id for schedule in await other.get_schedules()}
        there = {schedule.id for schedule in await other.get_schedules(list(how))}
        found = "\n".join(finding.message for finding in await other.check(limit=10_000))
        gone = [name for name in how if name not in there]
        assert any(name in found for name in gone), "nothing of what was written made a schedule unreadable"
        replaced, deleted = gone[::2], gone[1::2]
        for number, name in enumerate(replaced):
            stored = await other.put_schedule(_due(name), 0 if number % 2 else None)
            assert stored is not None, how[name]
            assert await other.get_schedules([name]) == [stored], how[name]
        for name in deleted:
            # What is no longer found by its name is another schedule now, or none.
            if await other.delete_schedule(name):
                assert name in found, f"check does not name what has {how[name]}"
            assert await other.put_schedule(_due(name), 0) is not None, how[name]

    @needs_fixtures("spoil")
    async def test_workers_are_shown_beside_those_that_cannot_be_read(
        self, stores: Stores, store: Storage, spoil: Spoil, most_damages: int
    ) -> None:
        await store.heartbeat("probe", [], HELD, "about it")
        plan = await self._plan(spoil, "worker", "probe", most_damages)
        if not plan:
            return
        bad = [f"bad {new_id()}" for _ in plan]
        good = [f"good {new_id()}" for _ in range(10)]
        for name in _mixed(bad, good):
            await store.heartbeat(name, [], HELD, "about it")
        how = await self._spoiled(spoil, "worker", bad, plan)
        other = await stores.open()
        await self._answers(other)
        workers = {worker.id: worker for worker in await other.workers()}
        assert set(good) <= workers.keys()
        assert {workers[name].about for name in good} == {"about it"}
        ids = await add(other, *(new_task() for _ in range(5)))
        assert [task.id for task in await take(other, 5)] == ids
        await other.check()
        for name in how:
            await other.heartbeat(name, [], HELD, "again")
            await other.heartbeat(name, [], 0)

    @needs_fixtures("spoil")
    @pytest.mark.parametrize("kind", ["queue", "pause"])
    async def test_queues_go_on_beside_those_whose_state_cannot_be_read(
        self, stores: Stores, store: Storage, spoil: Spoil, kind: str, most_damages: int
    ) -> None:
        await _use(store, "probe")
        plan = await self._plan(spoil, kind, "probe", most_damages)
        if not plan:
            return
        bad = [f"bad{number}" for number in range(len(plan))]
        good = [f"good{number}" for number in range(5)]
        for name in _mixed(bad, good):
            await _use(store, name)
        how = await self._spoiled(spoil, kind, bad, plan)
        other = await stores.open()
        await self._answers(other)
        assert set(good) <= {stats.queue for stats in await other.stats() if stats.paused}
        await other.check()
        for name in good:
            assert await other.claim({name: 10}, worker="w", lease=HELD) == [], "a queue that is paused"
            assert await other.resume(name)
            (task,) = await other.claim({name: 10}, worker="w", lease=HELD)
            assert await other.finish([outcome("succeeded", task)]) == [True]
        for name in how:
            await other.resume(name)
            for task in await other.claim({name: 10}, worker="w", lease=HELD):
                await other.finish([outcome("succeeded", task)])

    @needs_fixtures("spoil")
    async def test_unique_keys_hold_beside_those_that_cannot_be_read(
        self, stores: Stores, store: Storage, spoil: Spoil, most_damages: int
    ) -> None:
        await add(store, new_task(unique="probe"))
        plan = await self._plan(spoil, "unique", "probe", most_damages)
        if not plan:
            return
        bad = [f"bad key {number}" for number in range(len(plan))]
        good = [f"good key {number}" for number in range(10)]
        holders = dict(zip(good, await add(store, *(new_task(unique=key) for key in good)), strict=True))
        await add(store, *(new_task(unique=key) for key in bad))
        how = await self._spoiled(spoil, "unique", bad, plan)
        other = await stores.open()
        await self._answers(other)
        answers = await other.enqueue([new_task(unique=key) for key in good])
        assert [(one.id, one.created) for one in answers] == [(holders[key], False) for key in good]
        for key in how:
            await other.enqueue([new_task(unique=key)])
        ids = await add(other, *(new_task(unique=f"new {key}") for key in good))
        claimed = {task.id: task for task in await _claim_all(other, 2 * len(bad) + 100)}
        assert {*ids, *holders.values()} <= claimed.keys()
        ended = [outcome("succeeded", claimed[one]) for one in holders.values()]
        assert await other.finish(ended) == [True] * len(ended)
        await add(other, *(new_task(unique=key) for key in good))
        await other.check()

    @needs_fixtures("spoil")
    @with_limits
    async def test_limits_hold_beside_those_that_cannot_be_read(
        self, stores: Stores, store: Storage, spoil: Spoil, most_damages: int
    ) -> None:
        await _limit(store, "probe")
        plan = await self._plan(spoil, "limit", "queue:probe", most_damages)
        if not plan:
            return
        names = [f"bad{number}" for number in range(len(plan))]
        good = [f"good{number}" for number in range(5)]
        for name in _mixed(names, good):
            await _limit(store, name)
        how = await self._spoiled(spoil, "limit", [f"queue:{name}" for name in names], plan)
        other = await stores.open()
        await self._answers(other)
        shown = {limit.id: limit for limit in await other.get_limits()}
        assert {f"queue:{name}" for name in good} | how.keys() <= shown.keys()
        unreadable = [limit for name in how if isinstance(limit := shown[name], UnreadableLimit)]
        assert unreadable
        told = [finding.message for finding in await other.check(100_000) if finding.subject == "limit"]
        for limit in unreadable:
            assert any(repr(limit.id) in message and "omniq limits set" in message for message in told), limit
        for name in good:
            (task,) = await other.claim({name: 9}, worker="w", lease=HELD)
            assert await other.finish([outcome("succeeded", task)]) == [True]
            assert len(await other.claim({name: 9}, worker="w", lease=HELD)) == 1
        for number, limit in enumerate(unreadable):
            assert limit.queue is not None
            assert await other.claim({limit.queue: 9}, worker="w", lease=HELD) == [], how[limit.id]
            (usage,) = await other.get_limit_usage([Scope(limit.queue)])
            assert usage.is_full
            assert usage.limit == limit
            if number % 2:
                assert await other.put_limit(Limit(queue=limit.queue, concurrency=1), 0) is not None
                assert len(await other.claim({limit.queue: 9}, worker="w", lease=HELD)) == 1
            else:
                assert await other.delete_limit(limit.id) is True
                assert len(await other.claim({limit.queue: 9}, worker="w", lease=HELD)) == 3
        assert not [limit for limit in await other.get_limits() if isinstance(limit, UnreadableLimit)]
        assert not [finding for finding in await other.check() if finding.subject == "limit"]

    @needs_fixtures("spoil")
    @with_limits
    async def test_a_named_limit_that_cannot_be_read_holds_back_its_tasks_alone(
        self, stores: Stores, store: Storage, spoil: Spoil
    ) -> None:
        await store.put_limit(Limit(name="api", concurrency=1))
        held = await add(store, *[new_task(limit="api", key=key) for key in ("a", "b")])
        free = await add(store, new_task(key="a"), new_task(limit="other"), new_task())
        plan = await self._plan(spoil, "limit", "name:api", 1)
        if not plan:
            return
        await self._spoiled(
            spoil, "limit", ["name:api"], [(plan[0][0], b"{" if isinstance(plan[0][1], bytes) else "{")]
        )
        other = await stores.open()
        assert {task.id for task in await take(other, 9)} == set(free)
        assert await take(other, 9) == []
        waits = asyncio.create_task(other.wait_for_work(["work"], TEN_MINUTES))
        await waiting(waits)
        assert await other.delete_limit("name:api") is True
        async with asyncio.timeout(PROMPT):
            await waits
        assert {task.id for task in await take(other, 9)} == set(held)


async def _limit(store: Storage, queue: str) -> None:
    await store.put_limit(Limit(queue=queue, concurrency=1))
    await add(store, *[new_task(queue=queue) for _ in range(3)])


def _full_task(**options: Any) -> Any:
    """Return a task that has something in each of its fields."""
    unique, tags = new_id(), ("a tag",)
    return new_task(**{"unique": unique, "tags": tags, "expires": datetime(2101, 1, 1, tzinfo=UTC), **options})


def _fan_in() -> tuple[list[NewTask], NewFlow]:
    """Return a flow of a task and another that waits for it."""
    flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),))
    first = _full_task(unique=None, flow=flow.id, feeds=(Feed(0, needs_success=True),), max_retries=0)
    return [first, new_task(flow=flow.id, behind=0)], flow


def _due(name: str) -> Any:
    return new_schedule(name, next_run=LONG_AGO, last_run=LONG_AGO, last_task="a", live_tasks=("b",), apps=("c",))


async def _use(store: Storage, queue: str) -> None:
    await add(store, queue=queue)
    await store.pause(queue)


def _mixed(bad: Sequence[Any], good: Sequence[Any]) -> list[Any]:
    """Return both, the good ones evenly among the bad."""
    step = max(1, len(bad) // len(good))
    mixed: list[Any] = []
    for number, one in enumerate(good):
        mixed += [*bad[number * step : (number + 1) * step], one]
    return [*mixed, *bad[len(good) * step :]]


def _parts(names: Collection[str]) -> Iterator[list[str]]:
    names = list(names)
    for begin in range(0, len(names), 100):
        yield names[begin : begin + 100]


async def _claim_all(store: Storage, most: int) -> list[StoredTask]:
    """Claim until nothing comes, hold that all of it is sound, and nothing comes twice."""
    claimed: list[StoredTask] = []
    for _ in range(most):
        found = await take(store, 30)
        claimed += [check_task(task) for task in found]
        if not found and not await take(store, 30):
            break
    assert all(task.state is TaskState.RUNNING for task in claimed)
    assert len({task.id for task in claimed}) == len(claimed), "a task was claimed twice"
    return claimed
