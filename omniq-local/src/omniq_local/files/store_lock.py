"""The lock of a folder: one for the threads of this process, one for all processes.

The system releases the second when its process dies, so that no process waits for a dead one; a process that waits for
one that is merely stopped gives up in time.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

from omniq.errors import StorageUnavailable
from omniq_local.files.preparation import gone
from omniq_local.files.settings import Settings

__all__ = ["Replaced", "StoreLock"]


class Replaced(Exception):
    """Where the store was, there is another folder now."""


class _ThreadLock:
    """Held by one thread of this process: by those of all stores that are open on one folder.

    Were there one for each store, their threads would find each other by trying the lock's file again and again. As the
    interpreter changes threads mostly while one reads or writes, which is while it is in, the others could find it
    locked each time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[int] = set()

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        return len(self._waiting)

    def try_acquire(self) -> bool:
        # Those who wait come first: without that, a thread that asks without a pause would keep them out.
        return not self._waiting and self._lock.acquire(blocking=False)

    def acquire(self, timeout: float) -> bool:
        thread = threading.get_ident()
        self._waiting.add(thread)
        try:
            return self._lock.acquire(timeout=timeout)
        finally:
            self._waiting.discard(thread)

    def release(self) -> None:
        self._lock.release()


_thread_locks: WeakValueDictionary[tuple[int, str], _ThreadLock] = WeakValueDictionary()
"""By process, as that of a parent may be held by a thread that its child does not have, and folder."""


class StoreLock:
    """Lets one at a time in.

    :param settings: which store, and how long to wait.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = f"{settings.base}/lock"
        self._threads = _thread_locks.setdefault((os.getpid(), self._path), _ThreadLock())
        self._fd = -1
        self._identity: tuple[int, int] | None = None
        self.renew: Callable[[], None] | None = None
        """Called by the one thread that may go in, if the folder was replaced: opens the other one."""

    @property
    def waiting(self) -> int:
        """How many threads of this process wait to come in, with this store or another one on its folder."""
        return self._threads.waiting

    def open(self, fd: int) -> None:
        """Use a descriptor of the lock's file from now on."""
        if self._fd >= 0:
            # Under the same number, as other threads may be about to use it.
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)
        else:
            self._fd = fd
        self._identity = _identity(os.fstat(self._fd))

    def close(self) -> None:
        """Close the descriptor when no thread of this process is in; from then on none comes in."""
        self._threads.acquire(threading.TIMEOUT_MAX)
        try:
            self.abandon()
        finally:
            self._threads.release()

    def abandon(self) -> None:
        """Close the descriptor, also under a thread. In the child of a fork that leaves the lock with the parent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def try_enter(self) -> bool:
        """Go in if the way is free; return whether it was.

        :raises Replaced: if there is another folder now.
        """
        if not self._threads.try_acquire():
            return False
        try:
            entered = self._try_file()
        except BaseException:
            self._threads.release()
            raise
        if not entered:
            self._threads.release()
        return entered

    def enter(self, since: float) -> None:
        """Go in, and wait for that; if the folder was replaced, into the other one.

        :param since: when the waiting began, by the monotonic clock.
        :raises StorageUnavailable: if it takes too long, or there is no folder any more.
        """
        patience = self._settings.lock_timeout
        deadline = since + patience
        if not self._threads.acquire(max(0.0, deadline - time.monotonic())):
            raise StorageUnavailable(
                f"{self._settings.root} has been in use by another thread for more than {patience:g} s"
            )
        try:
            try:
                self._wait_for_file(deadline)
            except Replaced:
                if self.renew is None:
                    raise
                self.renew()
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
            found = _identity(os.stat(self._path))
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found != self._identity:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            raise gone(self._settings) if found is None else Replaced
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


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
