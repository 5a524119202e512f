"""Queues in memory with plugins, for tests of what stands beside other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from omniq import TaskQueue
from omniq.storage.ids import new_id

MakeQueue: TypeAlias = Callable[..., TaskQueue]


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
