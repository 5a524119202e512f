"""What the URL of a file storage can say, and what is told when its folder cannot be used."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omniq.errors import ConfigurationError, SchemaMismatch, StorageUnavailable
from omniq.plugins import default_plugins
from omniq.storage import Capability
from omniq.storage.urls import parse_url
from omniq_local.files import FileStorage
from omniq_local.files.preparation import VERSION
from omniq_local.files.settings import read_settings
from tests.local.files_support import opened, run_python, storage
from tests.local.support import new_task


def refusal(store: FileStorage) -> str:
    """Return what is said when a store cannot be opened; closing it afterwards must do no harm."""

    async def scenario() -> str:
        with pytest.raises((StorageUnavailable, SchemaMismatch)) as caught:
            await store.open()
        await store.close()
        return str(caught.value)

    return asyncio.run(scenario())


# The URL


def test_the_scheme_is_file_and_the_store_is_durable_and_shared() -> None:
    store = default_plugins().open_storage(parse_url("file:///var/lib/shop/jobs"))
    assert isinstance(store, FileStorage)
    assert {Capability.DURABLE, Capability.SHARED_BETWEEN_PROCESSES} <= store.capabilities
    assert Capability.SHARED_BETWEEN_MACHINES not in store.capabilities


@pytest.mark.parametrize("url", ["file:///var/jobs", "file:///var/jobs/", "file:////var/jobs", "file:///var/x/../jobs"])
def test_a_folder_is_named_by_its_absolute_path(url: str) -> None:
    settings = read_settings(parse_url(url, "shop"))
    assert (settings.root, settings.base) == ("/var/jobs", "/var/jobs/shop")


@pytest.mark.parametrize("name", ["with space", "50%", "ünï ☂", "a?b#c&d"])
def test_any_folder_name_can_be_written_with_percent_signs(tmp_path: Path, name: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in name.encode())

    async def scenario() -> None:
        async with opened(tmp_path / quoted):
            pass

    asyncio.run(scenario())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["feature%2Flogin", "a%20b", "50%25"])
@pytest.mark.parametrize("scheme", ["file", "sqlite"])
def test_a_folder_whose_name_holds_a_percent_sign_is_the_one_meant(tmp_path: Path, name: str, scheme: str) -> None:
    (tmp_path / name).mkdir()
    store = default_plugins().open_storage(parse_url(f"{scheme}:///{tmp_path / name / 'jobs'}"))

    async def scenario() -> None:
        await store.open()
        await store.close()

    asyncio.run(scenario())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "jobs").exists()


def test_a_url_that_means_either_of_two_folders_is_refused(tmp_path: Path) -> None:
    for name in ("a b", "a%20b"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigurationError, match=r"both .*a%20b' and .*a b' are there; for the first write %25"):
        storage(tmp_path / "a%20b")
    for written, name in (("a b", "a b"), ("a%2520b", "a%20b")):
        assert read_settings(parse_url(f"file://{tmp_path / written}")).root == str(tmp_path / name)


@pytest.mark.parametrize("url", ["file://jobs", "file://localhost/var/jobs", "file://./jobs"])
def test_a_relative_path_is_refused_with_the_mend(url: str) -> None:
    with pytest.raises(ConfigurationError, match="three slashes: file:///var/lib/shop/jobs"):
        FileStorage(parse_url(url))


@pytest.mark.parametrize("url", ["file://", "file:///", "file:///a%00b"])
def test_a_url_without_a_folder_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"names no folder|NUL"):
        FileStorage(parse_url(url))


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("fsync=perhaps", "never or always"),
        ("lock_timeout=soon", "0 to 3600"),
        ("lock_timeout=-1", "0 to 3600"),
        ("lock_timeout=nan", "0 to 3600"),
        ("synchronous=full", "fsync, lock_timeout, mode, namespace"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(query: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        FileStorage(parse_url(f"file:///var/jobs?{query}"))


# The folder


def test_a_file_in_place_of_the_folder_is_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "jobs"):
        assert "under, a file; name a folder" in refusal(storage(path))


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert "name an empty or new folder" in refusal(storage(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("marker", ['{"version": 1}', '{"version": 99}', "[]", "{}", "torn"])
def test_a_folder_of_another_version_is_refused(tmp_path: Path, marker: str) -> None:
    (tmp_path / "omniq.json").write_text(marker)
    assert "another version of OmniQ" in refusal(storage(tmp_path))


def test_a_folder_that_cannot_be_written_is_refused_with_the_mend(tmp_path: Path) -> None:
    # Root may write anywhere: the program gives that up first.
    program = """
        import asyncio, os, sys
        from pathlib import Path
        from omniq.errors import StorageUnavailable
        from tests.local.files_support import opened, storage
        from tests.local.support import new_task

        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)

        async def main():
            async with opened(Path(sys.argv[1])) as store:
                await store.enqueue([new_task()])

        try:
            asyncio.run(main())
        except StorageUnavailable as error:
            print(error)
    """
    root = tmp_path / "jobs"

    async def make() -> None:
        async with opened(root):
            pass

    asyncio.run(make())
    for parent in (*reversed(root.parents), root):
        if parent.is_relative_to(tmp_path.parent.parent):
            parent.chmod(0o755)
    for path in root.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root.chmod(0o555)
    told = run_python(program, str(root)).stdout
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)
    assert f"{root} cannot be written" in told
    assert "let this user write the folder" in told


def test_a_sub_folder_that_is_elsewhere_is_told_with_the_mend(tmp_path: Path) -> None:
    root = tmp_path / "jobs"
    elsewhere = Path("/dev/shm") / f"omniq-{os.getpid()}"
    elsewhere.mkdir()
    try:

        async def scenario() -> None:
            async with opened(root) as store:
                (root / "omniq" / "ready").symlink_to(elsewhere)
                with pytest.raises(
                    StorageUnavailable, match=r"ready is .* symbolic link .* link none within the store"
                ):
                    await store.enqueue([new_task()])
                (root / "omniq" / "ready").unlink()
                assert [answer.created for answer in await store.enqueue([new_task()])] == [True]

        asyncio.run(scenario())
    finally:
        shutil.rmtree(elsewhere)


@pytest.mark.parametrize("fate", ["removed", "moved"])
def test_a_folder_that_is_taken_away_while_in_use_is_told_and_not_made_anew(tmp_path: Path, fate: str) -> None:
    root = tmp_path / "jobs"

    async def scenario() -> None:
        async with opened(root) as store:
            await store.enqueue([new_task()])
            if fate == "removed":
                shutil.rmtree(root)
            else:
                root.rename(tmp_path / "elsewhere")
            with pytest.raises(StorageUnavailable, match="removed or moved while in use"):
                await store.enqueue([new_task()])
            assert not root.exists()

    asyncio.run(scenario())


def test_a_store_locked_by_a_stopped_process_is_given_up_in_time(tmp_path: Path) -> None:
    root = tmp_path / "jobs"
    program = "import fcntl,sys; f=open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"

    async def enqueue() -> bool:
        async with opened(root, "?lock_timeout=0.1") as store:
            return (await store.enqueue([new_task()]))[0].created

    assert asyncio.run(enqueue())
    command = [sys.executable, "-c", program, str(root / "omniq" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(StorageUnavailable, match=r"locked by another process for more than 0\.1 s"):
                asyncio.run(enqueue())
        finally:
            holder.send_signal(signal.SIGCONT)
            holder.communicate(b"\n")
    assert asyncio.run(enqueue())


def test_namespaces_in_one_folder_are_apart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, "?namespace=a") as a, opened(tmp_path, "?namespace=b") as b:
            await a.enqueue([new_task()])
            assert await b.stats() == []

    asyncio.run(scenario())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "omniq.json"]
    assert json.loads((tmp_path / "omniq.json").read_text())["version"] == VERSION
