"""Moves what the write-ahead log holds into the database file, on a thread apart from those that commit.

A checkpoint flushes to the disk and takes ten milliseconds or more; within a commit, where SQLite would do it by
itself, that is the better part of what a small commit costs. A log that is written without a pause never comes to its
end, so past a certain size the writers wait once for the last bit.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from omniq.errors import StorageUnavailable
from omniq.storage.escaping import get_logger
from omniq_local.io_threads import Operation
from omniq_local.sqlite.connecting import connect
from omniq_local.sqlite.settings import Settings

__all__ = ["Checkpoints"]

_log = get_logger("omniq.sqlite")

EVERY = 2000
"""About as many pages are written between two checkpoints."""
LONGEST = 16_000
"""Pages in the log from which the writers have to wait until it can begin anew."""
WAIT = 0.5
"""Seconds that this takes at most, where other processes read and write."""


class Checkpoints:
    """Decides when, and does it.

    :param settings: which file.
    :param turn: returns a turn among those who write in this process.
    :param log_is_lost: tells whether one of the process's connections has a log open that was replaced.
    """

    def __init__(
        self,
        settings: Settings,
        turn: Callable[[], AbstractContextManager[None]],
        log_is_lost: Callable[[], bool],
    ) -> None:
        self.lock = threading.Lock()
        """Held while it has a connection."""
        self._settings = settings
        self._turn = turn
        self._log_is_lost = log_is_lost
        self._written = 0
        self._under_way = False

    def due_after(self, rows: int) -> bool:
        """Take note of a commit; tell whether it is time for a checkpoint.

        :param rows: about how many rows it wrote.
        """
        # Guessed, and not guarded against races: the point is that it comes up now and then.
        self._written += 3 + rows // 2
        if self._written < EVERY or self._under_way:
            return False
        self._under_way = True
        return True

    def work(self, operations: list[Operation[None]]) -> None:
        """Do it, on the thread of an I/O thread."""
        self._written = 0
        try:
            self._checkpoint()
        except (sqlite3.Error, StorageUnavailable) as error:
            # Nothing is lost: the log is part of the database, and the next checkpoint may get through.
            _log.warning("cannot checkpoint %s, will try again: %s", self._settings.path, error)
        finally:
            self._under_way = False

    def _checkpoint(self) -> None:
        with self.lock:
            if self._log_is_lost():
                # Its index tells of what is not in the new one. The next writer sees to it.
                return
            connection = connect(self._settings, busy_timeout=WAIT)
            try:
                _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if pages > LONGEST:
                    with self._turn():
                        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            finally:
                connection.close()
