"""A queue's limits: declared in code, stored by compare-and-set, read and changed at run time."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from omniq._client.admin import Control
from omniq._runtime.sync import sync
from omniq._tasks.options import check_queue
from omniq.limit import Limit, LimitUsage, Rate, UnreadableLimit, limit_id
from omniq.storage import Storage
from omniq.storage.escaping import get_logger, shown
from omniq.storage.limits import no_limits

__all__ = ["Limits", "reconcile_limits", "unequal_limits"]

_log = get_logger("omniq.worker")

TRIES = 20
"""How often a change is tried again when the limit was changed meanwhile."""


class Limits(Control):
    """The limiting part of a :class:`~omniq.TaskQueue`."""

    declared_limits: dict[str, Limit]

    def limit(
        self,
        queue: str | None = None,
        *,
        name: str | None = None,
        concurrency: int | None = None,
        rate: Rate | None = None,
        per_key: Limit | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Limit:
        """Declare a limit, of a queue or with a name. Workers store it when they start; it holds for all workers then.

        :param queue: whose tasks it limits, whatever they are enqueued with.
        :param name: that tasks name with ``using(limit=…)``, whichever their queues; instead of ``queue``.
        :param concurrency: how many may run at a time; None: any number.
        :param rate: how many may start in a time, such as ``Rate(100, per=60)``; None: any number.
        :param per_key: what holds for the tasks of each ``using(key=…)`` of the queue by themselves.
        :param weights: by key: its share of the queue, compared with 1 for a key that is not named.
        :return: the limit as it is declared.
        :raises ValueError: if a value cannot be used, or another limit is declared for the same.
        """
        made = Limit(
            queue=None if queue is None else check_queue(queue),
            name=name,
            concurrency=concurrency,
            rate=rate,
            per_key=per_key,
            weights={} if weights is None else dict(weights),
            declared=True,
        )
        if self.declared_limits.setdefault(made.id, made) != made:
            raise ValueError(f"another limit of {_called(made)} is declared already; declare one with all that holds")
        return made

    async def aput_limit(self, limit: Limit, *, expected_revision: int | None = None) -> Limit | None:
        """Store a limit now, in place of the one of the same queue or name; it holds from the next claim on.

        What is stored so stays when workers start that declare another one, until it is removed by ``unlimit``.

        :param limit: with a ``queue`` or a ``name``.
        :param expected_revision: store only if the stored one has this revision (0: only if there is none); None: in
            any case.
        :return: what is stored; None if the expected revision did not match.
        :raises ConfigurationError: if the queue's store holds no limits.
        """
        stored = await (await self._limit_storage()).put_limit(evolve(limit, declared=False), expected_revision)
        self._acted("put_limit", limit.id, stored is not None)
        return stored

    put_limit = sync(aput_limit)

    async def alimits(self) -> list[Limit]:
        """Return the stored limits, sorted by id.

        In place of one that cannot be read stands an :class:`~omniq.limit.UnreadableLimit`, which lets no task start.

        :raises ConfigurationError: if the queue's store holds no limits.
        """
        return await (await self._limit_storage()).get_limits()

    limits = sync(alimits)

    async def alimit_usage(self) -> list[LimitUsage]:
        """Return how the stored limits stand, sorted by id: how many tasks run, and what is held back.

        :return: one for each stored limit; none if the queue's store holds no limits.
        """
        storage = await self._storage()
        return await storage.get_limit_usage() if storage.limits.task_limits else []

    limit_usage = sync(alimit_usage)

    async def aunlimit(self, queue: str | None = None, *, name: str | None = None) -> bool:
        """Remove the stored limit of a queue, or a named one; what it held back goes on.

        One that is declared in code is stored again by the next worker that starts.

        :return: whether there was one.
        :raises ConfigurationError: if the queue's store holds no limits.
        """
        wanted = limit_id(queue, name)
        return self._acted("unlimit", wanted, await (await self._limit_storage()).delete_limit(wanted))

    unlimit = sync(aunlimit)

    async def _limit_storage(self) -> Storage:
        storage = await self._storage()
        if not storage.limits.task_limits:
            raise no_limits(storage)
        return storage


async def reconcile_limits(queue: Limits, storage: Storage, app: str) -> None:
    """Make the stored limits that were declared in code equal to the code's.

    :raises ConfigurationError: if there are some, and the store holds no limits.
    """
    if not storage.limits.task_limits:
        if queue.declared_limits:
            raise no_limits(storage)
        return
    for declared in queue.declared_limits.values():
        await _store(storage, evolve(declared, app=app))
    for stored in await storage.get_limits():
        if stored.declared and stored.app == app and stored.id not in queue.declared_limits:
            await storage.delete_limit(stored.id)
            _log.info("limit of %s is no longer declared by %s, and was removed", _called(stored), app)


async def _store(storage: Storage, limit: Limit) -> None:
    for _ in range(TRIES):
        found = await storage.get_limits([limit.id])
        stored = found[0] if found else None
        if isinstance(stored, UnreadableLimit):
            _log.warning("limit of %s could not be read: what the code declares takes its place", _called(limit))
        elif stored is not None:
            if evolve(stored, revision=0) == limit:
                return
            differs = _values(stored) != _values(limit)
            if not stored.declared:
                if differs:
                    _log.warning(
                        "limit of %s was set at run time and differs from what the code declares: the former holds "
                        "until it is removed (queue.unlimit, omniq limits delete)",
                        _called(limit),
                    )
                return
            if differs and stored.app != limit.app:
                _log.warning(
                    "limit of %s is declared by %s and by %s, and not alike: the latter, the last to start, holds",
                    _called(limit),
                    stored.app,
                    limit.app,
                )
        if await storage.put_limit(limit, 0 if stored is None else stored.revision) is not None:
            return


async def unequal_limits(queue: Limits, storage: Storage) -> list[str]:
    """Return of each declared limit that is stored otherwise what holds instead, in words."""
    if not storage.limits.task_limits or not queue.declared_limits:
        return []
    found = []
    for stored in await storage.get_limits(list(queue.declared_limits)):
        if isinstance(stored, UnreadableLimit):
            continue  # Storage.check names it
        if _values(stored) != _values(queue.declared_limits[stored.id]):
            whose = f"what {stored.app} declares" if stored.declared else "what was set at run time"
            found.append(f"the limit of {_called(stored)} is not what the code declares: {whose} is stored, and holds")
    return found


def _values(limit: Limit) -> Limit:
    return evolve(limit, declared=False, app=None, revision=0)


def _called(limit: Limit) -> str:
    return f"queue {shown(limit.queue)}" if limit.name is None else f"the name {shown(limit.name)}"
