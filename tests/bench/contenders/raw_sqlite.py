"""The plain ``sqlite3`` module doing the least that a durable queue with leases and results must write.

WAL and ``synchronous=NORMAL``, as OmniQ has it. A task is a row; a claim notes until when it holds; the end takes the
row out and puts a result in. One transaction for each batch of each of the three.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from tests.bench.contenders.contender import Contender, Setting, polling

__all__ = ["RawSqlite"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS task (seq INTEGER PRIMARY KEY, payload TEXT NOT NULL, leased_until REAL);
CREATE INDEX IF NOT EXISTS ready ON task (seq) WHERE leased_until IS NULL;
CREATE TABLE IF NOT EXISTS result (seq INTEGER PRIMARY KEY, value TEXT NOT NULL);
"""
INSERT = "INSERT INTO task (payload) VALUES (?)"
CLAIM = """
UPDATE task SET leased_until = ?
WHERE seq IN (SELECT seq FROM task WHERE leased_until IS NULL ORDER BY seq LIMIT ?)
RETURNING seq, payload
"""


class RawSqlite(Contender):
    """sqlite3, with ``setting.batch`` tasks a transaction."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._connection = sqlite3.connect(
            setting.file, isolation_level=None, check_same_thread=False, timeout=30, cached_statements=32
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(SCHEMA)

    def enqueue(self, number: int) -> None:
        self._connection.execute(INSERT, (_payload(number),))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        batch = self.setting.batch
        for start in range(0, len(numbers), batch):
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(INSERT, [(_payload(number),) for number in numbers[start : start + batch]])
            self._connection.execute("COMMIT")

    async def stored(self) -> int:
        (count,) = self._connection.execute("SELECT count(*) FROM result").fetchone()
        return int(count)

    def worker(self) -> AbstractAsyncContextManager[object]:
        return polling(self._step, pause=0.001)

    def _step(self) -> bool:
        connection = self._connection
        claimed = connection.execute(CLAIM, (time.time() + 30, self.setting.batch)).fetchall()
        if not claimed:
            return False
        results = []
        for seq, payload in claimed:
            (number,), _ = json.loads(payload)
            self.marks.began(number)
            results.append((seq, json.dumps(number)))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("DELETE FROM task WHERE seq = ?", [(seq,) for seq, _ in claimed])
        connection.executemany("INSERT INTO result (seq, value) VALUES (?, ?)", results)
        connection.execute("COMMIT")
        return True


def _payload(number: int) -> str:
    return json.dumps([[number], {}])
