"""What becomes of a store whose machine went down: it is mended, and with ``fsync=always`` nothing is lost."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from omniq.errors import StorageUnavailable
from omniq.storage import Severity
from omniq.task import Failed, TaskError, TaskState
from omniq_local.files import FileStorage
from omniq_local.files.superblock import read_control, write_control
from tests.local.files_support import check_whole, listing, opened, run_python, storage, succeed, take
from tests.local.support import Clock, new_task


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


def start_machine_anew(root: Path) -> None:
    """Have the store believe that the machine was started anew since its last use."""
    fd = os.open(root / "omniq" / "control", os.O_RDWR)
    try:
        numbers = read_control(fd)
        assert numbers is not None
        numbers.boot = "another"
        write_control(fd, numbers)
    finally:
        os.close(fd)


async def fill(root: Path, query: str = "") -> None:
    """Have tasks in every state."""
    async with opened(root, query, Clock()) as store:
        await store.enqueue([new_task(), new_task(unique="k"), new_task(expires=timedelta(hours=1)), new_task()])
        one, two, *_ = await take(store, 3)
        await succeed(store, [one])
        await store.finish([Failed(id=two.id, delivery=1, error=TaskError(type="E", message="m"))])
        await store.enqueue([new_task(run_at=timedelta(hours=1), unique="l"), new_task(expires=timedelta(hours=1))])
        await store.pause("paused")


def test_a_whole_store_is_found_whole(root: Path) -> None:
    async def scenario() -> None:
        await fill(root)
        async with opened(root, clock=Clock()) as store:
            before, stats = await check_whole(store, root), await store.stats()
        start_machine_anew(root)
        async with opened(root, clock=Clock()) as store:
            assert await check_whole(store, root) == before
            assert await store.stats() == stats

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "lost", ["ready", "running", "ids", "unique", "queues", "control", "expiring", "all but tasks"]
)
def test_whatever_is_lost_but_the_tasks_is_made_anew(root: Path, lost: str) -> None:
    async def scenario() -> None:
        await fill(root)
        async with opened(root, clock=Clock()) as store:
            before = await check_whole(store, root)
        start_machine_anew(root)
        base = root / "omniq"
        if lost == "control":
            (base / "control").write_bytes(b"\0" * 100)
        elif lost == "all but tasks":
            for path in base.iterdir():
                if path.is_dir() and path.name != "tasks":
                    shutil.rmtree(path)
                elif path.is_file():
                    path.unlink()
        else:
            shutil.rmtree(base / lost)
        async with opened(root, clock=Clock()) as store:
            assert await check_whole(store, root) == before
            assert len(await take(store, 9)) == 2
            (again,) = await store.enqueue([new_task(unique="l")])
            assert not again.created
            assert (await store.enqueue([new_task()]))[0].created
            await check_whole(store, root)

    asyncio.run(scenario())


@pytest.mark.parametrize("content", [b"", b"[" * 100_000], ids=["empty", "nested"])
def test_a_queue_whose_file_cannot_be_read_is_counted_anew(root: Path, content: bytes) -> None:
    async def scenario() -> None:
        await fill(root)
        async with opened(root) as store:
            before = [stats.counts for stats in await store.stats() if stats.queue == "q"]
        (root / "omniq/queues/q.json").write_bytes(content)
        start_machine_anew(root)
        async with opened(root) as store:
            assert [stats.counts for stats in await store.stats() if stats.queue == "q"] == before

    asyncio.run(scenario())


def test_tasks_whose_files_came_out_empty_are_moved_aside_and_told(root: Path) -> None:
    async def scenario() -> None:
        await fill(root)
        os.truncate(listing(root, "ready")[0], 0)
        os.truncate(listing(root, "succeeded")[0], 30)
        start_machine_anew(root)
        async with opened(root, clock=Clock()) as store:
            (stats, _) = await store.stats()
            assert stats.queue == "paused" or sum(stats.counts.values()) == 4
            findings = [each.message for each in await store.diagnose() if each.severity is Severity.WARNING]
            assert any("2 in" in message for message in findings)
            for path in (root / "omniq" / "aside").iterdir():
                path.unlink()
            await check_whole(store, root)
            assert len(await take(store, 9)) == 1

    asyncio.run(scenario())


def test_with_fsync_what_never_reached_the_disk_is_repeated_from_the_journal(root: Path) -> None:
    async def scenario() -> None:
        await fill(root, "?fsync=always")
        async with opened(root, "?fsync=always", Clock()) as store:
            before = await check_whole(store, root)
        base = root / "omniq"
        for folder in ("tasks", "ready", "running", "ids", "unique", "expiring", "succeeded", "queues"):
            shutil.rmtree(base / folder)
        start_machine_anew(root)
        async with opened(root, clock=Clock()) as store:
            assert await check_whole(store, root) == before
            assert [stats.queue for stats in await store.stats() if stats.paused] == ["paused"]

    asyncio.run(scenario())


def test_with_fsync_a_change_is_flushed_before_it_is_acknowledged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    flush = os.fdatasync

    def noted(fd: int) -> None:
        flushed.append(fd)
        flush(fd)

    monkeypatch.setattr(os, "fdatasync", noted)

    async def scenario() -> None:
        async with opened(root, "?fsync=always") as store:
            flushed.clear()
            await store.enqueue([new_task() for _ in range(10)])
            assert len(flushed) == 1
            store.enqueue_blocking([new_task()])
            assert len(flushed) == 2
            await succeed(store, await take(store, 10))
            assert len(flushed) == 4
        async with opened(root) as store:
            flushed.clear()
            await store.enqueue([new_task()])
            assert not flushed

    asyncio.run(scenario())


def test_the_journal_does_not_grow_without_end(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root, "?fsync=always") as store:
            for _ in range(12):
                await store.enqueue([new_task(body=b"x" * 900_000)])
            await check_whole(store, root)

    asyncio.run(scenario())
    assert (root / "omniq" / "journal").stat().st_size < 4 * 2**20


def test_states_are_what_they_were(root: Path) -> None:
    async def scenario() -> None:
        await fill(root)
        start_machine_anew(root)
        async with opened(root, clock=Clock()) as store:
            counts: Counter[TaskState] = Counter()
            for stats in await store.stats():
                counts.update(stats.counts)
            assert +counts == {
                TaskState.SCHEDULED: 1,
                TaskState.READY: 2,
                TaskState.RUNNING: 1,
                TaskState.SUCCEEDED: 1,
                TaskState.FAILED: 1,
            }

    asyncio.run(scenario())


def test_who_comes_while_a_store_is_repaired_waits_for_that_and_for_nothing_else(root: Path) -> None:
    async def scenario() -> None:
        await fill(root)
        fd = os.open(root / "omniq" / "lock", os.O_RDWR)
        sign = root / "omniq" / "repairing"
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with pytest.raises(StorageUnavailable, match="locked by another process"):
                await storage(root, "?lock_timeout=0.05").open()
            sign.write_text("")
            store = storage(root, "?lock_timeout=2")
            opens = asyncio.create_task(store.open())
            await asyncio.sleep(2.5)  # longer than its timeout
            assert not opens.done()
            sign.unlink()
            fcntl.flock(fd, fcntl.LOCK_UN)
            await opens
            await store.close()
        finally:
            os.close(fd)

    asyncio.run(scenario())


def test_a_repair_that_was_cut_short_is_done_again(root: Path) -> None:
    program = """
        import asyncio, os, signal, sys
        from pathlib import Path
        from omniq_local.files import repair
        from tests.local.files_support import opened

        kept = 0

        class Dying(repair._Repair):
            def _keep(self, record):
                global kept
                kept += 1
                if kept == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                super()._keep(record)

        repair._Repair = Dying

        async def main():
            async with opened(Path(sys.argv[1])):
                pass

        asyncio.run(main())
    """

    async def scenario() -> None:
        await fill(root)
        async with opened(root, clock=Clock()) as store:
            before = await check_whole(store, root)
        start_machine_anew(root)
        shutil.rmtree(root / "omniq" / "ids")
        assert run_python(program, str(root), check=False).returncode == -signal.SIGKILL
        async with opened(root, clock=Clock()) as store:
            assert await check_whole(store, root) == before
        assert not (root / "omniq" / "repairing").exists()

    asyncio.run(scenario())


# Copies


def copytree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def cp(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    subprocess.run(["cp", "-r", f"{source}/.", target], check=True)


def cp_with_links(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", f"{source}/.", target], check=True)


TOOLS = [copytree, cp, cp_with_links]


@pytest.mark.parametrize("copy", TOOLS)
def test_a_copy_made_by_any_tool_is_the_same_store(
    root: Path, tmp_path: Path, copy: Callable[[Path, Path], None]
) -> None:
    async def scenario() -> None:
        await fill(root)
        async with opened(root, clock=Clock()) as store:
            before, stats = await check_whole(store, root), await store.stats()
        backup = tmp_path / "backup"
        copy(root, backup)
        async with opened(backup, clock=Clock()) as store:
            assert await check_whole(store, backup) == before
            assert await store.stats() == stats
            assert len(await take(store, 9)) == 2
            assert not (await store.enqueue([new_task(unique="l")]))[0].created
        async with opened(root, clock=Clock()) as store:
            assert await check_whole(store, root) == before

    asyncio.run(scenario())


@pytest.mark.parametrize("copy", TOOLS)
@pytest.mark.parametrize("over", ["the store of today", "nothing"])
def test_a_backup_can_be_put_back(
    root: Path, tmp_path: Path, copy: Callable[[Path, Path], None], over: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        backup = tmp_path / "backup"
        await fill(root)
        async with opened(root, clock=Clock()) as store:
            before = await check_whole(store, root)
        copy(root, backup)
        async with opened(root, clock=Clock()) as store:
            (later,) = await store.enqueue([new_task()])
            await succeed(store, await take(store, 9))
        if over == "nothing":
            shutil.rmtree(root)
        copy(backup, root)
        async with opened(root, clock=Clock()) as store:
            found = await check_whole(store, root)
            assert {task_id: task for task_id, task in found.items() if task_id != later.id} == before
            assert (later.id in found) is (over != "nothing")

    asyncio.run(scenario())


def test_a_store_that_is_opened_again_is_not_taken_for_a_copy(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with opened(root) as first, opened(root) as second:
            await first.enqueue([new_task()])
            async with opened(root, "?fsync=always") as third:
                await third.enqueue([new_task()])
            assert len(await take(second, 9)) == 2
        async with opened(root) as store:
            assert len(await check_whole(store, root)) == 2
            assert await store.diagnose()

    with caplog.at_level(logging.WARNING, "omniq.files"):
        asyncio.run(scenario())
    assert not caplog.records


# Under those who use it


async def wait_as_workers_do(store: FileStorage) -> None:
    while True:
        try:
            await store.wait_for_work(["q"], 60)
        except StorageUnavailable:
            await asyncio.sleep(0.01)  # so that the loop does not spin
        else:
            return


def test_a_store_that_was_removed_while_in_use_is_not_begun_anew_and_one_that_comes_back_is_used(
    root: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            await store.enqueue([new_task()])
            os.rename(root, tmp_path / "elsewhere")
            for _ in range(2):
                with pytest.raises(StorageUnavailable, match=r"is gone: it was removed or moved while in use\. Put it"):
                    await store.enqueue([new_task()])
                with pytest.raises(StorageUnavailable, match="is gone"):
                    store.enqueue_blocking([new_task()])
            os.rename(tmp_path / "elsewhere", root)
            await store.enqueue([new_task()])
            assert len(await take(store, 9)) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("query", ["", "?fsync=always"])
def test_a_store_that_was_replaced_while_in_use_is_used_from_then_on(
    root: Path, tmp_path: Path, query: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with opened(root, query) as store, opened(root, query) as other:
            (kept,) = await store.enqueue([new_task()])
            backup = tmp_path / "backup"
            copytree(root, backup)
            held = await take(store)
            waits = asyncio.create_task(wait_as_workers_do(other))
            await asyncio.sleep(0)  # the wait begins
            os.rename(root, tmp_path / "old")
            os.rename(backup, root)
            await asyncio.wait_for(waits, 30)
            assert await succeed(other, held) == [False]
            (again,) = await take(other, 9)
            assert again.id == kept.id
            assert await succeed(store, [again]) == [True]
            await check_whole(store, root)

    with caplog.at_level(logging.WARNING, "omniq.files"):
        asyncio.run(scenario())
    assert "was replaced while in use" in caplog.text
