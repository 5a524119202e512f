"""The lock of a store: one for the threads of this process, one for all processes.

The system takes the second away from a process that dies, so that nobody waits for the dead; whoever waits for one that
is merely stopped gives up in time.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time

from omniq.errors import StorageUnavailable
from omniq_local.files.settings import Settings

__all__ = ["Gate"]


class Gate:
    """Lets one at a time in.

    :param settings: which store, and how long to wait.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = f"{settings.base}/lock"
        self._threads = threading.Lock()
        self._fd = -1
        self._inode = 0

    def open(self, fd: int) -> None:
        """Use a descriptor of the lock's file from now on."""
        self._fd = fd
        self._inode = os.fstat(fd).st_ino

    def close(self) -> None:
        """Close the descriptor when nobody of this process is in; from then on nobody comes in."""
        with self._threads:
            self.abandon()

    def abandon(self) -> None:
        """Close the descriptor, whoever is in. In the child of a fork that leaves the lock with the parent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def try_enter(self) -> bool:
        """Go in if nobody is in the way; tell whether it is so."""
        if not self._threads.acquire(blocking=False):
            return False
        try:
            entered = self._try_file()
        except BaseException:
            self._threads.release()
            raise
        if not entered:
            self._threads.release()
        return entered

    def enter(self) -> None:
        """Go in, and wait for that.

        :raises StorageUnavailable: if it takes too long.
        """
        patience = self._settings.lock_timeout
        deadline = time.monotonic() + patience
        if not self._threads.acquire(timeout=patience):
            raise StorageUnavailable(
                f"{self._settings.root} has been in use by another thread for more than {patience:g} s"
            )
        try:
            self._wait_for_file(deadline)
        except BaseException:
            self._threads.release()
            raise

    def leave(self) -> None:
        """Let the next one in."""
        try:
            if self._fd >= 0:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def _try_file(self) -> bool:
        if self._fd < 0:
            raise StorageUnavailable(f"{self._settings.shown} is not open: call open() first")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            there = os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            there = False
        if not there:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            raise StorageUnavailable(f"{self._settings.base} was removed or moved while in use; restart what uses it")
        return True

    def _wait_for_file(self, deadline: float) -> None:
        pause = 0.0003
        while not self._try_file():
            left = deadline - time.monotonic()
            if left <= 0:
                raise StorageUnavailable(
                    f"{self._settings.root} has been locked by another process for more than "
                    f"{self._settings.lock_timeout:g} s; see who is stopped (fuser {self._path}), or allow more "
                    "with ?lock_timeout="
                )
            # Jittered, so that several who wait do not try at the same moments.
            time.sleep(min(left, pause * random.uniform(0.5, 1.5)))
            pause = min(pause * 1.3, 0.004)
