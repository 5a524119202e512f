"""What importing a package adds to the start of Python."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.bench.job import Job
from tests.bench.marks import Marks

__all__ = ["measure"]


def measure(job: Job, marks: Marks) -> dict[str, float]:
    """Start Python with and without the import, in turn; the difference of the quickest."""
    without: list[float] = []
    with_it: list[float] = []
    for _ in range(job.size):
        without.append(_run("pass"))
        with_it.append(_run(f"import {job.contender}"))
    return {"import": (min(with_it) - min(without)) * 1e3}


def _run(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began
