"""A bare page of large tasks reads little of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from omniq.plugins import Plugins
from omniq.storage import TaskQuery
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import NewTask, Succeeded, TaskState
from tests.reading import bytes_read

SIZE, NUMBER = 900_000, 20


@pytest.mark.parametrize("states", [None, [TaskState.SUCCEEDED]])
@pytest.mark.parametrize("scheme", ["sqlite", "file"])
def test_a_bare_page_reads_neither_bodies_nor_results(
    tmp_path: Path, scheme: str, states: list[TaskState] | None
) -> None:
    async def scenario() -> None:
        store = Plugins().open_storage(parse_url(f"{scheme}:///{tmp_path}/store"))
        await store.open()
        try:
            large = b"x" * SIZE
            await store.enqueue([NewTask(id=new_id(), queue="q", name="f", body=large) for _ in range(NUMBER)])
            tasks = await store.claim({"q": NUMBER}, worker="w", lease=600)
            await store.finish([Succeeded(id=task.id, delivery=task.delivery, result=large) for task in tasks])
            before = bytes_read()
            page = await store.list_tasks(TaskQuery(bare=True, states=states))
            read = bytes_read() - before
            assert [(task.omitted.body, task.omitted.result) for task in page if task.omitted] == [
                (SIZE, SIZE)
            ] * NUMBER
            assert read < 5_000_000, "of 36 MB"
        finally:
            await store.close()

    asyncio.run(scenario())
