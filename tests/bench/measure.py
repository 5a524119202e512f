"""Which function makes which measurement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.bench.job import Job
from tests.bench.marks import Marks
from tests.bench.scenarios import draining, enqueueing, grouping, importing, resources, responding

__all__ = ["measure"]

Measured = dict[str, float]
"""Values by the name of their line."""


def measure(job: Job) -> Measured:
    """Make the measurement that a job asks for.

    :return: the values by the name of their line.
    """
    # Some slots more than tasks: for those that warm up.
    marks = Marks.create(job.marks_file, grouping.slots(job.size) if job.scenario == "group" else job.size + 10)
    if job.scenario == "serializer":
        # These need OmniQ itself, which is not there in the environment of a peer.
        from tests.bench.scenarios import serializing

        return serializing.measure(job)
    if job.scenario in ("drain-processes", "cpu-pair"):
        from tests.bench.scenarios import separating

        return asyncio.run(separating.drain(job) if job.scenario == "drain-processes" else separating.pair(job))
    if job.scenario == "drain-metrics":
        from tests.bench.scenarios import counting

        return asyncio.run(counting.measure(job))
    if job.scenario == "list-failed":
        from tests.bench.scenarios import listing

        return asyncio.run(listing.measure(job))
    if job.scenario == "fan":
        from tests.bench.scenarios import fanning

        return asyncio.run(fanning.measure(job))
    if job.scenario.startswith("growth-"):
        from tests.bench.scenarios import growing

        return asyncio.run(growing.measure(job, marks))
    return SCENARIOS[job.scenario](job, marks)


SCENARIOS: dict[str, Callable[[Job, Marks], Measured]] = {
    "enqueue-sync": enqueueing.one_by_one,
    "enqueue-async": enqueueing.awaited,
    "enqueue-at-once": enqueueing.at_once,
    "enqueue-many": enqueueing.in_bulk,
    "drain-async": draining.coroutines,
    "drain-one-by-one": draining.one_by_one,
    "drain-keys": draining.keyed,
    "drain-threads": draining.plain_functions,
    "drain-two": draining.two_processes,
    "group": grouping.measure,
    "latency": responding.latency,
    "round-trip": responding.round_trip,
    "start-up": responding.start_up,
    "idle": resources.idle,
    "waiting": resources.waiting,
    "import": importing.measure,
}
