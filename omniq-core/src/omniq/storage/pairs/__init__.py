"""The primitives of a transaction over ordered pairs of bytes: a store that gets, puts, deletes and scans is enough."""

from __future__ import annotations

import contextlib
import json

from omniq.storage.corrupt_records import corrupt
from omniq.storage.pairs.buffer import Pairs
from omniq.storage.pairs.flows import PairsFlows
from omniq.storage.pairs.keys import key, text_of
from omniq.storage.pairs.limits import PairsLimits
from omniq.storage.pairs.schedules import PairsSchedules
from omniq.storage.pairs.tasks import PairsTasks
from omniq.storage.primitives import read_unlisted
from omniq.storage.states import later
from omniq.storage.times import from_micros, to_micros
from omniq.storage.validation import UNREADABLE, check_worker
from omniq.storage.values import StoredWorker

__all__ = ["Pairs", "PairsTx"]


class PairsTx(PairsTasks, PairsFlows, PairsLimits, PairsSchedules):
    """The primitives of one transaction.

    A task is stored under ``f`` (what never changes), ``y`` (a long body), ``c`` (what does change, and the size of the
    result) and ``x`` (its result); every other key, an
    *entry*, leads to its id: ``o`` the order of enqueueing, ``b`` its queue and state, ``r`` and ``a`` ready ones by
    place and by age, ``s`` scheduled, ``l`` leases, ``e`` expiry, ``d`` retention, ``u`` unique keys, ``m``
    and ``M`` the tasks of a flow and of a gate by state; ``t`` ready ones of a line by place, ``k`` and ``N`` running
    ones of a key and of a named limit. A flow is stored under ``F``, its gates under ``G``; ``H`` and
    ``K`` lead to flows by when they are due and by unique keys. The caller commits after :meth:`flush`.

    :param pairs: the store's transaction.
    :param now: the store's clock.
    """

    def verify(self) -> None:
        read_unlisted(self)
        for _, value in self._entries_in(key("f")):
            # One whose place leads elsewhere is on no page.
            with contextlib.suppress(*UNREADABLE):
                self.load([json.loads(value.partition(b"\n")[0])[0]])

    def paused(self) -> set[str]:
        paused = set()
        for where, value in self._entries_in(key("P")):
            queue = text_of(value)
            if queue is not None and where == key("P", queue):
                paused.add(queue)
            else:
                self.problems.append(corrupt("queue", where.decode(errors="replace"), f"{value!r:.100} is paused"))
        return paused

    def pause(self, queue: str) -> bool:
        was = self._one(key("P", queue)) == queue.encode()
        self._write({key("P", queue): queue.encode()})
        return not was

    def resume(self, queue: str) -> bool:
        was = self._one(key("P", queue)) is not None
        self._write({}, [key("P", queue)])
        return was

    def seen(self, worker: str, lease: float, about: str | None) -> None:
        changed = self.changed
        alive, told = key("w", worker), key("W", worker)
        if lease > 0:
            seen = [worker, to_micros(self.now), to_micros(later(self.now, lease))]
            self._write({alive: json.dumps(seen).encode()} | ({} if about is None else {told: about.encode()}))
        else:
            self._write({}, [alive, told])
        self.changed = changed

    def _worker(self, where: bytes, value: bytes) -> tuple[str, int, int] | None:
        """Return a worker's name, and when it was seen and until when it counts as alive; None if it cannot be read."""
        try:
            name, seen, until = json.loads(value)
            if where != key("w", name) or type(until) is not int:
                raise ValueError(f"{value!r:.100} in place of a worker")
            from_micros(seen)
        except UNREADABLE as error:
            self.problems.append(corrupt("worker", where.decode(errors="replace"), error))
            return None
        return name, seen, until

    def workers(self) -> list[StoredWorker]:
        ids = [text_of(value) for _, value in self._entries_in(key("l"))]
        running = self.load([one for one in ids if one is not None]).values()
        known = [self._worker(where, value) for where, value in self._entries_in(key("w"))]
        found = []
        for name, seen, until in filter(None, known):
            if until <= to_micros(self.now):
                continue
            tasks = tuple(task.id for task in running if task.worker == name)
            about = self._one(key("W", name))
            try:
                told = None if about is None else about.decode()
                found.append(check_worker(StoredWorker(id=name, seen_at=from_micros(seen), running=tasks, about=told)))
            except UNREADABLE as error:
                self.problems.append(corrupt("worker", name, error))
        return sorted(found, key=lambda worker: worker.id)

    def forget_workers(self) -> None:
        for where, value in list(self._entries_in(key("w"))):
            seen = self._worker(where, value)
            if seen is None or seen[2] <= to_micros(self.now):
                self._write({}, [where, key("W") + where[len(key("w")) :]])
