"""Keeps schedules: one message each, replaced only if it was not changed meanwhile."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Sequence

from attrs import evolve

from omniq.errors import StorageUnavailable
from omniq.schedule import Schedule
from omniq.storage import Enqueued
from omniq.task import NewTask
from omniq_nats.due_cache import DueCache, is_due
from omniq_nats.enqueueing import Producer
from omniq_nats.flows import Flows
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.schedule_encoding import encode_schedule, nonce_of, readable
from omniq_nats.task_batches import is_limited
from omniq_nats.transport import Conflict, Lost, Write

__all__ = ["ScheduleStore"]


class ScheduleStore:
    """The schedules of a namespace.

    :param state_store: of the storage.
    :param producer: stores the tasks of a run.
    :param flows: stores them if some have keys, named limits or a debounce.
    """

    def __init__(self, state_store: QueueStateStore, producer: Producer, flows: Flows) -> None:
        self._flows = flows
        self._transport = state_store.transport
        self._names = state_store.names
        self._clock = state_store.clock
        self._producer = producer
        self._due_cache = DueCache(state_store.transport)

    async def _stored(self, schedule_id: str) -> tuple[int, int]:
        """Return a schedule's revision and its message's sequence; of one that is not there, two zeros.

        One that cannot be read has revision 0, so that another one can be stored in its place.
        """
        stored = await self._transport.last([self._names.schedule(schedule_id)])
        if not stored:
            return 0, 0
        schedule = readable(stored[0])
        return 0 if schedule is None else schedule.revision, stored[0].seq

    async def put(self, schedule: Schedule, expected_revision: int | None) -> Schedule | None:
        """Do :meth:`omniq.storage.Storage.put_schedule`."""
        subject = self._names.schedule(schedule.id)
        nonce = secrets.token_hex(6)
        for _ in range(1000):
            revision, seq = await self._stored(schedule.id)
            if expected_revision not in (None, revision):
                return None
            kept = evolve(schedule, revision=revision + 1 if revision else 0)
            try:
                seq = await self._transport.publish(Write(subject, encode_schedule(kept, nonce), expected=seq))
            except Conflict:
                continue
            except Lost:
                stored = await self._transport.last([subject])
                if not stored or nonce_of(stored[0]) != nonce:
                    continue
                seq = stored[0].seq
            self._due_cache.note(subject, seq, kept)
            await self._transport.tell(self._names.schedule_store)
            return evolve(kept, revision=kept.revision or seq)
        raise StorageUnavailable(f"schedule {schedule.id!r} is changed by so many at once that no turn came")

    async def get(self, ids: Sequence[str] | None) -> list[Schedule]:
        """Do :meth:`omniq.storage.Storage.get_schedules`."""
        if ids is None:
            found = map(readable, await self._transport.last_all(self._names.schedules))
            return sorted((schedule for schedule in found if schedule is not None), key=lambda schedule: schedule.id)
        subjects = [self._names.schedule(schedule_id) for schedule_id in dict.fromkeys(ids)]
        by_id = {}
        for stored in await self._transport.last(subjects):
            schedule = readable(stored)
            if schedule is not None:
                by_id[schedule.id] = schedule
        return [by_id[schedule_id] for schedule_id in ids if schedule_id in by_id]

    async def delete(self, schedule_id: str) -> bool:
        """Do :meth:`omniq.storage.Storage.delete_schedule`."""
        for _ in range(1000):
            _, seq = await self._stored(schedule_id)
            if seq == 0:
                return False
            if await self._transport.remove_one(seq):
                self._due_cache.forget(self._names.schedule(schedule_id))
                await self._transport.tell(self._names.schedule_store)
                return True
        return False

    async def due(self, limit: int) -> list[Schedule]:
        """Do :meth:`omniq.storage.Storage.due_schedules`."""
        await self._due_cache.look()
        due: list[Schedule] = []
        before: list[str] | None = None
        while (subjects := self._due_cache.due(now := self._clock.now(), limit)) != before:
            due = [schedule for schedule in await self._due_cache.read(subjects) if is_due(schedule, now)]
            if len(due) == len(subjects):
                break
            # Others fired some since we looked; there may be others behind them.
            before = subjects
        return sorted(due, key=lambda schedule: (schedule.next_run, schedule.id))

    async def outlook(self, now: int) -> tuple[int, int | None]:
        """Return how many are due, and when the next of the others will be, in microseconds; None: never."""
        await self._due_cache.look()
        return self._due_cache.outlook(now)

    async def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        """Do :meth:`omniq.storage.Storage.fire`."""
        deadline = time.monotonic() + 2 * self._transport.settings.timeout
        is_limited_run = any(map(is_limited, tasks))
        is_fresh = True
        while True:
            revision, seq = await self._stored(schedule.id)
            if seq == 0 or revision != schedule.revision:
                return None
            kept = evolve(schedule, revision=revision + 1)
            told = encode_schedule(kept, secrets.token_hex(6))
            step = [Write(self._names.schedule(schedule.id), told, expected=seq)]
            enqueued: list[Enqueued] | None
            if not is_limited_run:
                enqueued = await self._producer.enqueue(tasks, step)
                break
            try:
                enqueued = await self._flows.fire(tasks, step, fresh=is_fresh)
                break
            except Conflict as conflict:
                # Where it is not of the schedule it is tried again.
                if time.monotonic() > deadline:
                    raise StorageUnavailable(
                        f"{self._transport.settings.shown}: schedule {schedule.id!r} is due, and the queues of its "
                        f"tasks are changed by so many at once that no turn came: {conflict}"
                    ) from conflict
            is_fresh = False
            await asyncio.sleep(random.uniform(0, 0.05))
        if enqueued is not None:
            await self._transport.tell(self._names.schedule_store)
        return enqueued
