"""A process of a measurement: ``measure`` makes one and prints it, ``work`` is a worker of one.

Runs in the environment of the contender. Its only argument but the role is a job as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
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
        print(json.dumps({"line": line, "value": value, "version": _version(job)}), flush=True)
    if job.entry.role == "peer":
        # Some leave threads behind that wait for what does not come any more.
        os._exit(0)


def _version(job: Job) -> str:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    return job.entry.version + (f" on Python {here}" if here != job.python else "")


if __name__ == "__main__":
    main(*sys.argv[1:])
