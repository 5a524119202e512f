"""Files that cannot be used, or not at the moment: what is said, and that it works again afterwards by itself."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from omniq.errors import SchemaMismatch, StorageUnavailable
from omniq.storage import Severity
from omniq.task import Succeeded, TaskState
from omniq.testing import await_until
from omniq_local.sqlite import SQLiteStorage
from omniq_local.sqlite.doctor import file_system_of
from omniq_local.sqlite.preparation import SCHEMA_VERSION
from tests.local.sqlite_support import count, opened, output_of, python, raw, run_python, storage, take
from tests.local.support import new_task


def opening(path: Path, query: str = "") -> None:
    async def scenario() -> None:
        async with opened(path, query):
            pass

    asyncio.run(scenario())


# Other people's files


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Buy milk.\n" * 1000)
    before = path.read_bytes()
    with pytest.raises(SchemaMismatch, match=r"notes\.txt is no SQLite database"):
        opening(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with raw(path) as connection:
        connection.execute("CREATE TABLE customer (name)")
    before = path.read_bytes()
    with pytest.raises(SchemaMismatch, match=r"shop.db is another program's database; .*foreign=allow"):
        opening(path)
    assert path.read_bytes() == before


def test_another_programs_empty_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with raw(path) as connection:
        connection.execute("PRAGMA application_id = 1234")
    with pytest.raises(SchemaMismatch, match="another program's database"):
        opening(path)


def test_another_programs_database_can_be_shared_if_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with raw(path) as connection:
        connection.execute("CREATE TABLE customer (name)")
        connection.execute("INSERT INTO customer VALUES ('Ada')")
        connection.execute("PRAGMA application_id = 1234")
        connection.execute("PRAGMA user_version = 7")

    async def scenario() -> None:
        async with opened(path, "?foreign=allow") as store:
            await store.enqueue([new_task()])
        # Once our tables are there it need not be said again.
        async with opened(path) as store:
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())
    with raw(path) as connection:
        assert connection.execute("SELECT name FROM customer").fetchall() == [("Ada",)]
        assert connection.execute("PRAGMA application_id").fetchone() == (1234,)
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (str(SCHEMA_VERSION + 1), "written by a newer OmniQ .*upgrade omniq-local"),
        ("0", "does not know"),
        ("x", "know"),
    ],
)
def test_tables_of_another_version_are_refused_with_the_mend(tmp_path: Path, version: str, advice: str) -> None:
    path = tmp_path / "jobs.db"
    opening(path)
    with raw(path) as connection:
        connection.execute("UPDATE \"omniq.meta\" SET value = ? WHERE key = 'schema'", (version,))
    with pytest.raises(SchemaMismatch, match=advice):
        opening(path)
    opening(path, "?namespace=other")


# Files that cannot be opened


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match=f"there is no folder {tmp_path}/data; create it"):
        opening(tmp_path / "data" / "jobs.db")


def test_a_folder_instead_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").mkdir()
    with pytest.raises(StorageUnavailable, match="it is a folder; name a file in it"):
        opening(tmp_path / "jobs.db")


AS_NOBODY = """
import asyncio, os, sys
from omniq.errors import StorageUnavailable
from omniq.storage.urls import parse_url
from omniq.testing import await_until
from omniq_local.sqlite import SQLiteStorage

async def main():
    store = SQLiteStorage(parse_url(f"sqlite:///{sys.argv[1]}"))
    if os.getuid() == 0:  # permissions do not bind root
        os.setgid(65534)
        os.setuid(65534)
    try:
        await store.open()
    except StorageUnavailable as error:
        print(error)
    else:
        print("opened")
        await store.close()

asyncio.run(main())
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user reaches; pytest's own are closed to others, and closed again by each run beside this."""
    with tempfile.TemporaryDirectory(prefix="omniq-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


def test_a_folder_that_may_not_be_written_is_named(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    said = run_python(AS_NOBODY, open_folder / "jobs.db")
    assert f"let this user read and write the file and its folder {open_folder}" in said


def test_a_folder_that_may_not_be_reached_is_named(open_folder: Path) -> None:
    inner = open_folder / "inner"
    inner.mkdir()
    open_folder.chmod(0o600)
    assert f"this user may not reach {inner}" in run_python(AS_NOBODY, inner / "jobs.db")


def test_a_file_that_may_not_be_written_is_named(open_folder: Path) -> None:
    path = open_folder / "jobs.db"
    opening(path)
    path.chmod(0o444)
    open_folder.chmod(0o777)
    said = run_python(AS_NOBODY, path)
    assert f"{path} cannot be written" in said
    assert f"its folder {open_folder}" in said
    path.chmod(0o644)
    opening(path)


# A disk that is full


def test_a_full_disk_is_said_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            (first,) = await store.enqueue([new_task()])
            connection = store._database._main.connection
            assert connection is not None
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
            batch = [new_task(body=b"x" * 3000, tags=("t",)) for _ in range(50)]
            with pytest.raises(
                StorageUnavailable, match=f"the disk is full; nothing was stored. Free space on {tmp_path}"
            ):
                await store.enqueue(batch)
            with pytest.raises(StorageUnavailable, match="the disk is full"):
                store.enqueue_blocking(batch)
            assert await count(store, TaskState.READY) == 1
            assert await store.get([task.id for task in batch]) == [None] * 50
            # What is there can be worked on, and there is room again some time.
            (task,) = await take(store)
            assert task.id == first.id
            connection.execute("PRAGMA max_page_count = 1000000")
            assert all(entry.created for entry in await store.enqueue(batch))
            assert await store.finish([Succeeded(id=task.id, delivery=task.delivery, result=b"")]) == [True]
            assert await count(store, TaskState.READY) == 50

    asyncio.run(scenario())


FILE_SIZE_LIMITED = """
import asyncio, resource, sys
from omniq.errors import StorageUnavailable
from omniq.storage.ids import new_id
from omniq.task import NewTask
from omniq.storage.urls import parse_url
from omniq.testing import await_until
from omniq_local.sqlite import SQLiteStorage

def tasks(n):
    return [NewTask(id=new_id(), queue="q", name="n", body=b"x" * 900) for _ in range(n)]

async def main():
    store = SQLiteStorage(parse_url(f"sqlite:///{sys.argv[1]}"))
    await store.open()
    stored = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    try:
        while True:
            await store.enqueue(tasks(20))
            stored += 20
    except StorageUnavailable as error:
        print(type(error).__name__, "disk" in str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.enqueue_blocking(tasks(1))
    (stats,) = await store.stats()
    print(stats.counts["ready"] == stored + 1)
    await store.close()

asyncio.run(main())
"""


def test_a_file_that_cannot_grow_is_said_and_works_again_once_it_can(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    assert run_python(FILE_SIZE_LIMITED, path).split() == ["StorageUnavailable", "True", "True"]
    with raw(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# A file that others hold


class Holder:
    """Holds the file's write lock until told to let go."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("BEGIN IMMEDIATE")

    def let_go_after(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self.let_go)
        timer.start()
        return timer

    def let_go(self) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


def test_a_file_that_another_holds_for_a_while_costs_that_while_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            await store.enqueue([new_task()])
            (task,) = await take(store)
            holder = Holder(tmp_path / "jobs.db")

            async def go_on() -> None:
                # The loop goes on meanwhile: else nobody would let go.
                for _ in range(50):
                    await asyncio.sleep(0.02)  # fifty of them: for a second
                holder.let_go()

            going_on = asyncio.create_task(go_on())
            created, finished, claimed, beat = await asyncio.gather(
                store.enqueue([new_task()]),
                store.finish([Succeeded(id=task.id, delivery=1, result=b"")]),
                take(store, "other"),
                store.heartbeat("w", [], 30),
            )
            assert (created[0].created, finished, claimed, beat) == (True, [True], [], [])
            await going_on
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())


def test_a_blocking_enqueue_waits_for_a_file_that_another_holds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            Holder(tmp_path / "jobs.db").let_go_after(0.5)
            stored = store.enqueue_blocking([new_task()])
            assert stored is not None
            assert stored[0].created
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())


def test_a_file_that_another_holds_too_long_is_said_in_a_bounded_time_and_works_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db", "?busy_timeout=0.2") as store:
            holder = Holder(tmp_path / "jobs.db")
            for call in (store.enqueue([new_task()]), take(store), store.heartbeat("w", [], 30)):
                with pytest.raises(StorageUnavailable, match=r"locked by another connection for more than 0.2 s"):
                    await asyncio.wait_for(call, 30)
            with pytest.raises(StorageUnavailable, match="locked by another"):
                store.enqueue_blocking([new_task()])
            # Whoever only reads is not held up.
            assert await store.stats() == []
            holder.let_go()
            assert (await store.enqueue([new_task()]))[0].created

    asyncio.run(scenario())


def test_one_that_fails_does_not_harm_the_others_of_its_group(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            timer = Holder(tmp_path / "jobs.db").let_go_after(0.3)
            good, bad, too = await asyncio.gather(
                store.enqueue([new_task()]),
                store.enqueue([new_task(name=object())]),
                store.enqueue([new_task(), new_task()]),
                return_exceptions=True,
            )
            timer.join()
            assert isinstance(bad, BaseException)
            assert not isinstance(good, BaseException)
            assert not isinstance(too, BaseException)
            assert await count(store, TaskState.READY) == 3

    asyncio.run(scenario())


# A file that is taken away


def delete_all_in(folder: Path) -> None:
    for entry in folder.iterdir():
        entry.unlink()


def test_a_file_that_was_replaced_while_in_use_is_noticed(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            await store.enqueue([new_task()])
            delete_all_in(tmp_path)
            async with opened(path) as other:
                await other.enqueue([new_task(queue="new")])

                async def sees_the_new_one() -> bool:
                    await store.enqueue([new_task(queue="probe")])
                    return [stats.queue for stats in await other.stats()] == ["new", "probe"]

                await await_until(sees_the_new_one)
                assert len(await take(store, "new")) == 1

    asyncio.run(scenario())


def test_a_file_that_was_deleted_while_in_use_is_not_written_into_the_void(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            await store.enqueue([new_task()])
            delete_all_in(tmp_path)

            async def refuses() -> bool:
                try:
                    await store.enqueue([new_task()])
                except StorageUnavailable as error:
                    return "there is no file" in str(error)
                return False

            await await_until(refuses)

    asyncio.run(scenario())


# Many at once


CREATE = """
import asyncio, sys
from omniq.storage.ids import new_id
from omniq.task import NewTask
from omniq.storage.urls import parse_url
from omniq.testing import await_until
from omniq_local.sqlite import SQLiteStorage

async def main():
    stores = [SQLiteStorage(parse_url(f"sqlite:///{sys.argv[1]}?namespace={name}")) for name in ("a", "b")]
    print("here", flush=True)
    sys.stdin.readline()
    for store in stores:
        await store.open()
        await store.enqueue([NewTask(id=new_id(), queue="q", name="n", body=b"")])
        await store.close()

asyncio.run(main())
"""


def test_many_processes_can_create_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with ExitStack() as stack:
        processes = [stack.enter_context(python(CREATE, path)) for _ in range(4)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            output_of(process)

    async def scenario() -> None:
        for namespace in ("a", "b"):
            async with opened(path, f"?namespace={namespace}") as store:
                assert await count(store, TaskState.READY) == 4

    asyncio.run(scenario())


# What the doctor says


def test_the_doctor_finds_a_new_store_well(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            findings = {finding.subject: finding for finding in await store.diagnose()}
            assert all(finding.severity is not Severity.ERROR for finding in findings.values())
            assert {"SQLite", "schema", "journal mode", "durability", "integrity", "file", "log", "disk"} <= set(
                findings
            )

    asyncio.run(scenario())


def test_the_doctor_finds_damage(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"

    async def fill() -> None:
        async with opened(path) as store:
            await store.enqueue([new_task() for _ in range(2000)])

    async def examine(store: SQLiteStorage) -> None:
        await store.open()
        try:
            findings = {finding.subject: finding for finding in await store.diagnose()}
        finally:
            await store.close()
        assert findings["integrity"].severity is Severity.ERROR
        assert "restore a copy" in findings["integrity"].message

    asyncio.run(fill())
    with raw(path) as connection:
        root, size = connection.execute(
            "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = 'omniq.ready'"
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * size + 12)
        file.write(b"\xff" * 64)
    asyncio.run(examine(storage(path)))


def test_the_file_system_is_the_one_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\nserver:/x /mnt/my\\040share nfs4 rw 0 0\ntmpfs /mnt/my\\040share/fast tmpfs rw 0 0\n"
    )
    assert file_system_of("/var/lib", str(mounts)) == "ext4"
    assert file_system_of("/mnt/my share/jobs", str(mounts)) == "nfs4"
    assert file_system_of("/mnt/my share/fast/jobs", str(mounts)) == "tmpfs"
    assert file_system_of("/mnt/my shared", str(mounts)) == "ext4"
    assert file_system_of("/var/lib", str(tmp_path / "none")) is None


# Files beside it that are removed

LOGS = [("-wal", "-shm"), ("-wal",), ("-shm",)]


def remove(path: Path, *endings: str) -> None:
    for ending in endings:
        path.with_name(path.name + ending).unlink()


@pytest.mark.parametrize("endings", LOGS)
@pytest.mark.parametrize("query", ["", "?synchronous=full"])
def test_nothing_is_lost_if_the_log_is_removed_while_in_use(
    tmp_path: Path, endings: tuple[str, ...], query: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "jobs.db"

    async def scenario() -> None:
        async with opened(path, query) as store, opened(path, query) as same_process:
            await store.enqueue([new_task() for _ in range(5)])
            await same_process.enqueue([new_task()])
            remove(path, *endings)
            await same_process.enqueue([new_task()])
            store.enqueue_blocking([new_task()])
            assert await count(store, TaskState.READY) == 8
        async with opened(path) as store:
            assert len(await take(store)) == 8

    with caplog.at_level("WARNING", "omniq.sqlite"):
        asyncio.run(scenario())
    with raw(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert "was removed while in use" in caplog.text
    assert ("what the removed log held was saved" in caplog.text) is ("-wal" in endings)
    assert not list(tmp_path.glob("*.saved-*"))


ENQUEUE_AND_WAIT = """
import asyncio, sys
from pathlib import Path
from tests.local.sqlite_support import opened
from tests.local.support import new_task

async def main():
    async with opened(Path(sys.argv[1])) as store:
        await store.enqueue([new_task() for _ in range(3)])
        print("enqueued", flush=True)
        sys.stdin.readline()
        await store.enqueue([new_task() for _ in range(2)])
        print("again", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""


@pytest.mark.parametrize("endings", LOGS)
def test_all_processes_go_on_together_after_the_log_was_removed(tmp_path: Path, endings: tuple[str, ...]) -> None:
    path = tmp_path / "jobs.db"

    async def scenario() -> None:
        async with opened(path) as store:
            await store.enqueue([new_task()])
            with python(ENQUEUE_AND_WAIT, str(path)) as other:
                assert other.stdin is not None
                assert other.stdout is not None
                assert other.stdout.readline() == "enqueued\n"
                remove(path, *endings)
                assert len(await take(store)) == 4
                other.stdin.write("\n")
                other.stdin.flush()
                assert other.stdout.readline() == "again\n"
                assert len(await take(store)) == 2
                other.communicate("\n")
            await store.enqueue([new_task()])
            assert await count(store, TaskState.RUNNING) == 6
        async with opened(path) as store:
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())
    with raw(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert not list(tmp_path.glob("*.saved-*"))


def test_what_was_in_a_removed_log_is_saved_apart_if_another_process_has_begun_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "jobs.db"

    async def scenario() -> None:
        async with opened(path) as store:
            await store.enqueue([new_task() for _ in range(5)])
            remove(path, "-wal", "-shm")
            with python(ENQUEUE_AND_WAIT, str(path)) as other:
                assert other.stdout is not None
                assert other.stdout.readline() == "enqueued\n"
                other.communicate("\n\n")
            assert await count(store, TaskState.READY) == 5

    async def look_at(saved: Path) -> None:
        async with opened(saved) as store:
            assert await count(store, TaskState.READY) == 5

    with caplog.at_level("ERROR", "omniq.sqlite"):
        asyncio.run(scenario())
    assert "what was stored before is in" in caplog.text
    (saved,) = tmp_path.glob("*.saved-*")
    asyncio.run(look_at(saved))
    with raw(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
