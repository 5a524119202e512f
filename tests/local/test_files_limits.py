"""Limits on the file storage: what is known of slots and lines after a restart, in a copy, and where it is damaged."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from omniq.errors import StorageUnavailable
from omniq.limit import Limit
from omniq.storage import TaskQuery
from omniq.task import TaskState
from omniq_local.files.tree import Tree
from tests.local.files_support import check_whole, opened, succeed, take
from tests.local.support import Clock, new_task
from tests.local.test_files_repair import start_machine_anew

LOG = Path("omniq/limits/log.jsonl")


async def fill(root: Path) -> None:
    """Have two keys and a named limit be at their limits, each with tasks that wait."""
    async with opened(root, clock=Clock()) as store:
        await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
        await store.put_limit(Limit(name="api", concurrency=1))
        await store.enqueue([new_task(key=key) for key in "aaabb"])
        await store.enqueue([new_task(limit="api") for _ in range(3)])
        assert Counter(task.key for task in await take(store, 9)) == {"a": 1, "b": 1, None: 1}


async def goes_on(root: Path) -> None:
    """Fail unless limits hold as they did, and slots that are freed are taken by those that wait."""
    async with opened(root, clock=Clock()) as store:
        await store.prune(1)  # its first change moves a log aside that cannot be read
        for path in (root / "omniq").glob("aside/limits*"):
            path.unlink()
        await check_whole(store, root)
        assert await take(store, 9) == []
        left = {"a": 2, "b": 1, None: 2}
        tasks = list((await store.list_tasks(RUNNING)).tasks)
        while tasks:
            await succeed(store, tasks)
            tasks = await take(store, 9)
            for task in tasks:
                left[task.key] -= 1
            assert max(Counter(task.key for task in tasks).values(), default=0) <= 1
            await check_whole(store, root)
        assert left == {"a": 0, "b": 0, None: 0}


RUNNING = TaskQuery(states=[TaskState.RUNNING])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


def test_limits_hold_after_a_restart(root: Path) -> None:
    asyncio.run(fill(root))
    asyncio.run(goes_on(root))


def test_limits_hold_in_a_copy_of_the_folder(root: Path, tmp_path: Path) -> None:
    asyncio.run(fill(root))
    shutil.copytree(root, tmp_path / "copy")
    asyncio.run(goes_on(tmp_path / "copy"))
    asyncio.run(goes_on(root))


def test_slots_and_lines_are_made_anew_from_tasks_when_the_machine_went_down(root: Path) -> None:
    asyncio.run(fill(root))
    (root / LOG).unlink()
    shutil.rmtree(root / "omniq" / "lines")
    start_machine_anew(root)
    asyncio.run(goes_on(root))


@pytest.mark.parametrize("damage", ["gone", "torn", "cut off"])
def test_slots_and_lines_are_made_anew_from_tasks_where_the_log_cannot_be_read(root: Path, damage: str) -> None:
    asyncio.run(fill(root))
    log = root / LOG
    lines = log.read_bytes().splitlines(keepends=True)
    if damage == "gone":
        log.unlink()
    elif damage == "torn":
        log.write_bytes(b"".join(lines[: len(lines) // 2]) + b"\xff{\n" + b"".join(lines[len(lines) // 2 + 1 :]))
    else:
        log.write_bytes(lines[0] + lines[1][:-9])
    asyncio.run(goes_on(root))


def test_what_another_process_does_with_limits_is_seen(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as one, opened(root) as other:
            await one.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
            for number in range(20):
                await (one, other)[number % 2].enqueue([new_task(key=f"k{number % 3}")])
            stores, done = (one, other), 0
            while found := await stores[done % 2].claim({"q": 9}, worker="w", lease=300):
                assert len({task.key for task in found}) == len(found)
                assert await stores[(done + 1) % 2].claim({"q": 9}, worker="w", lease=300) == []
                await succeed(other, found)
                done += 1
            assert done == 7
            await check_whole(other, root)

    asyncio.run(scenario())


def test_the_log_is_no_longer_than_what_counts_needs(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
            for _ in range(300):
                await store.enqueue([new_task(key="a")])
                await succeed(store, await take(store))
            assert (root / LOG).read_bytes().count(b"\n") < 400
            assert [limit.id for limit in await store.get_limits()] == ["queue:q"]

    asyncio.run(scenario())


def test_a_slot_whose_task_was_removed_by_hand_comes_back(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
            await store.enqueue([new_task(key="a"), new_task(key="a")])
            (task,) = await take(store, 9)
        for path in list((root / "omniq").rglob(f"*{task.id}.json")):
            path.unlink()
        async with opened(root) as store:
            assert await take(store, 9) == []
            await store.prune(100)
            assert len(await take(store, 9)) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_a_limit_that_could_not_be_read_for_a_moment_is_in_force_afterwards(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    read = Tree.read

    def fail(tree: Tree, path: str) -> bytes:
        if path.startswith("limits/"):
            raise OSError(number, os.strerror(number), path)
        return read(tree, path)

    async def scenario() -> None:
        async with opened(root) as store:
            await store.put_limit(Limit(queue="q", concurrency=2))
            await store.enqueue([new_task() for _ in range(3)])
        async with opened(root) as store:
            with monkeypatch.context() as broken:
                broken.setattr(Tree, "read", fail)
                with pytest.raises(StorageUnavailable):
                    await take(store, 9)
                with pytest.raises(StorageUnavailable):
                    await store.check()
            assert await store.get_limits() == [Limit(queue="q", concurrency=2, revision=1)]
            assert len(await take(store, 9)) == 2
            with monkeypatch.context() as broken:
                broken.setattr(Tree, "read", fail)
                with pytest.raises(StorageUnavailable):
                    await store.check()
            assert await take(store, 9) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_limit_with_something_else_in_its_place_lets_nothing_start(root: Path, kind: str) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            await store.put_limit(Limit(queue="q", concurrency=2))
            await store.enqueue([new_task(), new_task(queue="other")])
        (path,) = [one for one in (root / "omniq" / "limits").iterdir() if one.name != LOG.name]
        path.unlink()
        if kind == "link":
            path.symlink_to(LOG)
        elif kind == "folder":
            path.mkdir()
        else:
            os.mkfifo(path)
        async with opened(root) as store:
            assert await take(store, 9) == []
            assert len(await store.claim({"other": 9}, worker="w", lease=300)) == 1
            assert [finding.subject for finding in await store.check()] == ["limit"]

    asyncio.run(scenario())
