"""Moving from store to store: all records of one as lines, and lines into another, any number of times."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from itertools import chain

from attrs import define, evolve, field

from omniq.errors import OmniQError, PayloadTooLarge
from omniq.flow import Flow, GateState
from omniq.limit import Limit, UnreadableLimit
from omniq.storage import Adoption, Storage, TaskQuery
from omniq.storage.interchange import CutOff, Record, end_line, first_line, has_limits, line_of, read
from omniq.storage.limits import no_limits
from omniq.storage.states import changed_task
from omniq.storage.values import Salvaged
from omniq.task import StoredTask, TaskState

__all__ = ["Moved", "NotMoved", "export_from", "import_into"]

AT_A_TIME = 100
"""Tasks of one page, and of one call of ``adopt`` of which the bodies are not small."""
SMALL_AT_A_TIME = 500
BYTES_AT_A_TIME = 1_000_000
"""Of bodies and results in one call of ``adopt``, about."""
FLOWS_AT_A_TIME = 100
NAMED = 5
"""Running tasks that an error names."""
FOREVER = timedelta(days=36500)
"""Longer than any import: until then its flows are held, unless it is repeated to its end."""


class NotMoved(OmniQError):
    """Records were not moved: the message says which, and what to do."""


@define
class Moved:
    """How many records of each kind were moved."""

    stored: Counter[str] = field(factory=Counter)
    present: Counter[str] = field(factory=Counter)
    """Those that were there already."""
    refused: Counter[str] = field(factory=Counter)


# Out


async def export_from(
    storage: Storage, place: str, write: Callable[[str], object], refuse: Callable[[str], object], *, as_ready: bool
) -> Moved:
    """Write all records of a store that stands still.

    Memory holds a page of tasks, and an id for each flow: what is listed latest first is turned round in a temporary
    file.

    :param place: where the store is, to be shown.
    :param write: takes one or more lines.
    :param refuse: is told of what cannot be read, and is left out.
    :param as_ready: whether running tasks, which dead workers left, are written as ready.
    :raises NotMoved: if tasks are running.
    """
    if as_ready:
        await _refuse_workers(storage)
    else:
        await _refuse_running(storage)
    moved, flow_ids, is_limited = Moved(), dict[str, None](), False
    limits = await storage.get_limits() if storage.limits.task_limits else []
    with tempfile.TemporaryFile() as spool:
        lengths: list[int] = []
        async for page in _pages(storage):
            begin = spool.tell()
            for task in reversed(page):
                if isinstance(task, Salvaged):
                    moved.refused["task"] += 1
                    refuse(f"task {task.id} cannot be read, and is left out: {task.error and task.error.message}")
                    continue
                is_limited = is_limited or task.limited is not None
                if task.flow is not None:
                    flow_ids[task.flow] = None
                spool.write(line_of(_at_rest(task, as_ready=as_ready)).encode())
                moved.stored["task"] += 1
            lengths.append(spool.tell() - begin)
        write(first_line(place, await storage.now(), limits=is_limited or bool(limits)))
        for queue in await storage.stats():
            if queue.paused:
                write(line_of(queue.queue))
                moved.stored["paused"] += 1
        for limit in limits:
            if isinstance(limit, UnreadableLimit):
                moved.refused["limit"] += 1
                refuse(f"the limit {limit.id} cannot be read, and is left out: {limit.problem}")
                continue
            write(line_of(limit))
            moved.stored["limit"] += 1
        async for flow in _flows(storage, list(flow_ids)):
            write(line_of(flow))
            moved.stored["flow"] += 1
        end = sum(lengths)
        for length in reversed(lengths):
            end -= length
            spool.seek(end)
            write(spool.read(length).decode())
    for schedule in await storage.get_schedules():
        write(line_of(schedule))
        moved.stored["schedule"] += 1
    write(end_line(moved.stored))
    return moved


async def _pages(storage: Storage) -> AsyncIterator[tuple[StoredTask, ...]]:
    cursor: str | None = None
    while True:
        page = await storage.list_tasks(TaskQuery(limit=AT_A_TIME), cursor)
        yield page.tasks
        cursor = page.cursor
        if cursor is None:
            return


async def _flows(storage: Storage, ids: list[str]) -> AsyncIterator[Flow]:
    for begin in range(0, len(ids), FLOWS_AT_A_TIME):
        for flow in await storage.get_flows(ids[begin : begin + FLOWS_AT_A_TIME]):
            if flow is not None:
                yield flow


async def _refuse_running(storage: Storage) -> None:
    number = sum(queue.counts[TaskState.RUNNING] for queue in await storage.stats())
    if number:
        page = await storage.list_tasks(TaskQuery(state=TaskState.RUNNING, limit=NAMED, bare=True))
        raise NotMoved(_running(number, page.tasks))


def _running(number: int, some: Iterable[StoredTask]) -> str:
    named = ", ".join(f"{task.id} ({task.name}) on worker {task.worker}" for task in some)
    return (
        f"{number:,} tasks are running: {named}{', …' if number > NAMED else ''}; stop the workers and let them end. "
        "If their workers are dead, --as-ready exports them as ready, to be run again"
    )


async def _refuse_workers(storage: Storage) -> None:
    workers = await storage.workers()
    if workers:
        named = ", ".join(worker.id for worker in workers[:NAMED])
        raise NotMoved(
            f"--as-ready is for a store without workers, and there are {len(workers):,}: {named}; stop them. "
            "One that was killed is forgotten once its lease is over"
        )


def _at_rest(task: StoredTask, *, as_ready: bool) -> StoredTask:
    if task.state is not TaskState.RUNNING:
        return task
    if not as_ready:
        raise NotMoved(_running(1, [task]))
    # The attempt that was cut short does not count; the delivery stays, so that who has it still stays fenced.
    attempt = max(task.attempt - 1, 0)
    return changed_task(task, state=TaskState.READY, lease_until=None, attempt=attempt, progress=None)


# In


async def import_into(
    storage: Storage, lines: Iterable[bytes], refuse: Callable[[str], object], *, partial: bool
) -> Moved:
    """Store what a file holds, unless it is there already.

    The gates of a flow that are shut wait for the end of the import: else a flow of which some tasks are still to come
    could be taken for one in which nothing can run any more.

    :param lines: of the file, each with its end.
    :param refuse: is told of what is not stored.
    :param partial: whether a file that was cut off will do.
    :raises NotMoved: if the file cannot be read, or was cut off; what was stored before stays.
    :raises ConfigurationError: if the store adopts no records, or the file has limits in it and the store holds none;
        nothing is stored.
    """
    await storage.adopt([])  # so that one that cannot says so before anything is stored
    rest = iter(lines)
    first = next(rest, b"")
    if has_limits(first) and not storage.limits.task_limits:
        raise no_limits(storage)
    arrival = _Arrival(storage, refuse)
    try:
        for kind, record in read(chain([first] if first else [], rest)):
            await arrival.take(kind, record)
        await arrival.flush()
    except CutOff as problem:
        await arrival.flush()
        if not partial:
            raise NotMoved(
                f"{problem}. {arrival.moved.stored['task']:,} tasks of it are stored. Export anew and import that: "
                "what is stored is left as it is. With --partial what there is will do"
            ) from problem
    except ValueError as problem:
        await arrival.flush()
        raise NotMoved(
            f"{problem}. What stands before it is stored; once it is mended, import it again: what is stored is left "
            "as it is"
        ) from problem
    await arrival.release()
    return arrival.moved


class _Arrival:
    """What comes in, and what has still to be done with it."""

    def __init__(self, storage: Storage, refuse: Callable[[str], object]) -> None:
        self.moved = Moved()
        self._storage = storage
        self._refuse = refuse
        self._flows: list[Flow] = []
        self._tasks: list[StoredTask] = []
        self._bytes = 0
        self._held: dict[str, int] = {}

    async def take(self, kind: str, record: Record) -> None:
        """Take in a record; those of one kind together."""
        if isinstance(record, StoredTask):
            await self._flush_flows()
            self._tasks.append(record)
            self._bytes += len(record.body) + len(record.result_payload or b"")
            if len(self._tasks) >= SMALL_AT_A_TIME or self._bytes >= BYTES_AT_A_TIME:
                await self._flush_tasks()
        elif isinstance(record, Flow):
            self._flows.append(self._on_hold(record))
            if len(self._flows) >= FLOWS_AT_A_TIME:
                await self._flush_flows()
        else:
            await self.flush()
            if isinstance(record, str):
                is_new = await self._storage.pause(record)
            elif isinstance(record, Limit):
                is_new = await self._storage.put_limit(record, 0) is not None
            else:
                is_new = await self._storage.put_schedule(record, 0) is not None
            (self.moved.stored if is_new else self.moved.present)[kind] += 1

    def _on_hold(self, flow: Flow) -> Flow:
        shut = [gate for gate in flow.gates if gate.state is GateState.SHUT and not gate.holds]
        if flow.finished_at is not None or not shut:
            return flow
        last = max(shut, key=lambda gate: gate.rank)
        self._held[flow.id] = last.n
        gates = [evolve(gate, holds=1, unmet=gate.unmet + 1) if gate is last else gate for gate in flow.gates]
        return evolve(flow, gates=tuple(gates), hold_until=flow.hold_until or flow.created_at + FOREVER)

    async def flush(self) -> None:
        """Store what was taken in."""
        await self._flush_flows()
        await self._flush_tasks()

    async def _flush_flows(self) -> None:
        flows, self._flows = self._flows, []
        if flows:
            for flow, answer in zip(flows, await self._storage.adopt([], flows), strict=True):
                self._count("flow", f"flow {flow.id}", answer)

    async def _flush_tasks(self) -> None:
        tasks, self._tasks, self._bytes = self._tasks, [], 0
        # A ready task cannot be asked to stop: it is cancelled once it is there, which its flow counts.
        stopped = {task.id for task in tasks if task.cancel_requested and not task.state.is_final}
        tasks = [changed_task(task, cancel_requested=False) if task.id in stopped else task for task in tasks]
        await self._adopt(tasks)
        if stopped:
            await self._storage.cancel(sorted(stopped))

    async def _adopt(self, tasks: list[StoredTask]) -> None:
        if not tasks:
            return
        try:
            answers = await self._storage.adopt(tasks)
        except (ValueError, PayloadTooLarge) as problem:
            if len(tasks) == 1:
                self.moved.refused["task"] += 1
                self._refuse(f"task {tasks[0].id} ({tasks[0].name}) is not stored: {problem}")
                return
            # One of them cannot be held here: the others can.
            half = len(tasks) // 2
            await self._adopt(tasks[:half])
            await self._adopt(tasks[half:])
            return
        for task, answer in zip(tasks, answers, strict=True):
            self._count("task", f"task {task.id} ({task.name})", answer)

    def _count(self, kind: str, what: str, answer: Adoption) -> None:
        if answer is Adoption.STORED:
            self.moved.stored[kind] += 1
        elif answer is Adoption.PRESENT:
            self.moved.present[kind] += 1
        else:
            self.moved.refused[kind] += 1
            self._refuse(f"{what} is not stored: {_WHY[answer]}")

    async def release(self) -> None:
        """Let the gates of flows go that waited for the end of the import."""
        for flow_id, gate in self._held.items():
            await self._storage.release_hold(flow_id, gate)


_WHY = {
    Adoption.KEY_TAKEN: "another that has not ended has its unique key",
    Adoption.NO_FLOW: "its flow is not in the store",
}
