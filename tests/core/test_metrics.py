"""What a worker counts, and how the numbers of several are added up."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

import pytest

from omniq import Fixed, TaskFailed, TaskQueue, current_task
from omniq._worker.attempt import Attempt
from omniq._worker.metrics import (
    BOUNDS,
    COUNTERS,
    MOST_PAIRS,
    OTHER,
    RELEASED,
    STARTED,
    SUCCEEDED,
    Metrics,
    added,
    from_lines,
    histogram,
    to_lines,
)
from omniq.storage.ids import new_id
from omniq.task import StoredTask
from omniq.testing import wait_until
from tests.core.running import working


def test_a_queues_and_a_functions_tasks_are_counted_together() -> None:
    metrics = Metrics()
    with TaskQueue(f"memory://{new_id()}") as queue:

        @queue.task(name="shop.charge", max_retries=1, retry=Fixed(0))
        def charge() -> None:
            raise OSError(current_task().attempt)

        @queue.task(name="shop.ship")
        async def ship() -> None: ...

        with working(queue, metrics):
            with pytest.raises(TaskFailed):
                charge.enqueue().result(30)
            for place in ("default", "fast", "fast"):
                ship.using(queue=place).enqueue().result(30)
            wait_until(lambda: sum(row[1] + row[2] for row in metrics.totals().values()) == 4)

    counted = {pair: dict(zip(COUNTERS, row, strict=False)) for pair, row in metrics.totals().items()}
    assert {pair: (row["started"], row["succeeded"]) for pair, row in counted.items()} == {
        ("default", "shop.charge"): (2, 0),
        ("default", "shop.ship"): (1, 1),
        ("fast", "shop.ship"): (2, 2),
    }
    charged = counted["default", "shop.charge"]
    assert (charged["retried"], charged["failed"], charged["cancelled"], charged["recovered"]) == (1, 1, 0, 0)


def stored(name: str = "f", waited: float = 0.0) -> StoredTask:
    due = datetime(2030, 1, 1, tzinfo=UTC)
    started_at = due + timedelta(seconds=waited)
    return StoredTask(id=new_id(), queue="q", name=name, body=b"", created_at=due, run_at=due, started_at=started_at)


def attempt(seconds: float, waited: float = 0.0) -> Attempt:
    """Return as much of an attempt as is looked at."""
    given = SimpleNamespace(stored=stored(waited=waited))
    return cast(Attempt, SimpleNamespace(given=given, started_at=1.0, ended_at=1.0 + seconds))


def test_times_are_counted_up_to_their_bounds() -> None:
    metrics = Metrics()
    for seconds in (0.0, 0.005, 0.006, 59.0, 10_000.0):
        metrics.count_ends([attempt(seconds, waited=seconds)], SUCCEEDED)

    (row,) = metrics.totals().values()
    for kind in ("run", "wait"):
        counts, total = histogram(row, kind)
        up_to = dict(zip((*BOUNDS, None), counts, strict=True))
        assert (up_to[0.005], up_to[0.01], up_to[30.0], up_to[60.0], up_to[3600.0], up_to[None]) == (2, 3, 3, 4, 4, 5)
        assert total == pytest.approx(10_059.011)


def test_there_is_an_end_to_how_many_functions_are_told_apart() -> None:
    metrics = [Metrics(), Metrics()]
    for process, one in enumerate(metrics):
        for number in range(MOST_PAIRS + 10):
            one.count(stored(f"f{process}.{number}"), RELEASED)

    together = added(one.totals() for one in metrics)
    assert len(metrics[0].totals()) == MOST_PAIRS + 1
    assert metrics[0].totals()[OTHER][COUNTERS.index("released")] == 10
    assert len(together) == MOST_PAIRS + 1
    assert sum(row[COUNTERS.index("released")] for row in together.values()) == 2 * (MOST_PAIRS + 10)


def test_rows_travel_as_json() -> None:
    metrics = Metrics()
    metrics.count_ends([attempt(0.25)], SUCCEEDED)

    assert from_lines(json.loads(json.dumps(to_lines(metrics.totals())))) == metrics.totals()
    assert from_lines([("q", "f", [1.0])]) == {}  # of another version's process


def test_what_runs_has_begun_and_no_number_goes_down_when_it_is_held_no_more() -> None:
    metrics, running = Metrics(), attempt(0.25, waited=2.0)
    metrics.held = lambda: [running]
    during = metrics.totals()["q", "f"]
    metrics.held = tuple
    between = metrics.totals()["q", "f"]
    metrics.count_ends([running], SUCCEEDED)
    afterwards = metrics.totals()["q", "f"]

    assert (during[STARTED], during[SUCCEEDED], histogram(during, "wait")[1]) == (1, 0, 2.0)
    assert between == during
    assert (afterwards[STARTED], afterwards[SUCCEEDED], histogram(afterwards, "wait")) == (
        *(1, 1),
        histogram(during, "wait"),
    )
