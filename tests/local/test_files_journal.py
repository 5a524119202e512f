"""That a change is one step: whoever dies, or fails, at any point of it leaves it done or not begun."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from omniq.errors import StorageUnavailable
from omniq.flow import NewFlow, NewGate
from omniq.limit import Limit, Rate
from omniq.schedule import Schedule
from omniq.storage import Lease
from omniq.task import Failed, Feed, NewTask, Retry, StoredTask, Succeeded, TaskError, TaskState
from omniq_local.files import FileStorage, journal
from tests.local.files_support import check_whole, contents, opened, run_python, take
from tests.local.support import Clock, new_task

Step = Callable[[FileStorage, list[StoredTask]], Awaitable[object]]

IDS = [f"01890000-0000-7000-8000-{number:012d}" for number in range(40)]
LIMITED = [f"01890000-0000-7000-9000-{number:012d}" for number in range(10)]
TASK = {name: new_task(id=task_id) for name, task_id in zip("abcdefg", IDS, strict=False)}

FLOWS = {
    name: NewFlow(id=flow_id, gates=(NewGate(n=0, rank="0"), NewGate(n=1, rank="1")))
    for name, flow_id in zip("ab", IDS[27:], strict=False)
}


def member(name: str, *, behind: int | None = None, feeds: int | None = None) -> NewTask:
    """Return a task of the first flow (a, b, c) or the second (d, e)."""
    flow, fed = FLOWS["a" if name in "abc" else "b"].id, () if feeds is None else (Feed(feeds),)
    return new_task(id=IDS[20 + "abcde".index(name)], queue="flow", flow=flow, behind=behind, feeds=fed)


def limited(number: int, **options: Any) -> NewTask:
    """Return a task of the queue that has limits."""
    return new_task(id=LIMITED[number], queue="limited", **options)


async def prepare(store: FileStorage) -> list[StoredTask]:
    """Have three tasks running, and some that wait and have ended."""
    options: tuple[dict[str, Any], ...] = (
        {"unique": "k"},
        {"expires": timedelta(hours=1)},
        {},
        {"run_at": timedelta(hours=2)},
        {},
    )
    await store.enqueue([new_task(id=IDS[10 + number], **each) for number, each in enumerate(options)])
    await store.put_schedule(Schedule(id="s", task=new_task(id=IDS[19]), trigger="t", next_run=None))
    running = await take(store, 4)
    await store.finish([Succeeded(id=running[3].id, delivery=1, result=b"0")])
    await store.enqueue([TASK["a"]])
    await store.enqueue([member("a", feeds=0), member("b", behind=0, feeds=1), member("c", behind=1)], FLOWS["a"])
    await store.enqueue([member("d", feeds=0), member("e", behind=0)], FLOWS["b"])
    await store.put_limit(Limit(queue="limited", per_key=Limit(concurrency=1, rate=Rate(1000))))
    await store.put_limit(Limit(name="api", concurrency=1))
    await store.enqueue([limited(n, key="ab"[n % 2], limit="api" if n < 2 else None) for n in range(6)])
    running = running[:3] + await store.claim({"flow": 1}, worker="w", lease=300)
    return running + await store.claim({"limited": 1}, worker="w", lease=300)


async def enqueue(store: FileStorage, running: list[StoredTask]) -> object:
    keyed = new_task(id=IDS[5], unique="new", expires=timedelta(hours=1))
    return await store.enqueue([TASK["b"], TASK["c"], keyed, new_task(id=IDS[6], queue="other")])


async def claim(store: FileStorage, running: list[StoredTask]) -> object:
    return await take(store, 2)


async def finish(store: FileStorage, running: list[StoredTask]) -> object:
    first, second, third, *_ = running
    return await store.finish(
        [
            Succeeded(id=first.id, delivery=1, result=b"x" * 9000),
            Failed(id=second.id, delivery=1, error=TaskError(type="E", message="m")),
            Retry(id=third.id, delivery=1, delay=9.0),
        ]
    )


async def enqueue_flow(store: FileStorage, running: list[StoredTask]) -> object:
    new = NewFlow(id=IDS[29], gates=tuple(NewGate(n=n, rank=f"{n:02d}") for n in range(60)), unique="night")
    tasks = [new_task(id=IDS[30 + n], flow=new.id, behind=n or None, feeds=(Feed(n + 1),)) for n in range(3)]
    return await store.enqueue(tasks, new)


async def finish_flow(store: FileStorage, running: list[StoredTask]) -> object:
    return await store.finish([Succeeded(id=running[3].id, delivery=1, result=b"0")])


async def fail_flow(store: FileStorage, running: list[StoredTask]) -> object:
    return await store.finish([Failed(id=running[3].id, delivery=1, error=TaskError(type="E", message="m"))])


async def cancel_flow(store: FileStorage, running: list[StoredTask]) -> object:
    return await store.cancel_flow(FLOWS["b"].id)


async def purge_flow(store: FileStorage, running: list[StoredTask]) -> object:
    return await store.purge("flow", TaskState.READY)


async def enqueue_limited(store: FileStorage, running: list[StoredTask]) -> object:
    return await store.enqueue([limited(7, key="a"), limited(8, key="new"), limited(9)])


async def claim_limited(store: FileStorage, running: list[StoredTask]) -> object:
    return await store.claim({"limited": 9}, worker="w", lease=300)


async def finish_limited(store: FileStorage, running: list[StoredTask]) -> object:
    return await store.finish([Succeeded(id=running[4].id, delivery=1, result=b"0")])


async def change_limit(store: FileStorage, running: list[StoredTask]) -> object:
    return await store.put_limit(Limit(queue="limited", per_key=Limit(concurrency=2)))


async def heartbeat(store: FileStorage, running: list[StoredTask]) -> object:
    return await store.heartbeat("w", [Lease(task.id, 1) for task in running], 900)


async def fire(store: FileStorage, running: list[StoredTask]) -> object:
    (schedule,) = await store.get_schedules(["s"])
    return await store.fire(schedule, [TASK["d"], TASK["e"]])


async def purge(store: FileStorage, running: list[StoredTask]) -> object:
    return await store.purge("q")


STEPS: dict[str, Step] = {
    each.__name__: each
    for each in (
        *(enqueue, claim, finish, heartbeat, fire, purge),
        *(enqueue_flow, finish_flow, fail_flow, cancel_flow, purge_flow),
        *(enqueue_limited, claim_limited, finish_limited, change_limit),
    )
}


MORE = ("fail_flow", "cancel_flow", "purge_flow", "enqueue_limited", "finish_limited", "change_limit")
"""Steps that are much like others."""
EACH_STEP = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in MORE else name for name in STEPS]
)


class Probe:
    """Counts the points that changes come to, and does something at one of them."""

    def __init__(self, at: int, act: Callable[[str], None]) -> None:
        self.left = at
        self.act = act

    def __call__(self, point: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.act(point)


def view(tasks: dict[str, StoredTask]) -> dict[str, tuple[object, ...]]:
    return {each.id: (each.state, each.delivery, each.result_payload, each.error) for each in tasks.values()}


KILLED = """
    import asyncio, os, signal, sys
    from pathlib import Path
    from omniq_local.files import journal
    from tests.local.files_support import opened
    from tests.local.support import Clock
    from tests.local.test_files_journal import STEPS, Probe, prepare

    folder, name = Path(sys.argv[1]), sys.argv[2]

    async def act(at):
        async with opened(folder / str(at), clock=Clock()) as store:
            running = await prepare(store)
            if at:
                journal.probe = Probe(at, lambda point: os.kill(os.getpid(), signal.SIGKILL))
                await STEPS[name](store, running)

    for at in range(0, 1000):
        child = os.fork()
        if not child:
            asyncio.run(act(at))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0 and at:
            break
    print(at)
"""


@EACH_STEP
def test_whoever_is_killed_at_any_point_leaves_the_change_done_or_not_begun(tmp_path: Path, name: str) -> None:
    points = int(run_python(KILLED, str(tmp_path), name).stdout)
    assert points > 2

    async def look(at: int) -> dict[str, tuple[object, ...]]:
        root = tmp_path / str(at)
        async with opened(root, clock=Clock()) as store:
            tasks = await check_whole(store, root)
            schedule = (await store.get_schedules(["s"]))[0].revision
            assert name != "fire" or (TASK["d"].id in tasks) == (schedule == 2)
            return view(tasks)

    async def scenario() -> None:
        before, after = await look(0), await look(points)
        seen = [await look(at) for at in range(1, points)]
        assert all(each in (before, after) for each in seen)
        # Once it is written down, it is done, by whoever comes next.
        assert all(each == after for each in seen[1:])

    asyncio.run(scenario())


@EACH_STEP
def test_a_change_that_fails_at_any_point_is_undone_or_completed_by_the_next(tmp_path: Path, name: str) -> None:
    async def scenario(at: int) -> bool:
        root = tmp_path / str(at)
        failed = ""

        def fail(point: str) -> None:
            nonlocal failed
            failed = point
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point)

        async with opened(root, clock=Clock()) as store:
            running = await prepare(store)
            before = contents(root)
            journal.probe = Probe(at, fail)
            try:
                await STEPS[name](store, running)
            except StorageUnavailable as error:
                told = str(error)
            else:
                return False
            finally:
                journal.probe = None
            assert str(root) in told
            undone = contents(root) == before
            await check_whole(store, root)
            # Removals come last, and need no space: what has come so far is completed.
            assert undone is (failed not in ("remove", "clear", "done"))
            assert bool(await STEPS[name](store, running)) or not undone
            await check_whole(store, root)
        return True

    at = 1
    while asyncio.run(scenario(at)):
        at += 1
    assert at > 2


def test_nothing_is_stored_when_a_large_payload_does_not_fit(tmp_path: Path) -> None:
    program = """
        import asyncio, resource, sys
        from pathlib import Path
        from omniq.errors import StorageUnavailable
        from tests.local.files_support import check_whole, opened
        from tests.local.support import new_task

        async def main():
            root = Path(sys.argv[1])
            async with opened(root) as store:
                await store.enqueue([new_task()])
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
                try:
                    await store.enqueue([new_task(), new_task(body=b"x" * 200_000), new_task()])
                except StorageUnavailable as error:
                    print(error)
                assert len(await check_whole(store, root)) == 1
                await store.enqueue([new_task()])
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                await store.enqueue([new_task(body=b"x" * 200_000)])
                assert len(await check_whole(store, root)) == 3

        asyncio.run(main())
    """
    assert "nothing was stored. Free space" in run_python(program, str(tmp_path / "jobs")).stdout


def test_a_change_that_is_not_whole_in_the_journal_never_happened(tmp_path: Path) -> None:
    root = tmp_path / "jobs"

    def die(point: str) -> None:
        raise KeyboardInterrupt

    async def scenario() -> None:
        async with opened(root) as store:
            await store.enqueue([TASK["a"]])
            journal.probe = Probe(1, die)
            try:
                with pytest.raises(KeyboardInterrupt):
                    store.enqueue_blocking([TASK["b"]])
            finally:
                journal.probe = None
            assert await check_whole(store, root) == {TASK["a"].id: (await store.get([TASK["a"].id]))[0]}
            assert (await take(store, 9))[0].state is TaskState.RUNNING

    asyncio.run(scenario())
