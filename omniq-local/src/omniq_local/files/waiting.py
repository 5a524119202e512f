"""Waiting without asking again and again: for work, and for the end of tasks.

A waiter registers under the same lock under which it found nothing, and is woken by the process that changes that.
For the datagram that is lost there is a look at the store's generation now and then: a read of some bytes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial

from omniq.task import TaskState
from omniq_local.files import limits
from omniq_local.files.claiming import time_of
from omniq_local.files.folder import Folder
from omniq_local.files.queues import DUE
from omniq_local.files.reading import ended
from omniq_local.files.schedules import outlook
from omniq_local.files.transaction import Transaction
from omniq_local.files.waiter_table import FOR_END, FOR_WORK, VALID
from omniq_local.wake import Inbox, Signal

__all__ = ["Waiting"]

LOOK_EVERY = 1.5
"""Seconds between two looks for changes without a notification, give or take a seventh."""
OVERDUE_SCHEDULE_PAUSE = 1.0
"""Seconds. A schedule that is due but not fired (no scheduler runs) must not make idle workers spin."""
SPREAD = 0.005
"""Seconds: those who wait do not all look at the same moment when a task becomes due."""
READY, SCHEDULED = TaskState.READY.value, TaskState.SCHEDULED.value


class _Name:
    """A waiter."""

    def __init__(self, kind: int, topics: Sequence[str]) -> None:
        self.signal = Signal()
        self.kind = kind
        self.topics = topics
        self.written_until = 0.0
        """By the loop's clock: when the entry in the table should be written anew."""
        self.generation = -1
        """Of the store at the last look, which found nothing."""
        self.next_at: int | None = None
        """When there will be something, as far as was known then."""
        self.overdue: frozenset[tuple[str, int]] | None = None
        """The schedules, id and revision, that were due at the first look."""


class Waiting:
    """The waits of one storage.

    :param folder: what it is open on.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._inbox: Inbox | None = None
        self._waiting: set[_Name] = set()
        self._closed = False

    def close(self) -> None:
        """Wake all waiters, and stop listening."""
        self._closed = True
        for name in self._waiting:
            name.signal.fire()
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None

    async def for_work(self, queues: Sequence[str], timeout: float) -> None:
        """See :meth:`~omniq.storage.Storage.wait_for_work`."""
        name = _Name(FOR_WORK, tuple(queues))
        deadline = asyncio.get_running_loop().time() + timeout
        await self._wait(name, partial(_work_is_there, queues, name), deadline)

    async def for_end(self, ids: Sequence[str], timeout: float) -> set[str]:
        """See :meth:`~omniq.storage.Storage.wait_finished`."""
        if not ids:
            return set()
        found: set[str] = set()

        def look(transaction: Transaction) -> bool:
            found.update(ended(ids, transaction))
            return bool(found)

        deadline = asyncio.get_running_loop().time() + timeout
        await self._wait(_Name(FOR_END, tuple(ids)), look, deadline, small=len(ids) <= 100)
        return found

    async def _wait(
        self, name: _Name, look: Callable[[Transaction], bool], deadline: float, *, small: bool = True
    ) -> None:
        loop, folder, bell = asyncio.get_running_loop(), self._folder, self._folder.waiter_table.bell
        began = loop.time()
        bell.add(name.signal)
        self._waiting.add(name)
        try:
            while not self._closed:
                fired = name.signal.fired
                if fired:
                    # Struck from the table by the process that fired.
                    bell.discard(name.signal)
                    name.signal = Signal()
                    bell.add(name.signal)
                if fired or loop.time() >= name.written_until or self._may_have_changed(name):
                    job = partial(self._look, name, self._port(), look)
                    if await folder.run(job, small=small):
                        return
                    name.written_until = loop.time() + VALID / 2
                left = deadline - loop.time()
                if left <= 0:
                    return
                pause = min(left, LOOK_EVERY * random.uniform(0.86, 1.14))
                if name.next_at is not None:
                    pause = min(pause, max((name.next_at - folder.now()) / 1e6, 0.0) + SPREAD * random.random())
                if name.overdue:
                    deadline = min(deadline, began + OVERDUE_SCHEDULE_PAUSE)
                    pause = min(pause, max(deadline - loop.time(), 0.0))
                await name.signal.wait(pause)
        finally:
            self._waiting.discard(name)
            bell.discard(name.signal)
            if not name.signal.fired and name.written_until and not self._closed:
                folder.post(lambda transaction: folder.waiter_table.strike(name.signal.token))

    def _may_have_changed(self, name: _Name) -> bool:
        if name.next_at is not None and name.next_at <= self._folder.now():
            return True
        return self._folder.peek_generation() != name.generation

    def _look(self, name: _Name, port: int, look: Callable[[Transaction], bool], transaction: Transaction) -> bool:
        if look(transaction):
            return True
        name.generation = self._folder.control.generation
        self._folder.waiter_table.write(name.signal.token, port, name.kind, name.topics)
        return False

    def _port(self) -> int:
        if self._inbox is None:
            self._inbox = Inbox(self._folder.waiter_table.bell)
        return self._inbox.port


def _work_is_there(queues: Sequence[str], name: _Name, transaction: Transaction) -> bool:
    due, upcoming = outlook(transaction)
    if name.overdue is None:
        name.overdue = due
    elif due - name.overdue:
        return True
    if transaction.folder.flows().has_due(DUE, transaction.now):
        return True
    times = [upcoming]
    for each in dict.fromkeys(queues):
        queue = transaction.queue(each)
        if queue.paused:
            continue
        first = queue.state_folders[SCHEDULED].peek() if queue.counts[SCHEDULED] > 0 else None
        due_at = None if first is None else time_of(first)
        if transaction.folder.has_limits and transaction.folder.limits().has_lane(each):
            is_there, due_at = limits.outlook(queue, due_at, transaction)
        else:
            is_there = queue.counts[READY] > 0 or (due_at is not None and due_at <= transaction.now)
        if is_there:
            return True
        times.append(due_at)
    name.next_at = min((at for at in times if at is not None), default=None)
    return False
