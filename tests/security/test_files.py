"""Somebody who can write to the folder of a file store, with nothing but files: what he cannot do by that."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import struct
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from omniq.errors import StorageUnavailable
from omniq.storage import Severity, TaskQuery
from omniq.task import Succeeded, TaskState
from omniq_local.files import FileStorage
from tests.local.files_support import opened, storage, succeed, take
from tests.local.support import Clock, new_task

HEADER = struct.Struct("<4sIQQQQQI")
NUMBERS = struct.Struct("<8sQQQQQQQ")
HARMLESS = "text of somebody else's"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


def place(root: Path, pattern: str) -> Path:
    """Return the one file of a store that a pattern names."""
    (path,) = (root / "omniq").glob(pattern)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside the store that its user can write."""
    path = tmp_path / "sitecustomize.py"
    path.write_text(HARMLESS)
    return path


def run(scenario: Callable[[FileStorage], Awaitable[None]], root: Path, query: str = "") -> None:
    """Run what a user does with an open store; bounded, so that what blocks for ever fails."""

    async def bounded() -> None:
        async with asyncio.timeout(60), opened(root, query) as store:
            await scenario(store)

    asyncio.run(bounded())


async def fill(store: FileStorage) -> None:
    await store.enqueue([new_task(id="a"), new_task(id="b")])


async def serve(store: FileStorage) -> None:
    """Do what must go on whatever is in the folder."""
    (added,) = await store.enqueue([new_task(id="other", queue="other")])
    assert added.created
    (task,) = await store.claim({"other": 1}, worker="w", lease=60)
    assert await succeed(store, [task]) == [True]
    await store.recover(10)
    await store.prune(10)
    await store.stats()


def forge_change(root: Path, index: list[object], blobs: bytes = b"", **numbers: int) -> None:
    """Write a change into the journal as a process leaves it that dies in the middle of it."""
    base = root / "omniq"
    _, generation, sequence, offset, _, layout, queues, schedules = NUMBERS.unpack_from((base / "control").read_bytes())
    given = {
        "generation": generation + 1,
        "sequence": sequence,
        "layout": layout,
        "queues": queues,
        "schedules": schedules,
        **numbers,
    }
    body = json.dumps(index).encode() + b"\n" + blobs
    frame = HEADER.pack(b"oqj1", zlib.crc32(body), *given.values(), len(body)) + body
    with (base / "journal").open("r+b") as journal:
        journal.seek(offset)
        journal.write(frame)


CONTENT = b"import os; os.system('he was here')"


@pytest.mark.parametrize("fsync", ["never", "always"])
@pytest.mark.parametrize(
    "path",
    ["../../sitecustomize.py", "queues/../../../sitecustomize.py", "{victim}", "queues/./../../../sitecustomize.py"],
)
@pytest.mark.parametrize("kind", ["write", "create", "tail", "move", "link", "remove", "link to", "move to"])
def test_a_change_in_the_journal_reaches_no_file_outside(
    root: Path, victim: Path, kind: str, path: str, fsync: str
) -> None:
    path = path.format(victim=victim)
    run(fill, root, f"?fsync={fsync}")
    actions: dict[str, list[object]] = {
        "write": ["write", path, len(CONTENT)],
        "create": ["create", path, len(CONTENT)],
        "tail": ["tail", path, 0, len(CONTENT)],
        "move": ["move", "queues/q.json", path, ""],
        "link": ["link", "queues/q.json", path],
        "remove": ["remove", path],
        "link to": ["link", path, "queues/mine.json"],
        "move to": ["move", path, "queues/mine.json", ""],
    }
    forge_change(root, [actions[kind]], CONTENT)
    run(serve, root, f"?fsync={fsync}")
    assert victim.read_text() == HARMLESS
    assert not (root / "omniq" / "queues" / "mine.json").exists()


@pytest.mark.parametrize(
    "index",
    [
        {"write": 1},
        [7],
        [["write"]],
        [["write", "queues/x.json"]],
        [["write", "queues/x.json", -5]],
        [["write", "queues/x.json", 10**30]],
        [["write", "queues/x.json", True, 5]],
        [["tail", "queues/q.json", -1, 5]],
        [["tail", "queues/q.json", 10**30, 5]],
        [["tail", "queues/q.json", 2**61, 5]],
        [["write", ["queues"], 5]],
        [["write", "queues", 5]],
        [["write", "queues/", 5]],
        [["write", "queues//x.json", 5]],
        [["write", "queues/x\0.json", 5]],
        [["write", "queues/\ud800.json", 5]],
        [["write", "queues/" + "x" * 300, 5]],
        [["write", "queues/" + "x/" * 3000, 5]],
        [["write", "control", 5]],
        [["write", "marks/x", 5]],
        [["exec", "queues/x.json"]],
        [["move", "queues/q.json", "queues/x.json", 7]],
        [["folder", "tasks"]],
    ],
    ids=lambda index: json.dumps(index)[:40],
)
def test_a_change_that_makes_no_sense_stops_nobody(root: Path, index: list[object]) -> None:
    run(fill, root)
    forge_change(root, index, CONTENT)
    run(serve, root)


@pytest.mark.parametrize("numbers", [{"sequence": 2**64 - 1}, {"layout": 2**64 - 1}, {"sequence": 10**12}], ids=repr)
def test_a_change_with_numbers_that_leave_no_room_for_others_is_none(root: Path, numbers: dict[str, int]) -> None:
    run(fill, root)
    forge_change(root, [], b"", **numbers)
    run(serve, root)


async def find(store: FileStorage) -> None:
    assert len(await take(store, 5)) == 2


LINKED = ["queues/q.json", "queues", "schedules/s.json", "workers/w.json", "aside"]


@pytest.mark.parametrize("path", LINKED)
def test_no_link_is_followed(root: Path, tmp_path: Path, victim: Path, path: str) -> None:
    run(fill, root)
    folder = tmp_path / "folder"
    folder.mkdir()
    place = root / "omniq" / path
    is_folder = place.is_dir()
    if is_folder:
        place.rename(tmp_path / "taken away")
    place.unlink(missing_ok=True)
    place.symlink_to(folder if is_folder else victim)

    async def scenario(store: FileStorage) -> None:
        await serve(store)
        await store.heartbeat("w", [], 60.0)
        assert [worker.id for worker in await store.workers()] == ["w"]
        assert await store.get_schedules() == []
        await find(store)

    if is_folder:
        with pytest.raises(StorageUnavailable, match=f"{path} is .*symbolic link"):
            run(scenario, root)
    else:
        run(scenario, root)
    assert victim.read_text() == HARMLESS
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["lock", "control", "journal", "waiters"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_store_whose_own_files_are_none_is_refused_with_the_mend(
    root: Path, victim: Path, name: str, kind: str
) -> None:
    run(fill, root)
    path = root / "omniq" / name
    path.unlink()
    if kind == "link":
        path.symlink_to(victim)
    else:
        os.mkfifo(path)
    with pytest.raises(StorageUnavailable, match=f"{name} is a symbolic link, or no regular file.*remove it"):
        run(find, root)
    assert victim.read_text() == HARMLESS
    path.unlink()
    run(find, root)


def plant_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def plant_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "in it").write_text("")


def plant_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("plant", [plant_pipe, plant_folder, plant_link], ids=["pipe", "folder", "link"])
@pytest.mark.parametrize("pattern", ["ready/q/0/*-a.json", "queues/q.json", "ids/*/a.json", "tasks/*/*-a.json"])
def test_what_is_no_file_in_the_place_of_one_blocks_nobody(
    root: Path, pattern: str, plant: Callable[[Path], None]
) -> None:
    run(fill, root)
    (path,) = (root / "omniq").glob(pattern)
    plant(path)

    async def scenario(store: FileStorage) -> None:
        await serve(store)
        claimed = await take(store, 5)
        assert "b" in [task.id for task in claimed]
        assert all(await succeed(store, claimed))
        await store.get(["a", "b"])

    run(scenario, root)


def test_whoever_cuts_off_the_table_of_waiters_kills_nobody(root: Path) -> None:
    async def scenario(store: FileStorage) -> None:
        waiting = asyncio.create_task(store.wait_for_work(("q",), 30))
        await asyncio.sleep(0)  # the wait begins
        os.truncate(root / "omniq" / "waiters", 0)
        await fill(store)
        await waiting
        await find(store)

    run(scenario, root)


def modes(folder: Path) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {stat.S_IFREG: set(), stat.S_IFDIR: set()}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        found[stat.S_IFMT(status.st_mode)].add(stat.S_IMODE(status.st_mode))
    return found


@pytest.mark.parametrize(
    ("umask", "query", "files", "folders"),
    [(0o000, "", 0o600, 0o700), (0o022, "", 0o600, 0o700), (0o077, "?mode=0660", 0o660, 0o770)],
)
def test_files_are_their_owner_s_unless_the_url_says_otherwise(
    root: Path, umask: int, query: str, files: int, folders: int
) -> None:
    async def scenario(store: FileStorage) -> None:
        await fill(store)
        await store.heartbeat("w", [], 60.0)
        await succeed(store, await take(store))
        (waiting,) = root.glob("omniq/ready/q/0/*")  # noqa: ASYNC240  # nothing else runs on this loop
        waiting.write_text("torn")
        await take(store)

    previous = os.umask(umask)
    try:
        run(scenario, root, query)
    finally:
        os.umask(previous)
    for path in root.glob("omniq/aside/*"):
        path.unlink()
    assert modes(root) == {stat.S_IFREG: {files}, stat.S_IFDIR: {folders}}


def test_the_files_of_a_store_that_others_could_read_are_closed_to_them_at_its_next_use(root: Path) -> None:
    run(fill, root)
    own = [root / "omniq", *(root / "omniq" / name for name in ("lock", "control", "journal", "waiters"))]
    for path in own:
        path.chmod(0o755 if path.is_dir() else 0o644)
    run(find, root)
    assert [stat.S_IMODE(path.stat().st_mode) for path in own] == [0o700, 0o600, 0o600, 0o600, 0o600]


@pytest.mark.parametrize("mode", ["0400", "0777", "600x", "-1", "1600"])
def test_a_mode_that_no_store_can_do_with_is_refused(root: Path, mode: str) -> None:
    with pytest.raises(ValueError, match="mode must be"):
        storage(root, f"?mode={mode}")


def test_doctor_warns_of_a_folder_that_others_can_write(root: Path) -> None:
    async def scenario(store: FileStorage) -> None:
        assert [each for each in await store.diagnose() if each.subject == "access"] == []
        root.chmod(0o777)  # noqa: ASYNC240  # nothing else runs on this loop
        (found,) = [each for each in await store.diagnose() if each.subject == "access"]
        assert found.severity is Severity.WARNING
        assert f"{root} can be written by others (0777)" in found.message

    run(scenario, root)


# Records


def relink(source: Path, target: Path) -> None:
    target.unlink()
    os.link(source, target)


@pytest.mark.parametrize("by", ["ids/*/{}.json", "tasks/*/*-{}.json"])
def test_a_task_that_was_relinked_to_another_does_not_give_the_other_s_result(root: Path, by: str) -> None:
    async def scenario(store: FileStorage) -> None:
        await fill(store)
        a, b = await take(store, 2)
        await store.finish([Succeeded(id="a", delivery=a.delivery, result=b"of a")])
        await store.finish([Succeeded(id="b", delivery=b.delivery, result=b"of b")])
        relink(place(root, by.format("a")), place(root, by.format("b")))
        for each, result in zip(await store.get(["a", "b"]), (b"of a", b"of b"), strict=True):
            assert each is not None
            assert each.result_payload == result
        assert {task.id for task in await store.list_tasks(TaskQuery())} == {"a", "b"}

    run(scenario, root)


def test_to_cancel_or_delete_a_task_that_was_relinked_leaves_the_other_alone(root: Path) -> None:
    async def scenario(store: FileStorage) -> None:
        await fill(store)
        relink(place(root, "ids/*/a.json"), place(root, "ids/*/b.json"))
        assert await store.cancel(["b"]) == [True]
        a, b = await store.get(["a", "b"])
        assert a is not None
        assert b is not None
        assert (a.state, b.state) == (TaskState.READY, TaskState.CANCELLED)
        relink(place(root, "ids/*/a.json"), place(root, "ids/*/b.json"))
        assert await store.retry(["b"]) == [True]
        assert await store.delete(["b"]) == [True]
        assert [task.id for task in await take(store, 5)] == ["a"]

    run(scenario, root)


def test_a_ready_entry_that_was_relinked_runs_its_own_task_once(root: Path) -> None:
    async def scenario(store: FileStorage) -> None:
        await fill(store)
        relink(place(root, "ready/q/0/*-a.json"), place(root, "ready/q/0/*-b.json"))
        claimed = await take(store, 5)
        assert [(task.id, task.delivery) for task in claimed] == [("a", 1), ("b", 1)]
        assert await succeed(store, claimed) == [True, True]

    run(scenario, root)


def changed(path: Path, line: int, **fields: object) -> None:
    """Change a task's file in place, as an editor does not."""
    lines = path.read_bytes().split(b"\n")
    lines[line] = json.dumps({**json.loads(lines[line]), **fields}).encode()
    path.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (0, {"name": []}),
        (0, {"queue": 7}),
        (0, {"queue": "elsewhere"}),
        (0, {"result_ttl": float("nan")}),
        (0, {"result_ttl": float("inf")}),
        (0, {"sequence": 10**12}),
        (0, {"id": "another"}),
        (0, {"id": ["a"]}),
        (0, {"tags": [None]}),
        (1, {"attempt": "1"}),
        (1, {"delivery": 2**31 - 1}),
        (1, {"run_at": "0001-01-01T00:00:00+00:00"}),
        (1, {"run_at": "2026-01-01T00:00:00"}),
        (1, {"state": "running"}),
        (1, {"error": {"type": 1}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("state", ["ready", "running"])
def test_of_a_batch_with_a_bad_record_all_others_run_and_it_is_ended_and_named(
    root: Path, line: int, fields: dict[str, object], state: str
) -> None:
    clock = Clock()

    async def scenario() -> None:
        async with opened(root, clock=clock) as store:
            await store.enqueue([new_task(id=name, max_retries=0) for name in "abcde"])
            claimed = await take(store, 9, lease=1.0) if state == "running" else []
            changed(place(root, f"{state}/q/0/*-c.json"), line, **fields)
        async with opened(root, clock=clock) as store:
            if state == "running":
                assert all(await succeed(store, [task for task in claimed if task.id != "c"]))
                clock.advance(2)
                await store.recover(10)
            else:
                assert [task.id for task in await take(store, 9)] == ["a", "b", "d", "e"]
            (task,) = await store.get(["c"])
            assert task is not None
            assert task.state is TaskState.FAILED
            assert task.error is not None
            if task.error.type != "WorkerLost":
                # Another attempt or state may be a record as good as any other.
                assert task.error.type == "CorruptRecord"
                (found,) = await store.check()
                assert "omniq tasks delete c" in found.message
            await store.stats()
            await store.prune(10)
            assert await store.delete(["c"]) == [True]
            assert await store.get(["c"]) == [None]

    asyncio.run(scenario())


def test_a_foreign_name_of_any_length_stops_nothing(root: Path) -> None:
    run(fill, root)
    folder = os.fsencode(root / "omniq" / "ready" / "q" / "0")
    for name in (b"x" * 250, b"\xff\xfe" * 120, "ä".encode() * 125, b"000-x\x1b[2J"):
        os.close(os.open(folder + b"/" + name, os.O_CREAT | os.O_WRONLY))

    async def scenario(store: FileStorage) -> None:
        await store.stats()
        await find(store)
        await store.diagnose()

    run(scenario, root)
    assert len(list((root / "omniq" / "aside").iterdir())) == 4


def test_a_ready_entry_that_was_removed_by_hand_makes_no_worker_look_again_and_again(root: Path) -> None:
    async def scenario(store: FileStorage) -> None:
        await fill(store)
        place(root, "ready/q/0/*-a.json").unlink()
        assert [task.id for task in await take(store, 5)] == ["b"]
        assert await take(store, 5) == []
        # Where some are ready, nobody waits.
        (stats,) = await store.stats()
        assert stats.counts[TaskState.READY] == 0

    run(scenario, root)
