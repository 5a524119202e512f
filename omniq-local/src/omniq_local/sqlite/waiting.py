"""Waiting without asking again and again: for work, and for the end of tasks.

A waiter writes its name into the table of waiters, in the same transaction that finds nothing for it: whatever
makes work for it afterwards sees the name, takes it off the table and wakes the waiter. For the datagram that is lost
there is a look now and then, which costs next to nothing while the file does not change.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from omniq.errors import StorageUnavailable
from omniq_local.sqlite import limits
from omniq_local.sqlite.connections import Job
from omniq_local.sqlite.database import Database
from omniq_local.sqlite.transaction import Transaction
from omniq_local.wake import Inbox, Signal

__all__ = ["Waiting"]

T = TypeVar("T")

LOOK_EVERY = 1.8
"""Seconds between two looks for changes without a notification: no caller is to wait for two seconds."""
LOOK_SPREAD = 0.05
"""By which part of it a look comes earlier or later, so that many do not look at the same moment."""
NAMED_FOR = 40.0
"""Seconds for which a name stays on the table: as long can a process that died take wake-ups from others."""
OVERDUE_PAUSE = 1_000_000
"""Microseconds. A schedule that is due but not fired (no scheduler runs) must not make idle workers spin."""
SPREAD = 0.001
"""Seconds for each who waits for one queue: they do not all look at the same moment when a task of it becomes due."""


class _Name:
    """A name on the table of waiters."""

    def __init__(self, topics: tuple[str, ...]) -> None:
        self.signal = Signal()
        self.topics = topics
        self.until = asyncio.get_running_loop().time() + NAMED_FOR / 2
        """By the loop's clock: when it should be written anew."""
        self.seen: int | None = None
        """The version of the file at the last look, which found nothing."""
        self.due_at: int | None = None
        """When the next task will be ready, as far as was known then."""
        self.run_at: int | None = None
        """When the next schedule fires, as far as was known then; or when to return, as one is overdue."""
        self.others = 0
        """How many wait for the same."""


class Waiting:
    """The waits of one storage.

    :param database: what it is open on.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._inbox: Inbox | None = None
        self._is_closed = False
        self._names: set[_Name] = set()
        # A worker waits for the same again and again; its name can stay until it is woken or takes work.
        self._kept: _Name | None = None

    def close(self) -> None:
        """Take our names off the table, end all waits, and stop listening."""
        self._is_closed = True
        self._kept = None
        for name in list(self._names):
            self._strike(name)
            name.signal.fire()
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None

    # The name that a worker leaves on the table between two waits

    @property
    def kept_token(self) -> int | None:
        """The token of the name that is on the table though no caller waits, which a claim with work removes."""
        return None if self._kept is None else self._kept.signal.token

    def forget_kept(self, token: int | None) -> None:
        """Note that a name is no longer on the table."""
        if self._kept is not None and self._kept.signal.token == token:
            self._forget(self._kept)
            self._kept = None

    def _strike(self, name: _Name) -> None:
        self._forget(name)
        if not name.signal.fired:
            self._database.post(partial(_unregister, name.signal.token))

    def _forget(self, name: _Name) -> None:
        self._names.discard(name)
        self._database.bell.discard(name.signal)

    def _keep(self, name: _Name) -> None:
        if name.signal.fired or self._kept is not None or self._inbox is None:
            self._strike(name)
        else:
            self._kept = name

    # Work

    async def for_work(self, queues: Sequence[str], timeout: float) -> None:
        """See :meth:`~omniq.storage.Storage.wait_for_work`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        names = json.dumps(list(queues))
        topics = (*(f"q:{queue}" for queue in dict.fromkeys(queues)), "s:")
        name, self._kept = self._kept, None
        if name is not None and name.topics != topics:
            self._strike(name)
            name = None
        try:
            while True:
                if name is None or loop.time() >= name.until:
                    former, name = name, None
                    name, there = await self._name_for_work(topics, names, former)
                else:
                    there = self._look_for_work(name, names)
                if there:
                    return
                now = self._database.now()
                pause = min(deadline - loop.time(), _until_next_look())
                for at in (name.due_at, name.run_at):
                    if at is not None and at > now:
                        pause = min(pause, (at - now) / 1e6 + SPREAD * name.others * random.random())
                if await name.signal.wait(pause) or loop.time() >= deadline:
                    return
                if name.run_at is not None and now < name.run_at <= self._database.now():
                    return
        finally:
            if name is not None:
                self._keep(name)

    async def _name_for_work(self, topics: tuple[str, ...], queues: str, former: _Name | None) -> tuple[_Name, bool]:
        name = _Name(topics)
        if former is not None:
            self._forget(former)
        former_token = None if former is None else former.signal.token
        there = await self._write_down(name, partial(_register_for_work, name, self._port(), queues, former_token))
        if there:
            # It was not written down.
            name.signal.fired = True
        return name, there

    async def _write_down(self, name: _Name, job: Job[T]) -> T:
        self._names.add(name)
        self._database.bell.add(name.signal)
        try:
            return await self._database.write(job)
        except BaseException:
            self._strike(name)
            raise

    def _look_for_work(self, name: _Name, queues: str) -> bool:
        def look(connection: sqlite3.Connection) -> bool:
            now = self._database.now()
            version: int = connection.execute("PRAGMA data_version").fetchone()[0]
            if version == name.seen and all(at is None or at > now for at in (name.due_at, name.run_at)):
                return False
            there = _look(name, queues, Transaction(connection, self._database.sql, now))
            name.seen = version
            return there

        return self._database.quick.read(look)

    # Ends

    async def for_end(self, ids: Sequence[str], timeout: float) -> set[str]:
        """See :meth:`~omniq.storage.Storage.wait_finished`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        wanted = json.dumps(list(ids))
        ended = self._ended(ids, wanted)
        if ended or timeout <= 0 or not ids:
            return ended
        topics = tuple(f"t:{task_id}" for task_id in dict.fromkeys(ids))
        name: _Name | None = None
        try:
            while True:
                if name is None or loop.time() >= name.until:
                    if name is not None:
                        self._strike(name)
                    name = _Name(topics)
                    live = await self._write_down(name, partial(_register_for_end, name, self._port(), wanted))
                    if ended := set(ids).difference(live):
                        return ended
                await name.signal.wait(min(deadline - loop.time(), _until_next_look()))
                if self._is_closed:
                    raise StorageUnavailable(f"{self._database.settings.shown} was closed")
                if (ended := self._ended(ids, wanted)) or loop.time() >= deadline:
                    return ended
                if name.signal.fired:
                    # Woken, yet all of them live: the ended one was made ready again.
                    self._forget(name)
                    name = None
        finally:
            if name is not None:
                self._strike(name)

    def _ended(self, ids: Sequence[str], wanted: str) -> set[str]:
        statement = self._database.sql["waiting.live"]
        live = self._database.quick.read(lambda c: json.loads(c.execute(statement, (wanted,)).fetchone()[0]))
        return set(ids).difference(live)

    def _port(self) -> int:
        if self._inbox is None:
            self._inbox = self._database.bell.new_inbox()
        return self._inbox.port


def _register(name: _Name, port: int, tx: Transaction) -> None:
    until = tx.now + int(NAMED_FOR * 1e6)
    tx.run("maintenance.dead_waiters", tx.now)
    tx.batch("waiting.register", [(topic, name.signal.token, port, until) for topic in name.topics])


def _until_next_look() -> float:
    return LOOK_EVERY * random.uniform(1 - LOOK_SPREAD, 1 + LOOK_SPREAD)


def _register_for_work(name: _Name, port: int, queues: str, former: int | None, tx: Transaction) -> bool:
    if former is not None:
        _unregister(former, tx)
    tx.fold()
    # What this has made ready is not to wake us, who are about to look.
    tx.complete()
    there = _look(name, queues, tx)
    if not there:
        _register(name, port, tx)
        name.others = (tx.one("waiting.others", name.topics[0]) or (0,))[0]
    return there


def _look(name: _Name, queues: str, tx: Transaction) -> bool:
    """Return whether there is something to do, and note when there will be."""
    given = {"queues": queues, "now": tx.now, "pause": OVERDUE_PAUSE}
    there, name.due_at, name.run_at, limited = tx.execute(tx.sql["waiting.prospects"], given).fetchone()
    if there or limited == "[]":
        return bool(there)
    there, at = limits.outlook(json.loads(limited), tx)
    name.due_at = min((one for one in (name.due_at, at) if one is not None), default=None)
    return there


def _register_for_end(name: _Name, port: int, wanted: str, tx: Transaction) -> list[str]:
    live: list[str] = tx.value("waiting.live", wanted)
    if len(live) == len(name.topics):
        _register(name, port, tx)
    return live


def _unregister(token: int, tx: Transaction) -> None:
    tx.run("waiting.unregister", token)
