"""The SQLite storage.

A call's way through these rooms: ``storage`` makes a job of it; ``database`` runs the job in a transaction, here and
now or on a thread (``channels``, ``io_threads``); the job is a function of ``enqueueing``, ``claiming``, ``finishing``,
``control``, ``scheduling`` or ``upkeep`` that talks to the ``transaction``, in the ``statements`` of ``sql/*.sql``;
``rows`` makes tasks of what it finds. ``joining`` runs such jobs in a transaction of the caller's.
"""

from __future__ import annotations

from omniq_local.sqlite.storage import SQLiteStorage

__all__ = ["SQLiteStorage"]
