"""What importing a package takes in a new process."""

from __future__ import annotations

import subprocess
import sys

from tests.bench.job import Job
from tests.bench.marks import Marks

__all__ = ["measure"]


# Measured within the process: what the start of Python itself takes varies by more than many an import does.
TIMED = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


def measure(job: Job, marks: Marks) -> dict[str, float]:
    """Import in one new process after another; the quickest counts."""
    return {"import": min(_seconds(job.contender) for _ in range(job.size)) * 1e3}


def _seconds(module: str) -> float:
    command = [sys.executable, "-c", TIMED.format(module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
