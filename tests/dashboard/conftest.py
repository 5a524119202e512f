"""The one browser that the tests of the dashboard share."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from omniq import TaskQueue
from omniq.storage.ids import new_id
from tests.dashboard.browsing import Site, World


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine that looks at pages on the loop of the browser."""
    world = pyfuncitem.funcargs.get("world")
    if not isinstance(world, World):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    world.do(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Where the browser is; a test that has it runs on its loop."""
    with World() as made:
        yield made


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    """A dashboard of a queue in memory, seen by a browser, which did nothing that it must not in the end."""
    queue = TaskQueue(f"memory://{new_id()}")
    made = world.do(Site(world, queue).__aenter__())
    yield made
    world.do(made.__aexit__(None, None, None))
    world.do(queue.aclose())
    assert made.wrong == []


@pytest.fixture
def queue() -> Iterator[TaskQueue]:
    """A queue in memory."""
    with TaskQueue(f"memory://{new_id()}") as made:
        yield made
