"""Schedules in pairs of bytes."""

from __future__ import annotations

import json
from datetime import datetime

from omniq.errors import CorruptRecord
from omniq.schedule import Schedule
from omniq.storage.corrupt_records import corrupt, read_schedule
from omniq.storage.pairs.buffer import PairsBuffer
from omniq.storage.pairs.keys import END, key, number_in, text_of, time_of
from omniq.storage.records import dump_schedule
from omniq.storage.times import to_micros
from omniq.storage.validation import LARGEST_REVISION, UNREADABLE

__all__ = ["PairsSchedules"]


class PairsSchedules(PairsBuffer):
    """Primitives for schedules."""

    def _schedule(self, where: bytes, value: bytes) -> Schedule | None:
        try:
            name, revision, text = json.loads(value)
            if where != key("S", name):
                raise ValueError(f"its record is that of schedule {name!r}")
            return read_schedule(text, id=name, revision=revision)
        except UNREADABLE as error:
            self.problems.append(corrupt("schedule", _name_in(where), error))
        except CorruptRecord as problem:
            self.problems.append(problem)
        return None

    def schedules(self) -> list[Schedule]:
        found = [self._schedule(where, value) for where, value in self._entries_in(key("S"))]
        return [schedule for schedule in found if schedule is not None]

    def revision(self, schedule_id: str) -> int | None:
        value = self._one(key("S", schedule_id))
        if value is None:
            return None
        try:
            _, revision, _ = json.loads(value)
        except UNREADABLE:
            return 0
        return revision if type(revision) is int and 0 < revision < LARGEST_REVISION else 0

    def schedule(self, schedule_id: str) -> Schedule | None:
        where = key("S", schedule_id)
        value = self._one(where)
        return None if value is None else self._schedule(where, value)

    def store_schedule(self, schedule: Schedule) -> None:
        self.remove_schedule(schedule.id)
        value = json.dumps([schedule.id, schedule.revision, dump_schedule(schedule)]).encode()
        self._write({key("S", schedule.id): value, **dict.fromkeys(_due(schedule), schedule.id.encode())})

    def remove_schedule(self, schedule_id: str) -> None:
        old = self.schedule(schedule_id)
        due = [] if old is None else _due(old)
        if old is None or len(self._get(due)) < len(due):
            name = schedule_id.encode()
            due = [where for where, value in self._entries_in(key("D")) if value == name]
        self._write({}, [key("S", schedule_id), *due])

    def revision_floor(self) -> int:
        floor = self._number(key("R"))
        return floor if 0 <= floor < LARGEST_REVISION else 0

    def raise_revision_floor(self, revision: int) -> None:
        self._write({key("R"): b"%d" % revision})

    def due(self, limit: int) -> list[Schedule]:
        found: list[Schedule] = []
        for where, value in self._entries_in(key("D"), key(to_micros(self.now) + 1)):
            name = text_of(value)
            schedule = None if name is None else self.schedule(name)
            if len(found) == limit:
                break
            if schedule is not None and where in _due(schedule):
                found.append(schedule)
        return found

    def next_schedule(self, after: datetime) -> datetime | None:
        self.flush()
        begin = key("D") + key(to_micros(after) + 1)
        found = [where for where, _ in self._pairs.scan(begin, key("D") + END, 1, False)]
        return time_of(number_in(found[0], len(key("D")))) if found else None


def _due(schedule: Schedule) -> list[bytes]:
    if schedule.paused or schedule.next_run is None:
        return []
    return [key("D", to_micros(schedule.next_run), schedule.id)]


def _name_in(where: bytes) -> str:
    """Return the text of a key that has one part behind its kind, as far as it stands there itself."""
    return where[len(key("S")) : -2].replace(b"\0\xff", b"\0").decode(errors="replace")
