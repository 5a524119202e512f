"""The tasks as functions of a module, for products whose workers find them by name or are processes of their own."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bench.marks import Marks

__all__ = ["MARKS", "URL", "abench", "bench", "use"]

MARKS = "BENCH_MARKS"
"""The environment variable that tells a process of its own where the marks are."""
URL = "BENCH_URL"
"""The same for the server."""

_marks: Marks | None = Marks(Path(os.environ[MARKS])) if MARKS in os.environ else None


def use(marks: Marks) -> None:
    """Let the tasks of this process note their start there."""
    global _marks
    _marks = marks


def bench(number: int) -> int:
    """The task as a plain function."""
    assert _marks is not None
    _marks.began(number)
    return number


async def abench(number: int) -> int:
    """The task as a coroutine function."""
    return bench(number)
