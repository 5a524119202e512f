"""psycopg doing the least that a durable queue with leases and results must write, at the server's default durability.

A task is a row; a claim notes until when it holds; its end takes the row out and puts a result in. One statement and
one commit for each batch of each of the three.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import psycopg

from tests.bench.contenders.contender import Contender, Setting, polling

__all__ = ["RawPostgres", "RawPostgresCopy"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS task (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text NOT NULL, leased_until timestamptz
);
CREATE INDEX IF NOT EXISTS ready ON task (seq) WHERE leased_until IS NULL;
CREATE TABLE IF NOT EXISTS result (seq bigint PRIMARY KEY, value text NOT NULL);
"""
INSERT = "INSERT INTO task (payload) SELECT unnest(%s::text[])"
CLAIM = """
WITH next AS MATERIALIZED (
    SELECT seq FROM task WHERE leased_until IS NULL ORDER BY seq LIMIT %s FOR UPDATE SKIP LOCKED
)
UPDATE task SET leased_until = now() + interval '30 s' FROM next WHERE task.seq = next.seq
RETURNING task.seq, task.payload
"""
FINISH = """
WITH done AS (SELECT unnest(%s::bigint[]) AS seq, unnest(%s::text[]) AS value),
     gone AS (DELETE FROM task USING done WHERE task.seq = done.seq RETURNING task.seq)
INSERT INTO result SELECT done.seq, done.value FROM done JOIN gone USING (seq)
"""


class RawPostgres(Contender):
    """psycopg, with ``setting.batch`` tasks a statement."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._connection = psycopg.connect(setting.url, autocommit=True)
        self._connection.execute(SCHEMA)
        self._aconnection: psycopg.AsyncConnection | None = None

    def enqueue(self, number: int) -> None:
        self._connection.execute(INSERT, ([_payload(number)],))

    async def aenqueue(self, number: int) -> None:
        if self._aconnection is None:
            self._aconnection = await psycopg.AsyncConnection.connect(self.setting.url, autocommit=True)
        await self._aconnection.execute(INSERT, ([_payload(number)],))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        batch = self.setting.batch
        for start in range(0, len(numbers), batch):
            self._insert([_payload(number) for number in numbers[start : start + batch]])

    def _insert(self, payloads: list[str]) -> None:
        self._connection.execute(INSERT, (payloads,))

    async def stored(self) -> int:
        row = self._connection.execute("SELECT count(*) FROM result").fetchone()
        return int(row[0]) if row else 0

    def worker(self) -> AbstractAsyncContextManager[object]:
        return polling(self._step, pause=0.001)

    def _step(self) -> bool:
        claimed = self._connection.execute(CLAIM, (self.setting.batch,)).fetchall()
        if not claimed:
            return False
        results = []
        for _, payload in claimed:
            (number,), _ = json.loads(payload)
            self.marks.began(number)
            results.append(json.dumps(number))
        self._connection.execute(FINISH, ([seq for seq, _ in claimed], results))
        return True

    async def close(self) -> None:
        self._connection.close()
        if self._aconnection is not None:
            await self._aconnection.close()


class RawPostgresCopy(RawPostgres):
    """The same, with COPY for many tasks."""

    def _insert(self, payloads: list[str]) -> None:
        with self._connection.cursor() as cursor, cursor.copy("COPY task (payload) FROM STDIN") as copy:
            for payload in payloads:
                copy.write_row((payload,))


def _payload(number: int) -> str:
    return json.dumps([[number], {}])
