"""What holds while the store cannot be used, and once it can again: typed errors, soon, and nothing by halves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from omniq.errors import StorageError, StorageUnavailable
from omniq.storage import Lease, Storage, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Progress, StoredTask, TaskState
from omniq.testing.contract.base import Contract, needs_fixtures
from omniq.testing.contract.scheduling import LONG_AGO, put
from omniq.testing.contract.steps import HELD, add, new_schedule, new_task, outcome, states, take
from omniq.testing.contract.stores import Stores
from omniq.testing.waiting import await_until

__all__ = ["OutageContract"]

BOUNDED_SECONDS = 40.0
"""What the contract calls a bounded time, 30 seconds, and some for a busy machine."""


def every_verb(store: Storage, task: StoredTask) -> dict[str, Callable[[], Coroutine[Any, Any, object]]]:
    """Return a call of each method that asks the store something.

    :param task: one that is running.
    """
    held = Lease(task.id, task.delivery)
    return {
        "now": store.now,
        "enqueue": lambda: store.enqueue([new_task(queue="during")]),
        "claim": lambda: store.claim({"during": 1}, worker="w", lease=HELD),
        "finish": lambda: store.finish([outcome("retry later", task)]),
        "heartbeat": lambda: store.heartbeat("w", [held], HELD),
        "recover": lambda: store.recover(1),
        "wait_for_work": lambda: store.wait_for_work(["nothing"], 0.1),
        "wait_finished": lambda: store.wait_finished([task.id], 0.1),
        "get": lambda: store.get([task.id]),
        "list_tasks": lambda: store.list_tasks(TaskQuery()),
        "stats": store.stats,
        "workers": store.workers,
        "cancel": lambda: store.cancel([new_id()]),
        "retry": lambda: store.retry([new_id()]),
        "run_now": lambda: store.run_now([new_id()]),
        "delete": lambda: store.delete([new_id()]),
        "purge": lambda: store.purge("nothing"),
        "pause": lambda: store.pause("nothing"),
        "resume": lambda: store.resume("nothing"),
        "set_progress": lambda: store.set_progress({held: Progress(done=1)}),
        "put_schedule": lambda: store.put_schedule(new_schedule("during")),
        "get_schedules": store.get_schedules,
        "delete_schedule": lambda: store.delete_schedule("none"),
        "due_schedules": lambda: store.due_schedules(1),
        "fire": lambda: store.fire(new_schedule("none", next_run=LONG_AGO, revision=1), []),
        "prune": lambda: store.prune(1),
        "check": store.check,
        "diagnose": store.diagnose,
    }


class OutageContract(Contract):
    """A store that cannot be used for a while. Asked where the fixtures of the class say how to bring that about."""

    @pytest.fixture
    def break_store(self) -> Callable[[], None] | None:
        """Return what makes the store unusable: stops its server, locks its file; None: the tests are not asked."""
        return None

    @pytest.fixture
    def mend_store(self) -> Callable[[], None] | None:
        """Return what undoes ``break_store``."""
        return None

    @needs_fixtures("break_store", "mend_store")
    async def test_while_the_store_is_away_every_call_says_so_within_a_bounded_time(
        self, stores: Stores, break_store: Callable[[], None], mend_store: Callable[[], None]
    ) -> None:
        store = await stores.open()
        await add(store)
        (running,) = await take(store)
        await put(store, next_run=LONG_AGO)
        await asyncio.to_thread(break_store)
        try:
            verbs = every_verb(store, running)
            calls = [*(verb() for verb in verbs.values()), stores.open()]
            async with asyncio.timeout(BOUNDED_SECONDS):
                found = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await asyncio.to_thread(mend_store)
        answers = dict(zip([*verbs, "open"], found, strict=True))
        raw = {
            name: answer
            for name, answer in answers.items()
            if isinstance(answer, BaseException) and not isinstance(answer, StorageError)
        }
        assert not raw, "errors of the driver came through"
        assert isinstance(answers["enqueue"], StorageUnavailable)

    @needs_fixtures("break_store", "mend_store")
    async def test_a_batch_that_failed_can_be_repeated_once_the_store_is_back(
        self, stores: Stores, break_store: Callable[[], None], mend_store: Callable[[], None]
    ) -> None:
        store = await stores.open()
        await store.stats()
        batch = [new_task() for _ in range(50)]
        ids = [task.id for task in batch]
        await asyncio.to_thread(break_store)
        try:
            with pytest.raises(StorageUnavailable):
                await store.enqueue(batch)
        finally:
            await asyncio.to_thread(mend_store)

        async def works() -> bool:
            try:
                await store.now()
            except StorageUnavailable:
                return False
            return True

        await await_until(works, what="the store to be of use again")
        assert len(set(await states(store, ids))) == 1, "half of a batch was stored"
        assert len({answer.created for answer in await store.enqueue(batch)}) == 1
        assert await states(store, ids) == [TaskState.READY] * 50
        (later,) = await add(store, run_at=timedelta(0))
        assert sorted(task.id for task in await take(store, 99)) == sorted([*ids, later])
