"""Queues in memory with plugins, for tests of what stands beside other libraries; and tests may be coroutines."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from omniq import TaskQueue
from omniq.storage.ids import new_id

MakeQueue: TypeAlias = Callable[..., TaskQueue]


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
def make_queue() -> Iterator[MakeQueue]:
    """Yield what makes queues on one store, with the plugins that it is given; they are closed afterwards."""
    url, made = f"memory://{new_id()}", []

    def make(*objects: object) -> TaskQueue:
        made.append(TaskQueue(url, plugins=objects))
        return made[-1]

    yield make
    for queue in made:
        queue.close()
