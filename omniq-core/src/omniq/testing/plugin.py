"""The pytest plugin of OmniQ: fixtures for tests of applications. Does nothing unless one of them is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from omniq import TaskQueue
    from omniq.testing.clock import ManualClock
    from omniq.testing.trials import Trial

__all__ = ["omniq_clock", "omniq_queue", "omniq_trial"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of the conformance kit, which ``--strict-markers`` would refuse otherwise."""
    config.addinivalue_line(
        "markers", "long: costs minutes and repeats, on more or more often, what another test shows"
    )


@pytest.fixture
def omniq_clock() -> ManualClock:
    """A clock that the test moves: ``omniq_clock.advance(3600)``. The other fixtures run by it."""
    from omniq.testing.clock import ManualClock

    return ManualClock()


@pytest.fixture
def omniq_queue(omniq_clock: ManualClock) -> Iterator[TaskQueue]:
    """An empty queue on memory, of this test alone, that runs by ``omniq_clock``."""
    from omniq._client.queue import TaskQueue
    from omniq.plugins import default_plugins
    from omniq.testing.trials import memory_storage

    with TaskQueue(memory_storage(omniq_clock, default_plugins())) as queue:
        yield queue


@pytest.fixture
def omniq_trial(omniq_clock: ManualClock) -> Iterator[Callable[..., Trial]]:
    """Puts an application's queue on memory for this test: ``omniq_trial(shop.queue)`` gives a ``Trial``.

    ``omniq_trial(shop.queue, eager=True)`` runs every task as soon as it is enqueued; ``raise_failures=True`` raises
    where a task fails for good.
    """
    from omniq.testing.trials import trial

    with contextlib.ExitStack() as stack:

        def put_on_memory(queue: TaskQueue, *, eager: bool = False, raise_failures: bool = False) -> Trial:
            return stack.enter_context(trial(queue, clock=omniq_clock, eager=eager, raise_failures=raise_failures))

        yield put_on_memory
