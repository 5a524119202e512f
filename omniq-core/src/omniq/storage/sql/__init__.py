"""The primitives of a transaction in SQL, in one text for SQLite, PostgreSQL, MySQL and others.

A backend derives from :class:`SqlTx`, names its types and its parameter mark, and begins the transaction. Everything
goes through a cursor of the Python Database API (PEP 249).
"""

from __future__ import annotations

from collections import defaultdict

from omniq.storage.corrupt_records import corrupt
from omniq.storage.primitives import read_unlisted
from omniq.storage.sql.flows import SqlFlows
from omniq.storage.sql.limits import SqlLimits
from omniq.storage.sql.schedules import SqlSchedules
from omniq.storage.sql.tasks import SqlTasks
from omniq.storage.states import later
from omniq.storage.times import from_micros, to_micros
from omniq.storage.validation import UNREADABLE, check_worker, is_text
from omniq.storage.values import StoredWorker

__all__ = ["SqlTx"]


class SqlTx(SqlTasks, SqlFlows, SqlLimits, SqlSchedules):
    """The primitives of one transaction, on tables of a namespace.

    :param cursor: a cursor of the driver's, in the transaction.
    :param namespace: the tables are named after it.
    :param now: the store's clock, unless :attr:`clock` has the database's.
    :param write: whether the transaction may write: one that only reads locks nothing.
    """

    def verify(self) -> None:
        read_unlisted(self)

    def paused(self) -> set[str]:
        found = {queue for (queue,) in self.rows("SELECT queue FROM {paused}")}
        paused = set(filter(is_text, found))
        self.problems += [corrupt("queue", queue, "its name is no text") for queue in found - paused]
        return paused

    def pause(self, queue: str) -> bool:
        return queue not in self.paused() and bool(self.change("INSERT INTO {paused} (queue) VALUES (%s)", queue))

    def resume(self, queue: str) -> bool:
        return bool(self.change("DELETE FROM {paused} WHERE queue = %s", queue))

    def seen(self, worker: str, lease: float, about: str | None) -> None:
        changed = self.changed
        values = {"seen_at": to_micros(self.now), "until": to_micros(later(self.now, lease))}
        told = values if about is None else {**values, "about": about}
        columns = ", ".join(f"{name} = %s" for name in told)
        if lease <= 0:
            self.change("DELETE FROM {worker} WHERE id = %s", worker)
        elif not self.change(f"UPDATE {{worker}} SET {columns} WHERE id = %s", *told.values(), worker):
            insert = "INSERT INTO {worker} (seen_at, until, id, about) VALUES (%s, %s, %s, %s)"
            self.change(insert, *values.values(), worker, about)
        self.changed = changed

    def workers(self) -> list[StoredWorker]:
        alive = self.rows("SELECT id, seen_at, about FROM {worker} WHERE until > %s", to_micros(self.now))
        running: dict[str, list[str]] = defaultdict(list)
        for worker, task_id in self.rows("SELECT worker, id FROM {task} WHERE state = 3 ORDER BY seq"):
            if is_text(task_id):
                running[worker].append(task_id)
        found = []
        for worker, seen_at, about in alive:
            try:
                tasks = tuple(running[worker])
                shown = StoredWorker(id=worker, seen_at=from_micros(seen_at), running=tasks, about=about)
                found.append(check_worker(shown))
            except UNREADABLE as error:
                self.problems.append(corrupt("worker", worker, error))
        return sorted(found, key=lambda worker: worker.id)

    def forget_workers(self) -> None:
        self.change("DELETE FROM {worker} WHERE until <= %s", to_micros(self.now))
