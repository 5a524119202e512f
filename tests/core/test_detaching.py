"""Coroutines that do not heed their cancellation keep no event loop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from omniq._worker.detaching import Detacher
from omniq.testing import await_until


async def stubborn(started: asyncio.Event) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            started.set()
            await asyncio.Event().wait()


def run_and_leave() -> None:
    async def leave() -> None:
        detacher, started = Detacher(asyncio.get_running_loop()), asyncio.Event()
        task = detacher.create_task(stubborn(started))
        await started.wait()
        task.cancel()
        await asyncio.sleep(0)  # the cancellation reaches it
        assert not task.done()
        detacher.detach(task)

    asyncio.run(leave())


def test_asyncio_run_still_does_not_wait_for_a_task_that_asyncio_tasks_unregister_task_was_given() -> None:
    """If this fails, asyncio is not as omniq._worker.detaching takes it to be: let it use its public way here."""
    assert callable(getattr(asyncio.tasks, "_unregister_task", None))
    run_and_leave()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it does not heed its closing either
def test_asyncio_run_does_not_wait_where_there_is_no_such_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("asyncio.tasks._unregister_task")
    run_and_leave()


def test_a_coroutine_runs_as_usual_where_there_is_no_such_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("asyncio.tasks._unregister_task")
    seen: list[Any] = []

    async def work() -> None:
        seen.append(await asyncio.sleep(0, "slept"))  # a wait that ends
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        seen.append("cancelled")
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append("timed out")
        raise LookupError("its own error")

    async def scenario() -> None:
        task = Detacher(asyncio.get_running_loop()).create_task(work())
        await await_until(lambda: seen, what="the first step")
        task.cancel()
        with pytest.raises(LookupError, match="its own error"):
            await task

    asyncio.run(scenario())
    assert seen == ["slept", "cancelled", "timed out"]
