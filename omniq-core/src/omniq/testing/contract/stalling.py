"""What holds while a client stands still in the middle of what it does: it holds up the others for a stated time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from omniq.errors import StorageUnavailable
from omniq.storage import Capability, Lease, Storage, TaskQuery
from omniq.task import Progress, StoredTask
from omniq.testing.actor import KEYS, SCHEDULE, SIDE_QUEUE
from omniq.testing.contract.actors import Actors
from omniq.testing.contract.base import Contract, needs, patient
from omniq.testing.contract.outages import BOUNDED_SECONDS
from omniq.testing.contract.steps import HELD, PROMPT, new_schedule, new_task, outcome, take
from omniq.testing.contract.stores import Stores

__all__ = ["StallContract"]

STALLS = 12
"""How often the client is stopped, unless it has been in the others' way before."""
MOMENTS = 0.02
"""Seconds within which it is stopped, at random."""


def what_others_do(store: Storage, running: StoredTask) -> dict[str, Callable[[], Coroutine[Any, Any, object]]]:
    """Return calls that touch what the client that stands still may be changing: its queue, keys, tasks and schedule.

    :param running: a task that is held.
    """
    held = Lease(running.id, running.delivery)
    return {
        "enqueue": lambda: store.enqueue([new_task(), *(new_task(unique=key) for key in KEYS)]),
        "claim": lambda: take(store, 5),
        "finish": lambda: store.finish([outcome("retry", running)]),
        "heartbeat": lambda: store.heartbeat("w", [held], HELD),
        "set_progress": lambda: store.set_progress({held: Progress(done=1)}),
        "recover": lambda: store.recover(10),
        "get": lambda: store.get([running.id]),
        "list_tasks": lambda: store.list_tasks(TaskQuery(limit=10)),
        "stats": store.stats,
        "workers": store.workers,
        "cancel": lambda: store.cancel([running.id]),
        "pause": lambda: store.pause(SIDE_QUEUE),
        "resume": lambda: store.resume(SIDE_QUEUE),
        "put_schedule": lambda: store.put_schedule(new_schedule(SCHEDULE)),
        "get_schedules": store.get_schedules,
        "due_schedules": lambda: store.due_schedules(10),
        "prune": lambda: store.prune(10),
    }


class StallContract(Contract):
    """A client that is stopped (SIGSTOP), and goes on later."""

    @patient(4 * BOUNDED_SECONDS)
    @needs(Capability.SHARED_BETWEEN_PROCESSES)
    async def test_a_client_that_stands_still_holds_up_no_other_for_longer_than_stated(
        self, stores: Stores, tmp_path: Path
    ) -> None:
        store = await stores.open()
        stated = store.limits.stalled_client
        bound = BOUNDED_SECONDS if stated is None else stated + PROMPT
        chance = random.Random(len(tmp_path.name))
        with Actors(stores.url, tmp_path) as actors:
            actor = actors.start("everything")
            for number in range(1, STALLS + 1):
                await actor.wrote("round", number)
                running = await self._running(store)
                await asyncio.sleep(chance.uniform(0, MOMENTS))
                actor.stop()
                try:
                    refused = await self._others(what_others_do(store, running), stated, bound)
                finally:
                    actor.go_on()
                rounds = len(actor.events("round"))
                await actor.wrote("round", rounds + 2)
                if refused:
                    # Once it has gone on, nothing of it is in the way.
                    await self._others(what_others_do(store, await self._running(store)), PROMPT, bound)
                    break

    async def _running(self, store: Storage) -> StoredTask:
        while True:
            await store.enqueue([new_task(priority=9)])
            claimed = await take(store)
            if claimed:
                return claimed[0]

    async def _others(
        self, verbs: dict[str, Callable[[], Coroutine[Any, Any, object]]], stated: float | None, bound: float
    ) -> bool:
        """Do all of it at once; return whether any call was refused.

        :param stated: for how many seconds a client that stands still can hold up others; None: as long as it does.
        :param bound: seconds after which each call must have ended.
        """
        calls = {name: asyncio.ensure_future(verb()) for name, verb in verbs.items()}
        await asyncio.wait(calls.values(), timeout=bound)
        waiting = [name for name, call in calls.items() if not call.done()]
        for call in calls.values():
            call.cancel()
        assert not waiting, f"held up for more than {bound:g} s"
        errors = {name: error for name, call in calls.items() if (error := call.exception()) is not None}
        if stated is not None:
            assert not errors, f"refused, though no other is held up for more than {stated:g} s"
        others = {name: error for name, error in errors.items() if not isinstance(error, StorageUnavailable)}
        assert not others, "errors other than StorageUnavailable"
        return bool(errors)
