"""Keeps schedules: one message each, replaced only if nobody else did meanwhile."""

from __future__ import annotations

import base64
import json
import logging
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import evolve

from omniq.errors import CorruptRecord, StorageUnavailable
from omniq.schedule import Misfire, Overlap, Schedule
from omniq.task import NewTask, When
from omniq_nats.enqueueing import Producer
from omniq_nats.keeper import Keeper
from omniq_nats.link import Conflict, Lost, Stored, Write
from omniq_nats.times import from_micros, micros

__all__ = ["Timetable"]

_log = logging.getLogger("omniq.nats")


class Timetable:
    """The schedules of a namespace.

    :param keeper: of the storage.
    :param producer: stores the tasks of a run.
    """

    def __init__(self, keeper: Keeper, producer: Producer) -> None:
        self._link = keeper.link
        self._names = keeper.names
        self._clock = keeper.clock
        self._producer = producer

    async def _stored(self, schedule_id: str) -> tuple[Schedule | None, int]:
        stored = await self._link.last([self._names.schedule(schedule_id)])
        return (read_schedule(stored[0]), stored[0].seq) if stored else (None, 0)

    async def put(self, schedule: Schedule, expected_revision: int | None) -> Schedule | None:
        """Do :meth:`omniq.storage.Storage.put_schedule`."""
        subject = self._names.schedule(schedule.id)
        nonce = secrets.token_hex(6)
        for _ in range(1000):
            known, seq = await self._stored(schedule.id)
            revision = 0 if known is None else known.revision
            if expected_revision not in (None, revision):
                return None
            kept = evolve(schedule, revision=revision + 1)
            try:
                await self._link.publish(Write(subject, encode_schedule(kept, nonce), expected=seq))
            except Conflict:
                continue
            except Lost:
                stored = await self._link.last([subject])
                if not stored or nonce_of(stored[0]) != nonce:
                    continue
            await self._link.tell(self._names.timetable)
            return kept
        raise StorageUnavailable(f"schedule {schedule.id!r} is changed by so many at once that no turn came")

    async def get(self, ids: Sequence[str] | None) -> list[Schedule]:
        """Do :meth:`omniq.storage.Storage.get_schedules`."""
        if ids is None:
            found = [read_schedule(stored) for stored in await self._link.last_all(self._names.schedules)]
            return sorted(found, key=lambda schedule: schedule.id)
        subjects = [self._names.schedule(schedule_id) for schedule_id in dict.fromkeys(ids)]
        by_id = {}
        for stored in await self._link.last(subjects):
            schedule = read_schedule(stored)
            by_id[schedule.id] = schedule
        return [by_id[schedule_id] for schedule_id in ids if schedule_id in by_id]

    async def delete(self, schedule_id: str) -> bool:
        """Do :meth:`omniq.storage.Storage.delete_schedule`."""
        for _ in range(1000):
            known, seq = await self._stored(schedule_id)
            if known is None:
                return False
            if await self._link.remove_one(seq):
                await self._link.tell(self._names.timetable)
                return True
        return False

    async def due(self, limit: int) -> list[Schedule]:
        """Do :meth:`omniq.storage.Storage.due_schedules`."""
        now = from_micros(self._clock.now())
        due = [
            (schedule.next_run, schedule.id, schedule)
            for schedule in await self._readable()
            if schedule.next_run is not None and not schedule.paused and schedule.next_run <= now
        ]
        return [schedule for _, _, schedule in sorted(due, key=lambda row: row[:2])[:limit]]

    async def next_run(self) -> int | None:
        """Give the time at which the next one is due, in microseconds; None: never."""
        return min(
            (
                micros(schedule.next_run)
                for schedule in await self._readable()
                if schedule.next_run is not None and not schedule.paused
            ),
            default=None,
        )

    async def _readable(self) -> list[Schedule]:
        """Give all schedules; one that cannot be read must not keep the others from firing."""
        schedules = []
        for stored in await self._link.last_all(self._names.schedules):
            try:
                schedules.append(read_schedule(stored))
            except CorruptRecord as error:
                _log.error("%s", error)
        return schedules

    async def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> bool:
        """Do :meth:`omniq.storage.Storage.fire`."""
        known, seq = await self._stored(schedule.id)
        if known is None or known.revision != schedule.revision:
            return False
        kept = evolve(schedule, revision=known.revision + 1)
        told = encode_schedule(kept, secrets.token_hex(6))
        step = [Write(self._names.schedule(schedule.id), told, expected=seq)]
        if await self._producer.enqueue(tasks, step) is None:
            return False
        await self._link.tell(self._names.timetable)
        return True


def _when(when: When | None) -> Any:
    if isinstance(when, timedelta):
        return {"in": when // timedelta(microseconds=1)}
    return None if when is None else micros(when)


def _read_when(told: Any) -> When | None:
    if isinstance(told, dict):
        return timedelta(microseconds=told["in"])
    return None if told is None else from_micros(told)


def _point(when: datetime | None) -> int | None:
    return None if when is None else micros(when)


def _read_point(told: int | None) -> datetime | None:
    return None if told is None else from_micros(told)


def encode_schedule(schedule: Schedule, nonce: str) -> bytes:
    """Give the body of the message that a schedule is stored in."""
    task = schedule.task
    told = {
        "v": 1,
        "nonce": nonce,
        "id": schedule.id,
        "task": {
            "id": task.id,
            "queue": task.queue,
            "name": task.name,
            "payload": base64.b64encode(task.payload).decode(),
            "serializer": task.serializer,
            "priority": task.priority,
            "max_retries": task.max_retries,
            "retry": task.retry,
            "timeout": task.timeout,
            "is_async": task.is_async,
            "run_at": _when(task.run_at),
            "expires": _when(task.expires),
            "unique": task.unique,
            "tags": task.tags,
            "result_ttl": task.result_ttl,
            "signature": base64.b64encode(task.signature).decode(),
        },
        "trigger": schedule.trigger,
        "next_run": _point(schedule.next_run),
        "misfire": schedule.misfire,
        "overlap": schedule.overlap,
        "jitter": schedule.jitter,
        "start": _point(schedule.start),
        "end": _point(schedule.end),
        "paused": schedule.paused,
        "declared": schedule.declared,
        "last_run": _point(schedule.last_run),
        "last_task": schedule.last_task,
        "revision": schedule.revision,
    }
    return json.dumps(told, separators=(",", ":")).encode()


def nonce_of(stored: Stored) -> str:
    """Give what tells the attempt that stored a schedule from others."""
    nonce: str = json.loads(stored.data)["nonce"]
    return nonce


def read_schedule(stored: Stored) -> Schedule:
    """Read a schedule.

    :raises CorruptRecord: if it cannot be read.
    """
    try:
        told = json.loads(stored.data)
        task = told["task"]
        return Schedule(
            id=told["id"],
            task=NewTask(
                id=task["id"],
                queue=task["queue"],
                name=task["name"],
                payload=base64.b64decode(task["payload"]),
                serializer=task["serializer"],
                priority=task["priority"],
                max_retries=task["max_retries"],
                retry=task["retry"],
                timeout=task["timeout"],
                is_async=task["is_async"],
                run_at=_read_when(task["run_at"]),
                expires=_read_when(task["expires"]),
                unique=task["unique"],
                tags=tuple(task["tags"]),
                result_ttl=task["result_ttl"],
                signature=base64.b64decode(task["signature"]),
            ),
            trigger=told["trigger"],
            next_run=_read_point(told["next_run"]),
            misfire=Misfire(told["misfire"]),
            overlap=Overlap(told["overlap"]),
            jitter=told["jitter"],
            start=_read_point(told["start"]),
            end=_read_point(told["end"]),
            paused=told["paused"],
            declared=told["declared"],
            last_run=_read_point(told["last_run"]),
            last_task=told["last_task"],
            revision=told["revision"],
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptRecord(f"the schedule on {stored.subject} cannot be read: {error}") from error
