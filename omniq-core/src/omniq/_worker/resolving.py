"""Results of other tasks become arguments: read from the store before the attempt starts, and so before its timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from omniq._tasks.payloads import Admitted, Codec
from omniq._worker.attempt import Attempt, failed
from omniq._worker.executors import TaskExecutor
from omniq.errors import StorageError
from omniq.storage import Storage
from omniq.task import Outcome, Reference, Released, StoredTask

__all__ = ["Resolver", "parents_of"]

READ_AT_ONCE = 100
"""Records that one call to the store reads."""
AGAIN_SECONDS = 1.0
"""After which a task is tried again whose arguments could not be read, as the store was away."""


async def parents_of(storage: Storage, references: tuple[Reference, ...]) -> Mapping[str, StoredTask | None]:
    """Return the records of the tasks whose results others take.

    :param storage: an open storage.
    :param references: of one task.
    """
    ids = list(dict.fromkeys(one for reference in references for one in reference.ids))
    found: dict[str, StoredTask | None] = {}
    for start in range(0, len(ids), READ_AT_ONCE):
        part = ids[start : start + READ_AT_ONCE]
        found.update(zip(part, await storage.get(part), strict=True))
    return found


class Resolver:
    """Gives attempts the results that are among their arguments, and then to their executors.

    :param storage: the worker's open storage.
    :param codec: checks and encodes.
    :param on_done: told of the outcome of an attempt that cannot be made.
    """

    def __init__(self, storage: Storage, codec: Codec, on_done: Callable[[Attempt, Outcome], None]) -> None:
        self._storage = storage
        self._codec = codec
        self._on_done = on_done
        # The loop itself keeps only weak references to its tasks.
        self._tasks: set[asyncio.Task[None]] = set()

    def resolve(self, attempt: Attempt, task: Admitted, executor: TaskExecutor) -> None:
        """Have an attempt run as soon as its arguments are there.

        :param attempt: which is held already, so that its lease is renewed meanwhile.
        :param task: its task.
        :param executor: where it will run; meanwhile it counts as if it waited there.
        """
        executor.load += 1
        running = asyncio.ensure_future(self._resolve(attempt, task, executor))
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

    async def _resolve(self, attempt: Attempt, task: Admitted, executor: TaskExecutor) -> None:
        try:
            parents = await parents_of(self._storage, task.header.references)
            attempt.given = self._codec.resolved(task, parents)
        except StorageError:
            executor.load -= 1
            self._on_done(attempt, Released(id=task.id, delivery=task.delivery, delay=AGAIN_SECONDS))
        except Exception as error:  # whatever it is, it ends this attempt
            executor.load -= 1
            self._on_done(attempt, failed(attempt, error))
        else:
            executor.load -= 1
            executor.submit(attempt)
