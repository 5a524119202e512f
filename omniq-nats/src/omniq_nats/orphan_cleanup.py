"""Finds messages that belong to nothing, and takes them away: a process died, or came too late, between two steps.

A large result, or an overflow page of waiting tasks, is stored before the queue state that names it. If that
state is then not accepted, the message will never be read. A large body is taken away after its task, and what
belongs to a flow after the flow.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence

from omniq_nats.names import readable, untoken
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import QueueStateStore, holder_of
from omniq_nats.results import LISTED
from omniq_nats.task_lookup import Place
from omniq_nats.times import after, read_stamp

__all__ = ["OrphanCleanup"]

SAFE_AGE = 3600.0
"""Seconds for which a message is left alone, whatever it belongs to."""
EVERY = 3600.0
"""Seconds between two looks of a process, about."""
STEP = 250
"""So many messages are looked into at a time."""


class OrphanCleanup:
    """Sweeps.

    :param state_store: of the storage.
    """

    def __init__(self, state_store: QueueStateStore) -> None:
        self._state_store = state_store
        self._transport = state_store.transport
        self._names = state_store.names
        self._next_at = 0.0

    async def sweep_at_times(self) -> None:
        """Sweep, if that was not done for a while."""
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + EVERY * random.uniform(0.75, 1.25)
            await self.sweep()

    async def sweep(self) -> None:
        """Take away what belongs to nothing and is old enough."""
        for subject in await self.stray_blobs():
            await self._transport.remove(await self._old([subject]))
        for subject in await self.stray_bodies():
            await self._transport.remove(await self._old([subject]))
        for subject in await self.stray_parts():
            await self._transport.remove(await self._old([subject]))
        for subject in await self.stray_listed():
            await self._transport.remove(await self._old([subject]))
        by_queue: defaultdict[str, list[str]] = defaultdict(list)
        for subject in await self.stray_shelves():
            by_queue[untoken(subject.rsplit(".", 2)[1])].append(subject)
        for queue, subjects in by_queue.items():
            await self._remove_shelves(queue, subjects)

    async def strays(self) -> list[str]:
        """Return the subjects of what belongs to nothing, however old it is."""
        looks = self.stray_blobs, self.stray_bodies, self.stray_parts, self.stray_shelves
        return [subject for look in looks for subject in await look()]

    # Large bodies

    async def stray_bodies(self) -> list[str]:
        """Return the subjects of large bodies whose tasks are not there."""
        subjects = await self._subjects(self._names.bodies)
        strays: list[str] = []
        for start in range(0, len(subjects), STEP):
            some = {untoken(subject.rpartition(".")[2]): subject for subject in subjects[start : start + STEP]}
            places, torn = await self._state_store.task_lookup.find(list(some))
            strays += [
                subject
                for task_id, subject in some.items()
                if task_id not in torn and (task_id not in places or places[task_id][0].blobs is not None)
            ]
        return strays

    # Gates, rosters and unique keys of flows

    async def stray_parts(self) -> list[str]:
        """Return the subjects of what belongs to flows that are not there: a flow is stored together with its parts."""
        parts = {
            subject: readable(subject.rsplit(".", 2)[1]) for subject in await self._subjects(self._names.parts_of_flows)
        }
        keys = await self._subjects(self._names.flow_keys)
        for start in range(0, len(keys), STEP):
            for stored in await self._transport.last(keys[start : start + STEP]):
                holder = holder_of(stored.data)
                if holder is not None:
                    parts[stored.subject] = holder
        flows = sorted(set(parts.values()))
        there: set[str] = set()
        for start in range(0, len(flows), STEP):
            some = [self._names.either_flow(flow_id) for flow_id in flows[start : start + STEP]]
            # An empty message only says that a flow has ended.
            found = [stored for stored in await self._transport.last(some) if stored.data]
            there.update(readable(stored.subject.rpartition(".")[2]) for stored in found)
        return [subject for subject, flow_id in parts.items() if flow_id not in there]

    # Large results and errors

    async def stray_blobs(self) -> list[str]:
        """Return the subjects of large results and errors that no task has, nor can have any more."""
        subjects = await self._subjects(f"{self._names.root}.b.>")
        strays: list[str] = []
        for start in range(0, len(subjects), STEP):
            strays += await self._stray_among(subjects[start : start + STEP])
        return strays

    async def _stray_among(self, subjects: Sequence[str]) -> list[str]:
        by_task: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for subject in subjects:
            task_id, name = subject.rsplit(".", 2)[1:]
            by_task[untoken(task_id)][name] = subject
        places = await self._state_store.task_lookup.locate(list(by_task))
        queue_states = await self._state_store.read(sorted({batch.queue for batch, _ in places.values()}))
        strays: list[str] = []
        for task_id, named in by_task.items():
            place = places.get(task_id)
            used = set() if place is None else await self._used(queue_states[place[0].queue], place, named)
            strays += [subject for name, subject in named.items() if name not in used]
        return strays

    async def _used(self, queue_state: QueueState, place: Place, named: dict[str, str]) -> set[str]:
        batch, index = place
        entry = queue_state.running.get(batch.rows[index][0])
        # Only the delivery that runs may still end, and its result may be stored already.
        used = set() if entry is None else {name for name in named if name.startswith(f"{entry.delivery}-")}
        end_record = (await self._state_store.end_records(queue_state, [place])).get((batch.seq, index))
        return used if end_record is None or end_record.blob is None else used | {end_record.blob}

    # The list of what failed or was cancelled

    async def stray_listed(self) -> list[str]:
        """Return the subjects of what is listed and has not ended so, or is not there."""
        subjects = await self._subjects(self._names.all_listed())
        strays: list[str] = []
        for start in range(0, len(subjects), STEP):
            some = {untoken(subject.rpartition(".")[2]): subject for subject in subjects[start : start + STEP]}
            places = await self._state_store.task_lookup.locate(list(some))
            queue_states = await self._state_store.read(sorted({batch.queue for batch, _ in places.values()}))
            for task_id, subject in some.items():
                place = places.get(task_id)
                if place is None:
                    strays.append(subject)
                    continue
                batch, index = place
                records = await self._state_store.end_records(queue_states[batch.queue], [place])
                end_record = records.get((batch.seq, index))
                if end_record is not None and end_record.state not in LISTED:
                    strays.append(subject)
        return strays

    # Overflow pages

    async def stray_shelves(self) -> list[str]:
        """Return the subjects of overflow pages that no queue's state names."""
        there = await self._subjects(self._names.overflow)
        if not there:
            return []
        queue_states = await self._state_store.read_all()
        named = {subject for queue_state in queue_states.values() for subject in self._named_in(queue_state)}
        return [subject for subject in there if subject not in named]

    def _named_in(self, queue_state: QueueState) -> set[str]:
        names = [*(overflow_page.name for overflow_page in queue_state.overflow), *queue_state.spent]
        return {self._names.overflow_page(queue_state.queue, name) for name in names}

    async def _remove_shelves(self, queue: str, subjects: Sequence[str]) -> None:
        async def step(queue_state: QueueState) -> tuple[bool, bool]:
            # The queue state is stored anew, though nothing of it changes: whoever stored an overflow page and was then
            # held up for an hour can no longer store the queue state that names it.
            is_right = bool(queue_state.seq) and not self._named_in(queue_state).intersection(subjects)
            return is_right, is_right

        old = await self._old(subjects)
        if not old:
            return
        is_right = await self._state_store.change(queue, step, remembered=False)
        if is_right:
            await self._transport.remove(old)

    # Both

    async def _subjects(self, subject: str) -> list[str]:
        """Return all subjects that match one with wildcards, sorted."""
        stream = self._names.stream
        found: set[str] = set()
        total = 1
        offset = 0
        while offset < total:
            body = {"subjects_filter": subject, "offset": offset}
            answer = await self._transport.ask(f"STREAM.INFO.{stream}", body)
            some = answer.get("state", {}).get("subjects") or {}
            if not some:
                break
            found.update(some)
            offset += len(some)
            total = answer.get("total", 0)
        return sorted(found)

    async def _old(self, subjects: Sequence[str]) -> list[int]:
        """Return the sequences of those messages that are old enough to be taken away."""
        stream = self._names.stream
        old: list[int] = []
        for subject in subjects:
            answer = await self._transport.ask(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
            message = answer.get("message")
            if message is not None and after(read_stamp(message["time"]), SAFE_AGE) <= self._state_store.clock.now():
                old.append(message["seq"])
        return old
