"""Waits for work and for the end of tasks: told by others, and looking again at times, as a word can be lost."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from functools import partial

from attrs import define, field

from omniq_nats import streams
from omniq_nats.flow_index import FlowIndex
from omniq_nats.limits import Gate, names_of
from omniq_nats.names import BLOCKED_LINE, DUE_LINE, group_in, line_in
from omniq_nats.protocol import Message
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.schedules import ScheduleStore
from omniq_nats.standing import find_living
from omniq_nats.transport import Stored

__all__ = ["Waiting"]

LOOK_EVERY = 5.0
"""Seconds between two questions while a wait goes on: what was stored since, as a word may have been lost."""
MOST_NEWS = 64
"""So many messages are looked at then; of more it is not known that none of them matters."""
OVERDUE_PAUSE = 1.0
"""Seconds. A schedule that is due but not fired must not make idle workers spin."""


@define(eq=False)
class _Waiter:
    """A waiter."""

    woken: asyncio.Event = field(factory=asyncio.Event)
    called: bool = False
    """Whether there is a reason to return."""
    until: int | None = None
    """The time, by the servers' clock, at which there will be a reason to return."""
    look_again: bool = False
    """Whether that time may have changed."""

    def hear(self, at: int, now: int) -> None:
        """Hear that there is, or will be, a reason to return."""
        if at <= now:
            self.called = True
            self.woken.set()
        elif self.until is None or at < self.until:
            self.until = at
            self.woken.set()


@define(eq=False)
class _Look:
    """What a look at queues and schedules found."""

    is_work: bool
    end: int | None
    """Messages up to this one cannot change what it found; None: that was not asked for."""
    until: int | None = None
    """When there will be work, as far as is known."""


class Waiting:
    """The waits of one storage.

    :param state_store: of the storage.
    :param schedule_store: says when schedules are due.
    :param flows: and this of flows.
    """

    def __init__(self, state_store: QueueStateStore, schedule_store: ScheduleStore, flows: FlowIndex) -> None:
        self._flows = flows
        self._state_store = state_store
        self._transport = state_store.transport
        self._names = state_store.names
        self._schedule_store = schedule_store
        self._workers: defaultdict[str, set[_Waiter]] = defaultdict(set)
        self._listening: set[str] = set()
        self._closed = asyncio.Event()
        self._surveyed: set[str] = set()
        """Queues that were looked at, and of which nothing was heard since."""
        self._surveyed_by = 0
        self._laned: set[str] = set()
        """By what is listened to: queues that had limits, or tasks with keys, when they were last looked at."""
        self._run: int | None = None
        """When the next schedule was due at the latest look."""
        self._transport.renewed.append(self._look_again)

    def close(self) -> None:
        """Let all calls that wait return."""
        self._closed.set()
        for waiters in self._workers.values():
            for waiter in waiters:
                waiter.woken.set()

    def _look_again(self) -> None:
        """Have all calls that wait look again: while the connection was lost, nothing was heard."""
        for waiters in self._workers.values():
            for waiter in waiters:
                waiter.look_again = True
                waiter.woken.set()

    # For work

    async def for_work(self, queues: Sequence[str], timeout: float) -> None:
        """Do :meth:`omniq.storage.Storage.wait_for_work`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        waiter = _Waiter()
        keys = [
            *map(self._names.work, queues),
            *map(self._names.stored, queues),
            self._names.schedule_store,
            self._names.flow_word,
        ]
        await self._listen(keys)
        for key in keys:
            self._workers[key].add(waiter)
        glance = await self._glance(queues)
        try:
            while not self._closed.is_set():
                waiter.look_again, waiter.until = False, None
                if glance is not None:
                    look: asyncio.Future[_Look] = loop.create_future()
                    look.set_result(glance)
                    glance = None
                else:
                    # Meanwhile a word may come: then no caller waits for the look.
                    look = loop.create_task(self._look(queues))
                    look.add_done_callback(partial(_looked, waiter))
                try:
                    if not await self._sleep(queues, waiter, deadline, look):
                        return
                finally:
                    look.cancel()
        finally:
            for key in keys:
                self._workers[key].discard(waiter)

    async def _listen(self, subjects: Sequence[str]) -> None:
        for subject in subjects:
            if subject not in self._listening:
                self._listening.add(subject)
                try:
                    await self._transport.listen(subject, partial(self._hear, subject))
                except BaseException:
                    self._listening.discard(subject)
                    raise

    def _hear(self, key: str, message: Message) -> None:
        """Take note of a word.

        :param key: what it was listened for by.
        """
        if key in (self._names.schedule_store, self._names.flow_word):
            self._surveyed.clear()
            for waiter in self._workers.get(key, ()):
                waiter.look_again = True
                waiter.woken.set()
            return
        if message.headers:
            stored_at = self._hear_stored(message)
            if stored_at is None:
                return
            at = stored_at
        else:
            at = int(message.data) if message.data.isdigit() else 0
            self._surveyed.discard(key)
        now = self._state_store.clock.now()
        for waiter in self._workers.get(key, ()):
            if key in self._laned:
                waiter.look_again = True  # a limit may hold it back
                waiter.woken.set()
            else:
                waiter.hear(at, now)

    def _hear_stored(self, message: Message) -> int | None:
        """Take note of a message that the servers passed on; give the time at which its task may start, if any does."""
        headers = message.headers or {}
        subject, seq = headers.get("Nats-Subject"), headers.get("Nats-Sequence", "")
        if subject is None or not seq.isdecimal():
            return 0
        stored = Stored(subject, int(seq), message.data)
        self._transport.note(stored.seq, stored)
        line = line_in(stored.subject)
        if line == BLOCKED_LINE:
            return None
        if line != DUE_LINE:
            return 0
        return self._state_store.task_lookup.read(stored).run_at(0)

    async def _glance(self, queues: Sequence[str]) -> _Look | None:
        """Say what a look would find, if that is known without a question, as it mostly is right after a claim."""
        if self._surveyed_by != self._transport.generation or not self._surveyed.issuperset(
            map(self._names.work, queues)
        ):
            return None
        if self._flows.due(self._state_store.clock.now(), 1):
            return None
        times: list[int] = [] if self._run is None else [self._run]
        for queue in queues:
            queue_state = self._state_store.remembered(queue)
            if (
                queue_state is None
                or queue_state.lane is not None
                or not self._state_store.task_lookup.know_all(queue_state)
            ):
                return None
            if not queue_state.paused:
                times += [at for at in [queue_state.next_at()] if at is not None]
                times += [at async for at in self._untouched(queue_state, known=True)]
        until = min(times, default=None)
        return None if until is not None and until <= self._state_store.clock.now() else _Look(False, None, until=until)

    async def _look(self, queues: Sequence[str]) -> _Look:
        """Look whether there is work, and if not, when there will be."""
        generation = self._transport.generation
        keys = list(map(self._names.work, queues))
        self._surveyed.update(keys, [self._names.schedule_store])
        end = await streams.end_of(self._transport, self._state_store.clock)
        queue_states = await self._state_store.read(queues)
        now = self._state_store.clock.now()
        times = [
            at
            for queue_state in queue_states.values()
            if not queue_state.paused and queue_state.lane is None and (at := queue_state.next_at()) is not None
        ]
        for queue_state in queue_states.values():
            heard = {self._names.work(queue_state.queue), self._names.stored(queue_state.queue)}
            if queue_state.lane is not None:
                self._laned |= heard
                times += [] if queue_state.paused else await self._of_lane(queue_state)
                await self._state_store.task_lookup.confirm(queue_state)
                continue
            self._laned -= heard
            if any(at <= now for at in times):
                return _Look(True, end)
            if not queue_state.paused:
                times += [at async for at in self._untouched(queue_state)]
            await self._state_store.task_lookup.confirm(queue_state)
        if any(at <= now for at in times):
            return _Look(True, end)
        overdue, run = await self._schedule_store.outlook(now)
        await self._flows.look()
        if self._flows.due(now, 1):
            return _Look(True, end)
        later = now + int(OVERDUE_PAUSE * 1e6) if overdue else None
        runs = [at for at in (run, self._flows.next_at(now), later) if at is not None]
        self._run = min(runs, default=None)
        times += runs
        self._surveyed_by = generation
        return _Look(False, end, min(times, default=None))

    async def _of_lane(self, queue_state: QueueState) -> list[int]:
        """Return when tasks of a queue that has limits, or tasks with keys, may start."""
        now, lane = self._state_store.clock.now(), queue_state.lane
        assert lane is not None
        gate = Gate(queue_state, await self._state_store.limits.load(queue_state, names_of(queue_state)), now)
        slots, tokens, due = gate.own_room()
        if slots <= 0:
            return []  # who ends one of them says so
        times = [at async for at in self._untouched(queue_state)]
        times += [
            page.at
            for page in queue_state.overflow
            if not page.is_lined or page.at > now or len(queue_state.waiting) < self._state_store.overflow.most_due
        ]
        for line, entries in queue_state.back.items():
            if not group_in(line):
                times.append(entries[0].at)
        firsts = {group_in(line): now for line, count in lane.counts.items() if count > 0}
        for line, entries in queue_state.back.items():
            if group := group_in(line):
                firsts[group] = min(firsts.get(group, entries[0].at), entries[0].at)
        for group, at in firsts.items():
            next_at = gate.next_at(lane.groups[group])
            times += [] if next_at is None else [max(next_at, at)]
        return [max(at, due) if tokens <= 0 else at for at in times]

    async def _untouched(self, queue_state: QueueState, *, known: bool = False) -> AsyncIterator[int]:
        """Yield when tasks may start that claims have not come to: of a line of ready ones one at most."""
        lines = [line for line in queue_state.lines if not group_in(line)]
        for line in sorted(lines, key=lambda name: name == DUE_LINE):
            batch = await self._state_store.task_lookup.ahead(queue_state, line, None, 4, known=known)
            is_over = False
            while batch is not None and not is_over:
                seq, taken = queue_state.lines[line]
                for index in range(taken if batch.seq == seq else 0, len(batch)):
                    if queue_state.left_out(line, batch.seq, index) is None:
                        yield batch.run_at(index)
                        is_over = line != DUE_LINE
                        if is_over:
                            break
                batch = await self._state_store.task_lookup.ahead(queue_state, line, batch, 4, known=known)

    async def _sleep(
        self, queues: Sequence[str], waiter: _Waiter, deadline: float, look: asyncio.Future[_Look]
    ) -> bool:
        """Sleep until there may be work; say whether to look again, rather than to return."""
        loop = asyncio.get_running_loop()
        found: _Look | None = None
        while not (self._closed.is_set() or waiter.called):
            if found is None and look.done():
                found = look.result()
                if found.is_work:
                    return False
                if found.until is not None:
                    waiter.hear(found.until, self._state_store.clock.now())
                    continue
            if found is not None and waiter.look_again:
                return True
            seconds = deadline - loop.time()
            if found is not None and waiter.until is not None:
                seconds = min(seconds, (waiter.until - self._state_store.clock.now()) / 1e6)
            if found is not None and seconds <= 0:
                return False
            waiter.woken.clear()
            try:
                async with asyncio.timeout(None if found is None else min(seconds, LOOK_EVERY)):
                    await waiter.woken.wait()
            except TimeoutError:
                if found is not None and seconds > LOOK_EVERY:
                    found.end = None if found.end is None else await self._news(queues, found.end)
                    if found.end is None:
                        return True
        return False

    async def _news(self, queues: Sequence[str], end: int) -> int | None:
        """Look whether anything was stored that may be a reason to look again.

        :param end: only messages after this one count.
        :return: None: there is; otherwise the latest message that is known not to be one.
        """
        names = self._names
        stored, left = await self._transport.scan(f"{names.root}.>", end + 1, MOST_NEWS, max_bytes=MOST_NEWS * 1024)
        reasons = (*(names.batches(queue)[:-1] for queue in queues), names.schedules[:-1], names.flows[:-1])
        queue_states = {names.queue_state(queue) for queue in queues}
        for one in stored:
            is_reason = one.subject.startswith(reasons) or one.subject in queue_states
            is_reason = is_reason or (bool(self._laned) and one.subject.endswith((".usage", ".limit")))
            if is_reason and not self._transport.has_noted(one.seq, one.seq):
                return None
        return None if left else max([end, *(one.seq for one in stored)])

    # For the end

    async def for_end(self, ids: Sequence[str], timeout: float) -> set[str]:
        """Do :meth:`omniq.storage.Storage.wait_finished`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        waiter = _Waiter()
        told: dict[str, int] = {}
        """Of tasks that are said to have ended: which change of their queue state it was."""

        def hear(task_id: str, message: Message) -> None:
            if message.data.isdigit():
                told[task_id] = max(told.get(task_id, 0), int(message.data))
            else:
                waiter.look_again = True
            waiter.woken.set()

        subscriptions = []
        key = f"end {id(waiter)}"
        self._workers[key].add(waiter)
        try:
            for task_id in dict.fromkeys(ids):
                subscription = await self._transport.listen(self._names.end(task_id), partial(hear, task_id))
                subscriptions.append(subscription)
            while True:
                waiter.look_again = False
                live, changes = await find_living(self._state_store, ids)
                ended = {task_id for task_id in ids if task_id not in live}
                while True:
                    # A word from before we looked is of an earlier life: the task was made ready again since.
                    ended |= {task_id for task_id, change in told.items() if change > changes.get(task_id, change)}
                    left = deadline - loop.time()
                    if ended or not ids or left <= 0 or self._closed.is_set():
                        return ended
                    if waiter.look_again:
                        break
                    waiter.woken.clear()
                    try:
                        async with asyncio.timeout(min(left, 1.0)):
                            await waiter.woken.wait()
                    except TimeoutError:
                        break
        finally:
            del self._workers[key]
            for subscription in subscriptions:
                await self._transport.unlisten(subscription)


def _looked(waiter: _Waiter, look: asyncio.Task[_Look]) -> None:
    if not look.cancelled():
        look.exception()  # it is asked for only by a caller that still waits
    waiter.woken.set()
