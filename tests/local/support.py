"""What the tests of the local storages share."""

from __future__ import annotations

from typing import Any

from omniq.storage.ids import new_id
from omniq.task import NewTask

__all__ = ["Clock", "new_task"]


class Clock:
    """A clock that is moved by hand, exact to the microsecond."""

    def __init__(self) -> None:
        self.microseconds = 1_900_000_000_123_457

    def __call__(self) -> float:
        return self.microseconds / 1e6

    def advance(self, seconds: float) -> None:
        self.microseconds += round(seconds * 1e6)


def new_task(**options: Any) -> NewTask:
    """Return a task to enqueue, of queue ``q`` unless another is named."""
    return NewTask(**{"id": new_id(), "queue": "q", "name": "n", "body": b"[]", **options})
