"""What is in the folder: what ``ls`` and ``cat`` show, and what becomes of files that do not belong there."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from omniq.errors import SchemaMismatch
from omniq.schedule import Schedule
from omniq.storage import Severity, TaskQuery
from omniq.task import Released, Retry, TaskState
from omniq_local.files import reading, state_folders
from omniq_local.files.doctor import file_system_of
from omniq_local.files.preparation import MARKER
from tests.local.files_support import STATES, check_whole, contents, listing, opened, run_python, storage, succeed, take
from tests.local.support import Clock, new_task


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


# ls and cat


def test_the_sorted_listing_of_the_ready_folder_is_the_order_of_claims(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_folders, "LIMIT", 5)
    clock = Clock()

    async def scenario() -> None:
        async with opened(root, clock=clock) as store:
            for number in range(40):
                clock.advance(0.5)
                delay = timedelta(seconds=number % 4)
                await store.enqueue([new_task(priority=(number % 3 - 1) * 100, run_at=delay or None)])
            clock.advance(60)
            (first,) = await take(store)
            await store.finish([Released(id=first.id, delivery=1)])
            listed = [json.loads(path.read_text().splitlines()[0])["id"] for path in listing(root, "ready")]
            assert len(listed) == 40
            assert [task.id for task in await take(store, 100)] == listed

    asyncio.run(scenario())


def test_a_file_tells_a_human_all_about_its_task(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            await store.enqueue([new_task(name="shop.mail", body='[["Grüße"], {}]'.encode(), tags=("a", "b"))])
            await store.enqueue([new_task(body=b"\xff\x00")])
            tasks = await take(store, 2)
            assert listing(root, "ready") == []
            first, second = (path.read_text().splitlines() for path in listing(root, "running"))
            assert json.loads(first[0])["body"] == '[["Grüße"], {}]'
            assert "Grüße" in first[0]
            assert json.loads(second[0])["body"] == {"base64": "/wA="}
            assert json.loads(first[0])["tags"] == ["a", "b"]
            status = json.loads(first[1])
            assert (status["state"], status["worker"], status["attempt"]) == ("running", "w", 1)
            assert status["started_at"] == str(tasks[0].started_at).replace(" ", "T")
            await succeed(store, tasks)
            assert json.loads(listing(root, "succeeded")[0].read_text().splitlines()[1])["result"] == "1"

    asyncio.run(scenario())


def test_a_transition_leaves_the_file_the_same_and_gives_it_another_name(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            await store.enqueue([new_task()])
            inodes = [os.stat(listing(root, "ready")[0]).st_ino]
            (task,) = await take(store)
            inodes.append(os.stat(listing(root, "running")[0]).st_ino)
            await store.finish([Retry(id=task.id, delivery=1, delay=9)])
            inodes.append(os.stat(listing(root, "scheduled")[0]).st_ino)
            assert len(set(inodes)) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["..", ".", "a/b", "ünï ☂", "A" * 300, "%2E", "con\x00"])
def test_any_text_can_be_a_queue_an_id_a_key_and_a_worker(root: Path, text: str) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            (added,) = await store.enqueue([new_task(id=text, queue=text, unique=text)])
            assert added.created
            (task,) = await store.claim({text: 1}, worker=text, lease=60)
            assert (task.id, task.queue, task.worker) == (text, text, text)
            await store.heartbeat(text, [], 60)
            assert [worker.id for worker in await store.workers()] == [text]
            assert [stats.queue for stats in await store.stats()] == [text]
            assert await succeed(store, [task]) == [True]

    asyncio.run(scenario())
    assert all(path.is_relative_to(root) for path in root.rglob("*"))


@pytest.mark.parametrize("field", ["id", "queue", "name", "unique"])
def test_half_of_a_surrogate_pair_is_refused_and_nothing_of_its_batch_stored(root: Path, field: str) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            with pytest.raises(ValueError, match="surrogates"):
                await store.enqueue([new_task(), new_task(**{field: "\ud800"})])
            assert await store.stats() == []

    asyncio.run(scenario())


def test_nothing_is_left_of_tasks_and_queues_that_are_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_folders, "LIMIT", 5)
    clock = Clock()

    async def scenario() -> None:
        async with opened(root, clock=clock) as store:
            empty = contents(root)
            options = {"unique": "k", "result_ttl": 5.0, "expires": timedelta(seconds=60)}
            await store.enqueue([new_task(**options), *(new_task(result_ttl=5.0) for _ in range(40))])
            await store.heartbeat("w", [], 60)
            while tasks := await take(store, 7):
                await succeed(store, tasks)
            clock.advance(100)
            while await store.prune(9):
                pass
            await store.prune(9)
            assert contents(root) == empty
            assert [list((root / "omniq" / state).glob("*")) for state in STATES if state != "cancelled"] == [[]] * (
                len(STATES) - 1
            )

    asyncio.run(scenario())


@pytest.mark.parametrize("where", ["middle", "end"])
def test_folders_stay_small_and_keep_their_order_whichever_way_they_grow(
    root: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(state_folders, "LIMIT", 8)
    clock = Clock()

    async def scenario() -> None:
        async with opened(root, clock=clock) as store, opened(root, clock=clock) as other:
            if where == "middle":
                await store.enqueue([new_task(run_at=timedelta(days=900))])
            for number in range(100):
                await (store, other)[number % 2].enqueue([new_task(run_at=timedelta(seconds=number * 37 % 101))])
            sizes = [len(list(folder.iterdir())) for folder in (root / "omniq/scheduled/q").iterdir()]
            assert max(sizes) <= 16
            await check_whole(store, root)
            clock.advance(1000)
            claimed = [*await take(store, 50), *await take(other, 50)]
            assert [task.run_at for task in claimed] == sorted(task.run_at for task in claimed)
            assert len(claimed) == 100
            await check_whole(other, root)

    asyncio.run(scenario())


# What does not belong there


def test_a_torn_file_is_moved_aside_its_task_ends_as_failed_and_the_others_are_served(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            ids = [answer.id for answer in await store.enqueue([new_task() for _ in range(3)])]
            torn = listing(root, "ready")[1]
            os.truncate(torn, 40)
            with caplog.at_level(logging.WARNING, "omniq.files"):
                assert [task.id for task in await take(store, 9)] == [ids[0], ids[2]]
            assert torn.name in caplog.text
            (ended,) = await store.get(ids[1:2])
            assert ended is not None
            assert ended.error is not None
            assert (ended.state, ended.error.type) == (TaskState.FAILED, "CorruptRecord")
            (stats,) = await store.stats()
            counts = stats.counts
            assert (counts[TaskState.READY], counts[TaskState.RUNNING], counts[TaskState.FAILED]) == (0, 2, 1)
            findings = [each for each in await store.diagnose() if each.severity is Severity.WARNING]
            assert any(torn.name in each.message and "aside" in each.message for each in findings)
            (kept,) = (root / "omniq/aside").iterdir()
            assert kept.stat().st_size == 40

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["notes.txt", "folder", "500-x.json", "copy"])
def test_a_foreign_file_is_moved_aside_and_not_taken_for_a_task(root: Path, name: str) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            await store.enqueue([new_task() for _ in range(2)])
            place = listing(root, "ready")[0]
        if name == "copy":
            shutil.copy(place, place.parent / place.name.replace("500-", "400-", 1))
        elif name == "folder":
            (place.parent.parent / "stuff").mkdir()
        else:
            (place.parent / name).write_text("hello")
        async with opened(root) as store:
            assert len(await take(store, 9)) == 2
            assert len(list((root / "omniq/aside").iterdir())) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000], ids=["empty", "of nothing", "nested"])
@pytest.mark.parametrize("place", ["workers", "schedules"])
def test_a_worker_or_schedule_that_cannot_be_read_is_told_and_hides_no_other(
    root: Path, place: str, content: bytes
) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            for name in ("a", "b"):
                await store.heartbeat(name, [], 60)
                await store.put_schedule(Schedule(id=name, task=new_task(), trigger="[]", next_run=None))
        broken = min((root / "omniq" / place).iterdir())
        broken.write_bytes(content)
        async with opened(root) as store:
            left = [worker.id for worker in await store.workers()], [one.id for one in await store.get_schedules()]
            assert sorted(map(len, left)) == [1, 2]
            (found,) = await store.check()
            assert (found.subject, str(broken) in found.message) == (place.rstrip("s"), True)
            if place == "schedules":
                assert "omniq schedules delete a" in found.message
                assert await store.delete_schedule("a")
            else:
                await store.heartbeat("a", [], 60)
            assert await store.check() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("content", [b"", b"7", b"[" * 100_000], ids=["empty", "a number", "nested"])
def test_a_store_whose_marker_cannot_be_read_is_refused(root: Path, content: bytes) -> None:
    async def scenario() -> None:
        async with opened(root):
            pass
        (root / MARKER).write_bytes(content)
        with pytest.raises(SchemaMismatch, match="another version"):
            await storage(root).open()

    asyncio.run(scenario())


def test_a_name_that_somebody_removed_by_hand_does_not_stop_a_task_from_ending(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            await store.enqueue([new_task()])
            tasks = await take(store)
            listing(root, "running")[0].unlink()
            assert await succeed(store, tasks) == [True]
            await check_whole(store, root)

    asyncio.run(scenario())


# Several processes


def test_processes_that_produce_and_work_at_once_see_each_other_s_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_folders, "LIMIT", 20)
    program = """
        import asyncio, sys
        from datetime import timedelta
        from pathlib import Path
        from omniq_local.files import state_folders
        from tests.local.files_support import opened, succeed
        from tests.local.support import new_task

        state_folders.LIMIT = 20

        async def main():
            async with opened(Path(sys.argv[1])) as store:
                for number in range(150):
                    delay = timedelta(milliseconds=number % 7) or None
                    await store.enqueue([new_task(priority=number % 3, run_at=delay)])
                    if number % 2:
                        tasks = await store.claim({"q": 2}, worker=sys.argv[2], lease=60)
                        assert all(await succeed(store, tasks))

        asyncio.run(main())
    """

    async def scenario() -> None:
        async with opened(root) as store:
            await asyncio.gather(*(asyncio.to_thread(run_python, program, str(root), each) for each in "ab"))
            while tasks := [*await take(store, 9)]:
                await succeed(store, tasks)
            tasks_left = await check_whole(store, root)
            assert len(tasks_left) == 300
            assert {(task.state, task.delivery) for task in tasks_left.values()} == {(TaskState.SUCCEEDED, 1)}

    asyncio.run(scenario())


def test_the_child_of_a_fork_opens_the_store_anew_and_leaves_the_parent_s_lock_alone(root: Path) -> None:
    program = """
        import asyncio, os, sys
        from pathlib import Path
        from omniq.errors import StorageUnavailable
        from tests.local.files_support import storage
        from tests.local.support import new_task

        store = storage(Path(sys.argv[1]))
        with asyncio.Runner() as runner:
            runner.run(store.open())
            runner.run(store.enqueue([new_task()]))
            child = os.fork()
            if not child:
                async def in_child():
                    assert store.enqueue_blocking([new_task()]) is None
                    try:
                        await store.enqueue([new_task()])
                    except StorageUnavailable as error:
                        assert "call open() first" in str(error)
                    await store.close()
                    await store.open()
                    await store.enqueue([new_task()])
                    await store.close()
                asyncio.run(in_child())
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            runner.run(store.enqueue([new_task()]))
            (stats,) = runner.run(store.stats())
            print(stats.counts["ready"])
            runner.run(store.close())
    """
    assert run_python(program, str(root)).stdout == "3\n"


def test_a_closed_store_keeps_no_file_open(root: Path) -> None:
    def ours() -> list[str]:
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return [os.readlink(link) for link in links if os.path.islink(link) and str(root) in os.readlink(link)]

    async def scenario() -> None:
        store = storage(root)
        await store.open()
        assert ours()
        await store.wait_for_work(["q"], 0.05)
        await store.close()
        assert ours() == []

    asyncio.run(scenario())


def test_the_kind_of_file_system_is_read_from_the_list_of_mounts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/a / ext4 rw 0 0\nserver:/x /mnt/with\\040space nfs4 rw 0 0\n/dev/b /mnt/with ext3 rw 0 0\n")
    assert file_system_of("/mnt/with space/jobs", str(mounts)) == "nfs4"
    assert file_system_of("/mnt/with/jobs", str(mounts)) == "ext3"
    assert file_system_of("/mnt/without", str(mounts)) == "ext4"
    assert file_system_of("/", str(tmp_path / "none")) == ""


@pytest.mark.parametrize("query", [{}, {"queue": "q"}, {"states": [TaskState.READY, TaskState.CANCELLED]}])
def test_what_was_enqueued_before_a_time_is_found_wherever_it_is(
    root: Path, monkeypatch: pytest.MonkeyPatch, query: dict[str, Any]
) -> None:
    monkeypatch.setattr(reading, "CLOCK_SLACK", timedelta(0))

    async def scenario() -> None:
        async with opened(root) as store:
            ids = []
            for number in range(9):
                task = new_task(priority=number % 3)
                await store.enqueue([task])
                ids.append(task.id)
            await store.cancel(ids[::4])
            times = [task.created_at for task in await store.get(ids) if task is not None]
            for moment in times:
                page = await store.list_tasks(TaskQuery(enqueued_before=moment, **query))
                assert [task.id for task in page] == ids[: times.index(moment)][::-1]

    asyncio.run(scenario())
