"""The schedules of a memory store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from attrs import evolve

from omniq.schedule import Schedule

__all__ = ["Schedules"]


class Schedules:
    """Schedules by id, each with a revision that counts its changes."""

    def __init__(self) -> None:
        self._by_id: dict[str, Schedule] = {}
        self._revision_floor = 0
        """The largest revision of any schedule that was deleted: new ones begin above it."""

    def revision(self, schedule_id: str) -> int:
        """Give the revision of a schedule; 0 if there is none."""
        stored = self._by_id.get(schedule_id)
        return 0 if stored is None else stored.revision

    def put(self, schedule: Schedule) -> Schedule:
        """Store a schedule under the next revision, and give it."""
        kept = evolve(schedule, revision=(self.revision(schedule.id) or self._revision_floor) + 1)
        self._by_id[schedule.id] = kept
        return kept

    def get(self, ids: Sequence[str] | None) -> list[Schedule]:
        wanted = sorted(self._by_id) if ids is None else ids
        return [self._by_id[schedule_id] for schedule_id in wanted if schedule_id in self._by_id]

    def delete(self, schedule_id: str) -> bool:
        gone = self._by_id.pop(schedule_id, None)
        if gone is None:
            return False
        self._revision_floor = max(self._revision_floor, gone.revision)
        return True

    def due(self, now: datetime, limit: int) -> list[Schedule]:
        due = sorted((at, schedule.id) for at, schedule in self._planned() if at <= now)
        return [self._by_id[schedule_id] for _, schedule_id in due[:limit]]

    def outlook(self, now: datetime) -> tuple[bool, datetime | None]:
        """Return whether one is due, and when the next of the others will be; None: never."""
        times = [at for at, _ in self._planned()]
        return any(at <= now for at in times), min((at for at in times if at > now), default=None)

    def _planned(self) -> Iterator[tuple[datetime, Schedule]]:
        for schedule in self._by_id.values():
            if schedule.next_run is not None and not schedule.paused:
                yield schedule.next_run, schedule
