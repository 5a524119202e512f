"""Moves during which the server is killed by SIGKILL: repeated, they are equal in the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from omniq._client import moving
from omniq.errors import StorageUnavailable
from omniq.storage import TaskPage, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import StoredTask
from omniq.testing.contract.steps import add, new_task
from tests.faults.stages import IMPATIENT
from tests.moving_support import bring, export, fill, opened, without_first
from tests.servers.base import Server
from tests.servers.starting import MOSTLY_LONG, make_server

MANY = 300


def killing(server: Server, lines: Sequence[bytes]) -> Iterator[bytes]:
    """Yield lines; kill the server while those behind the middle are stored."""
    killer = threading.Thread(target=server.kill)
    for number, line in enumerate(lines):
        if number == len(lines) // 2:
            killer.start()
        elif number == len(lines) * 3 // 4:
            killer.join()
        yield line


@pytest.mark.parametrize("kind", MOSTLY_LONG)
async def test_a_move_during_which_the_server_is_killed_is_repeated(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "SMALL_AT_A_TIME", 20)
    monkeypatch.setattr(moving, "AT_A_TIME", 100)
    with make_server(kind, tmp_path) as server:
        options = "&".join(f"{name}={value}" for name, value in IMPATIENT[kind].items())
        async with opened(f"memory://{new_id()}", f"{server.url}?{options}") as (source, target):
            await fill(source)
            await add(source, *(new_task(queue="many") for _ in range(MANY)))
            lines = await export(source)

            with pytest.raises(StorageUnavailable):
                await bring(target, killing(server, lines))
            server.start()
            moved = await bring(target, lines)
            assert moved.present["task"] >= MANY // 3
            assert without_first(await export(target)) == without_first(lines)

            list_tasks = target.list_tasks

            async def kill(query: TaskQuery, cursor: str | None = None) -> TaskPage[StoredTask]:
                if cursor is not None:
                    server.kill()
                return await list_tasks(query, cursor)

            with monkeypatch.context() as patch:
                patch.setattr(target, "list_tasks", kill)
                with pytest.raises(StorageUnavailable):
                    await export(target)
            server.start()
            assert without_first(await export(target)) == without_first(lines)
