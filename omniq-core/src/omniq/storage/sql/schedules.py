"""Schedules in SQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from omniq.errors import CorruptRecord
from omniq.schedule import Schedule
from omniq.storage.corrupt_records import read_schedule
from omniq.storage.records import dump_schedule
from omniq.storage.sql.statements import SqlStatements
from omniq.storage.times import LATEST, to_micros
from omniq.storage.validation import LARGEST_REVISION

__all__ = ["SqlSchedules"]


class SqlSchedules(SqlStatements):
    """Primitives for schedules."""

    def _schedules(self, where: str, *values: Any) -> tuple[list[Schedule], int]:
        """Return schedules that can be read, and how many there are with those that cannot."""
        rows = self.rows(f"SELECT id, revision, body FROM {{schedule}} WHERE {where}", *values)
        found = []
        for name, revision, body in rows:
            try:
                found.append(read_schedule(body, id=name, revision=revision))
            except CorruptRecord as problem:
                self.problems.append(problem)
        return found, len(rows)

    def schedules(self) -> list[Schedule]:
        return self._schedules("1 = 1")[0]

    def revision(self, schedule_id: str) -> int | None:
        found = self.rows(f"SELECT revision FROM {{schedule}} WHERE id = %s{self._lock}", schedule_id)
        if not found:
            return None
        self._there.add(("schedule", schedule_id))
        revision = found[0][0]
        return revision if isinstance(revision, int) and 0 < revision < LARGEST_REVISION else 0

    def schedule(self, schedule_id: str) -> Schedule | None:
        found, _ = self._schedules("id = %s", schedule_id)
        return found[0] if found else None

    def store_schedule(self, schedule: Schedule) -> None:
        due = None if schedule.paused or schedule.next_run is None else to_micros(schedule.next_run)
        # One that was not there when it was looked for may be by now: it must not be replaced unseen.
        if ("schedule", schedule.id) in self._there:
            sql = "UPDATE {schedule} SET revision = %s, due = %s, body = %s WHERE id = %s"
        else:
            sql = "INSERT INTO {schedule} (revision, due, body, id) VALUES (%s, %s, %s, %s)"
        self.change(sql, schedule.revision, due, dump_schedule(schedule), schedule.id)
        self._there.add(("schedule", schedule.id))

    def remove_schedule(self, schedule_id: str) -> None:
        self.change("DELETE FROM {schedule} WHERE id = %s", schedule_id)
        self._there.discard(("schedule", schedule_id))

    def revision_floor(self) -> int:
        # Locked: else another schedule of that id could come and go with the same number before this one is stored.
        return int(self.rows(f"SELECT revision_floor FROM {{meta}}{self._lock}")[0][0])

    def raise_revision_floor(self, revision: int) -> None:
        # Others may have raised it since it was read.
        self.change("UPDATE {meta} SET revision_floor = %s WHERE revision_floor < %s", revision, revision)

    def due(self, limit: int) -> list[Schedule]:
        found: list[Schedule] = []
        read = 0
        while len(found) < limit:  # those that cannot be read take no place
            where = "due <= %s ORDER BY due, id LIMIT %s OFFSET %s"
            more, n = self._schedules(where, to_micros(self.now), limit, read)
            found += more
            read += n
            if n < limit:
                break
        return found[:limit]

    def next_schedule(self, after: datetime) -> datetime | None:
        return self._first("due FROM {schedule} WHERE due > %s AND due <= %s ORDER BY due", to_micros(after), LATEST)
