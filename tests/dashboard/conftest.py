"""Tests of the dashboard may be coroutines; and the one browser that they share."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest

from omniq import TaskQueue
from omniq.storage.ids import new_id


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on an event loop of its own."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    asyncio.run(test(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def queue() -> Iterator[TaskQueue]:
    """A queue in memory."""
    with TaskQueue(f"memory://{new_id()}") as made:
        yield made
