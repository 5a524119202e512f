"""What is computed of a sample of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from omniq.task import StoredTask

__all__ = ["percentile", "seconds_run"]


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest of some values that so many hundredths of them do not exceed; None of none.

    :param share: 0 to 100.
    """
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * share / 100) - 1)]


def seconds_run(task: StoredTask) -> float | None:
    """Return how long the latest attempt of a task took; None if it never ran or has not ended."""
    if task.started_at is None or task.finished_at is None:
        return None
    return max(0.0, (task.finished_at - task.started_at).total_seconds())
