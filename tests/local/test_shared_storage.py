"""How storages of one process share what is open on a file or a folder."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from omniq.storage.urls import parse_url
from omniq.testing import await_until
from omniq_local.files.storage import FileStorage
from omniq_local.sqlite.storage import SQLiteStorage
from tests.local.support import new_task


@pytest.mark.parametrize("is_done", [False, True], ids=["before it is done", "when it is done"])
@pytest.mark.parametrize(("kind", "url"), [(FileStorage, "file://{}/jobs"), (SQLiteStorage, "sqlite:///{}/jobs.db")])
async def test_an_opening_for_which_no_caller_waits_any_more_is_undone(
    kind: type[FileStorage | SQLiteStorage], url: str, is_done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = kind(parse_url(url.format(tmp_path)))
    shared, closed = store._shared, list[int]()
    close = shared.close

    def note(generation: int) -> None:
        close(generation)
        closed.append(generation)

    monkeypatch.setattr(shared, "close", note)
    with shared._guard:  # so that it cannot begin
        opening = asyncio.create_task(store.open())
        await asyncio.sleep(0)  # its thread is there
        if not is_done:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
    if is_done:
        for thread in threading.enumerate():
            if thread.name == store._thread_name:
                thread.join()
        # Its result is set before this, and it goes on after this.
        asyncio.get_running_loop().call_soon(opening.cancel)
        await asyncio.gather(opening, return_exceptions=True)
        assert opening.cancelled()
    await await_until(lambda: closed != [], what="the opening is undone")

    assert shared._users == 0
    await store.open()
    assert (await store.enqueue([new_task()]))[0].created
    await store.close()
