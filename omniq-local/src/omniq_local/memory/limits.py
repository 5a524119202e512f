"""The limits of a memory store, and the ready tasks in lines."""

from __future__ import annotations

from omniq.limit import line_id
from omniq.task import StoredTask
from omniq_local.limit_state import LimitState
from omniq_local.memory.records import Index

__all__ = ["Limits"]


class Limits(LimitState):
    """The part of a store that keeps limits, lines and rates, and the tasks that stand in lines; under its lock."""

    def __init__(self) -> None:
        super().__init__()
        self._ready: dict[str, dict[int, Index]] = {}
        """By line: its ready tasks by priority."""

    def ready_with(self, task: StoredTask) -> dict[int, Index]:
        """Return the ready tasks of the line in which a task stands, by priority."""
        return self._ready.setdefault(line_id(task.queue, task.key, task.limit), {})

    def ready_in(self, line: str) -> dict[int, Index]:
        return self._ready.get(line, {})

    def forget_ready(self, task: StoredTask) -> None:
        self._ready.pop(line_id(task.queue, task.key, task.limit), None)
