"""A process of a measurement: ``measure`` makes one and prints it, ``work`` is a worker of one.

Runs in the environment of the contender. Its only argument but the role is a job as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

from tests.bench.job import Job
from tests.bench.measure import measure
from tests.bench.workers import serve

__all__ = ["main"]


def main(role: str, job_text: str) -> None:
    """Do one job.

    :param role: ``measure`` or ``work``.
    :param job_text: a :class:`Job` as JSON.
    """
    job = Job.read(job_text)
    if role == "work":
        asyncio.run(serve(job))
        return
    for line, value in measure(job).items():
        print(json.dumps({"line": line, "value": value, "version": job.entry.version}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
