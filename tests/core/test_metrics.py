"""What a worker counts, and how the numbers of several are added up."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta

import pytest

from omniq import Fixed, TaskFailed, TaskQueue, current_task
from omniq._worker.metrics import BOUNDS, COUNTERS, MOST_PAIRS, OTHER, Metrics, added, from_lines, histogram, to_lines
from omniq.storage.ids import new_id
from omniq.testing import wait_until
from tests.core.running import working


def test_a_queues_and_a_functions_tasks_are_counted_together() -> None:
    metrics = Metrics()
    with TaskQueue(f"memory://{new_id()}", plugins=[metrics]) as queue:

        @queue.task(name="shop.charge", max_retries=1, retry=Fixed(0))
        def charge() -> None:
            raise OSError(current_task().attempt)

        @queue.task(name="shop.ship")
        async def ship() -> None: ...

        with working(queue):
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


class Task:
    """As much of a task as is looked at."""

    def __init__(self, name: str = "f", waited: float = 0.0) -> None:
        self.queue, self.name = "q", name
        self.run_at = datetime(2030, 1, 1, tzinfo=UTC)
        self.started_at = self.run_at + timedelta(seconds=waited)


def test_times_are_counted_up_to_their_bounds() -> None:
    metrics = Metrics()
    for seconds in (0.0, 0.005, 0.006, 59.0, 10_000.0):
        metrics.omniq_task_succeeded(Task(), seconds)  # type: ignore[arg-type]  # a task is looked at no further
        metrics.omniq_task_started(Task(waited=seconds))  # type: ignore[arg-type]  # likewise

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
            one.omniq_task_released(Task(f"f{process}.{number}"))  # type: ignore[arg-type]  # likewise

    together = added(one.totals() for one in metrics)
    assert len(metrics[0].totals()) == MOST_PAIRS + 1
    assert metrics[0].totals()[OTHER][COUNTERS.index("released")] == 10
    assert len(together) == MOST_PAIRS + 1
    assert sum(row[COUNTERS.index("released")] for row in together.values()) == 2 * (MOST_PAIRS + 10)


def test_rows_travel_as_json_and_a_child_process_counts_for_itself() -> None:
    metrics = Metrics()
    metrics.omniq_task_succeeded(Task(), 0.25)  # type: ignore[arg-type]  # likewise

    assert from_lines(json.loads(json.dumps(to_lines(metrics.totals())))) == metrics.totals()
    assert from_lines([("q", "f", [1.0])]) == {}  # of another version's process
    assert pickle.loads(pickle.dumps(metrics)).totals() == {}
