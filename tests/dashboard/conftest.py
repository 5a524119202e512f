"""The one browser that the tests of the dashboard share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from omniq import TaskQueue
from omniq.storage.ids import new_id


@pytest.fixture
def queue() -> Iterator[TaskQueue]:
    """A queue in memory."""
    with TaskQueue(f"memory://{new_id()}") as made:
        yield made
