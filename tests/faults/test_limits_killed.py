"""Limits whose workers are killed: what runs and what starts stays within them, and every slot comes back."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

import pytest
from attrs import frozen

from omniq import Limit, Rate, StorageUnavailable
from tests.faults.history import Event, History
from tests.faults.scene import Actor, Scene
from tests.faults.stages import seed_of_this_run

LIMITED = ("redis", pytest.param("postgres", marks=pytest.mark.long), pytest.param("nats", marks=pytest.mark.long))
"""The stores with a server that hold limits."""
on_servers = pytest.mark.parametrize("stage", LIMITED, indirect=True)

CONCURRENCY = 2
RATE = Rate(10, per=1)
SHORT, LONG = 0.01, 0.3
"""Seconds for which tasks run: the rate stops the one, the concurrency the other."""


@frozen
class Run:
    """One run of a task: while it lasts it holds a slot of its key."""

    key: str
    began: int
    ended: int
    """Both in nanoseconds of the monotonic clock, within the time for which the task was claimed."""
    claimed: float
    """When the store says that it started."""


class Tenants:
    """Workers that serve tenants, each within limits of its own, of which one is killed again and again.

    :param tenants: how many there are.
    :param workers: how many processes.
    """

    def __init__(self, scene: Scene, tenants: int, workers: int) -> None:
        self._scene = scene
        self._chance = random.Random(seed_of_this_run())
        self._keys = [f"tenant-{number}" for number in range(tenants)]
        self._killed: dict[int, int] = {}
        scene.queue.put_limit(Limit(queue="default", per_key=Limit(concurrency=CONCURRENCY, rate=RATE)))
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> Actor:
        return self._scene.start_worker(concurrency=16, undisturbed=True)

    def enqueue(self, most: int) -> None:
        """Enqueue some tasks of each tenant, unless so many wait already."""
        try:
            counts = [stats.counts for stats in self._scene.queue.stats()]
            if sum(number for states in counts for state, number in states.items() if not state.is_final) < most:
                for seconds in (SHORT, LONG):
                    self._scene.enqueue_keyed("serve", self._keys * 2, seconds)
        except StorageUnavailable:
            return  # those that are stored all the same have to end like all others

    def kill(self) -> None:
        """Kill a worker, one that has started tasks if there is any, and start another one."""
        busy = {event.pid for event in self._scene.history.events("started")}
        victim = self._chance.choice([one for one in self._workers if one.pid in busy] or self._workers)
        self._workers.remove(victim)
        self._killed[victim.pid] = time.monotonic_ns()
        victim.kill()
        self._workers.append(self._start())

    def check(self) -> None:
        """Check everything once all has drained."""
        scene = self._scene
        scene.check()
        runs = list(runs_of(scene.history, self._killed))
        by_key: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            by_key[run.key].append(run)
        assert set(by_key) == set(self._keys)
        for key, mine in by_key.items():
            assert most_at_once(mine) <= CONCURRENCY, f"too many tasks of {key} ran at once"
            started = most_within([run.claimed for run in mine], RATE.per)
            assert started <= RATE.count + RATE.burst - 1, f"{started} tasks of {key} started within {RATE.per} s"
        # Else nothing was at its limit, and nothing is shown.
        assert max(map(most_at_once, by_key.values())) == CONCURRENCY
        assert {event.pid for event in scene.history.events("started")} & self._killed.keys()
        (usage,) = scene.queue.limit_usage()
        assert (usage.running, usage.held_keys) == (0, 0)
        scene.queue.unlimit("default")
        scene.check_nothing_is_left()


def runs_of(history: History, killed: dict[int, int]) -> Iterable[Run]:
    """Yield all runs that held their leases to the end.

    A worker that stood still for so long that it lost a lease runs its task beside the next one, as with any lease.

    :param killed: when each process was killed that was.
    """
    started, stopped = defaultdict[str, list[Event]](list), defaultdict[tuple[str, int], list[int]](list)
    for event in history.events("started", "stopped"):
        if event.what == "started":
            started[event.task].append(event)
        else:
            stopped[event.task, event.pid].append(event.at)
    for task, events in started.items():
        for event, following in zip(events, [*events[1:], None], strict=True):
            ends = [at for at in stopped[task, event.pid] if at >= event.at]
            ended = min(ends, default=killed.get(event.pid, event.at))
            if event.details["late"] or (following is not None and following.at < ended):
                continue
            yield Run(event.details["key"], event.at, ended, event.details["claimed"])


def most_at_once(runs: Iterable[Run]) -> int:
    """Return how many runs there were at one moment at most."""
    steps = sorted([*((run.began, 1) for run in runs), *((run.ended, -1) for run in runs)])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def most_within(moments: Sequence[float], per: float) -> int:
    """Return how many of some moments lie within any span of so many seconds, its end excluded."""
    ordered = sorted(moments)
    # What is read as a fraction of seconds is exact to a fraction of a microsecond.
    return max(sum(1 for one in ordered[n:] if one - first < per - 1e-6) for n, first in enumerate(ordered))


@on_servers
def test_limits_hold_and_every_slot_comes_back_when_workers_are_killed(scene: Scene) -> None:
    tenants = Tenants(scene, 6, 3)
    for _ in range(3):
        tenants.enqueue(100)
        scene.more_run(20)
        tenants.kill()
    scene.wait_drained(120)
    tenants.check()


@pytest.mark.long
@pytest.mark.timeout(600)  # a minute of kills, and then what is left runs at the rate of the limits
@on_servers
def test_limits_of_a_hundred_tenants_hold_for_a_minute_of_kills(scene: Scene) -> None:
    tenants = Tenants(scene, 100, 8)
    for second in range(60):
        begun = time.monotonic()
        tenants.enqueue(1000)
        if second > 1:
            tenants.kill()
        time.sleep(max(0.0, begun + 1 - time.monotonic()))  # until the next kill
    scene.wait_drained(300)
    tenants.check()


@pytest.mark.long
@pytest.mark.timeout(600)  # to enqueue a hundred thousand takes most of it
@pytest.mark.parametrize("is_limited", [False, True], ids=["no limit", "at its limit"])
@on_servers
def test_tenants_with_one_task_start_within_a_second_beside_one_with_a_hundred_thousand(
    scene: Scene, is_limited: bool
) -> None:
    if is_limited:
        scene.queue.put_limit(Limit(queue="default", per_key=Limit(concurrency=CONCURRENCY)))
    for _ in range(50):
        scene.enqueue_keyed("serve", ["big"] * 2000, SHORT)
    scene.worker(concurrency=8, undisturbed=True)
    scene.more_run(10)
    took: list[float] = []
    # A second is what is promised of limits. Of twenty tries one that no stall of the machine has spoilt.
    while len(took) < 20 and min(took, default=2.0) >= 1:
        number = len(took)
        enqueued = time.monotonic_ns()
        small = {h.id for h in scene.enqueue_keyed("serve", [f"small-{number}-{n}" for n in range(50)], 0.0)}

        def all_started(small: set[str] = small) -> dict[str, int] | None:
            began = {event.task: event.at for event in scene.history.events("started")}
            return {task: began[task] for task in small} if small <= began.keys() else None

        began = scene.wait_for(all_started, "the start of the small tenants' tasks")
        took.append((max(began.values()) - enqueued) / 1e9)
    assert min(took) < 1, took
