"""The part of the contract that is about limits (:mod:`omniq.limit`).

It is for the stores that hold them: those whose :attr:`StorageLimits.task_limits` says so. How they are kept is said in
:mod:`omniq.storage.limit_transitions`; what holds on each of them:

1. **Slots are running tasks.** A task takes a slot of its queue, of its key and of its named limit in the step of
   ``claim`` and frees it in the step in which it stops running: ``finish``, or ``recover`` once its lease has run out.
   What is scheduled, ready or blocked holds none. No claim makes more tasks run than a limit lets.
2. **Rates count starts**, by the store's clock: in any span of ``per`` seconds at most ``count + burst - 1``. A start
   that ended in ``Released`` does not count; one that was lost does. A clock that is put back stops a rate for at most
   ``per / count`` seconds, that of a key or a name until the next ``prune`` besides.
3. **Nothing is handed out and put back.** A task that no limit lets start stays where it is, and ``claim`` costs the
   same however many wait.
4. **No idle slot.** Where all limits of a ready task have room, a claim of its queue takes it, or one before it;
   ``wait_for_work`` returns when a slot is freed, a token falls due, or a limit is raised or deleted, and does not
   return for tasks that a limit holds back.
5. **Fairness.** Within a queue and a priority, keys get starts in proportion to their weights as long as they have
   ready tasks and their limits allow it; tasks without a key and named limit count as one key of weight 1. A key that
   was idle stands beside the others, neither before nor behind. Within a line the order is that of the contract.
6. **Limits are stored**, and changed by compare-and-set as schedules are. Raising one wakes what it held back; lowering
   one stops nothing that runs.
7. A queue without limits in which no task has a key or a named limit costs what it costs without them.
8. **Debounce.** In one step the task that waits with the same ``unique`` key, and was debounced, ends as cancelled with
   a :class:`~omniq.task.TaskError` of type ``Superseded`` that names the new one, and the new one takes the key with
   ``run_at = min(now + wait, first + max_wait)``, ``first`` being when the first of them was enqueued. A debounced task
   lets its key go when it is started. Where a task that is not debounced has the key, the new one is not stored.
9. **A limit that cannot be read lets nothing start.** An :class:`~omniq.limit.UnreadableLimit` of revision 0 stands in
   its place: no task of its queue, or with its name, is claimed until it is stored anew or deleted; those of others go
   on. It is logged as an error, and ``check`` names it. Lines, slots and rates that cannot be read hold nothing back:
   they follow from the tasks, and a rate begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from omniq.errors import ConfigurationError
from omniq.limit import Limit, LimitUsage, Scope
from omniq.task import StoredTask

__all__ = ["LimitStorage", "Line", "no_limits"]

Line: TypeAlias = tuple[str, str | None, str | None]
"""What the ready tasks of a line have in common: their queue, key and named limit."""


class LimitStorage:
    """The verbs of a store that are about limits. The defaults are those of a store that holds none."""

    async def put_limit(self, limit: Limit, expected_revision: int | None = None) -> Limit | None:
        """Store the limit of a queue, or a named one, replacing the one with the same id.

        :param limit: what to store.
        :param expected_revision: as for ``put_schedule``.
        :return: as ``put_schedule``.
        """
        raise no_limits(self)

    async def get_limits(self, ids: Sequence[str] | None = None) -> list[Limit]:
        """Return limits by id, in order, leaving out those that are not there; without ids all, sorted by id.

        :param ids: of limits, see :attr:`omniq.limit.Limit.id`; None: all.
        """
        raise no_limits(self)

    async def delete_limit(self, limit_id: str) -> bool:
        """Remove a limit; what it held back goes on.

        :param limit_id: see :attr:`omniq.limit.Limit.id`.
        :return: whether it was there.
        """
        raise no_limits(self)

    async def get_limit_usage(self, scopes: Sequence[Scope] | None = None) -> list[LimitUsage]:
        """Return how many tasks run under limits, when their rates let the next start, and what they hold back.

        It costs by the number of scopes and of the keys that are held back, not by that of the tasks.

        :param scopes: each a queue, a key of a queue, or a name; None: those of all stored limits, sorted by the
            limits' ids.
        :return: as many as scopes, in order, also for those that nothing limits.
        """
        raise no_limits(self)

    async def lost_lines(self, lines: Sequence[Line]) -> list[StoredTask]:
        """Return the first ready task of each of some lines that has any, but is no longer found by claims.

        ``check`` asks, as only damage leaves a line so. Another task that is made ready in a line puts it right.

        :param lines: each a queue, a key and a named limit.
        :return: none of a store that keeps no lines, as the default does.
        """
        return []


def no_limits(storage: LimitStorage) -> ConfigurationError:
    """Return the error that a store holds no limits, which names it.

    :param storage: of the store.
    """
    return ConfigurationError(
        f"{type(storage).__name__} holds no limits: leave out key=, limit= and debounce= and declare no queue.limit, "
        "or take a store that holds them, such as sqlite://, file://, redis://, postgresql:// or nats://"
    )
