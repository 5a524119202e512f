"""Actions on many tasks: the dry run, exactly those tasks, the number typed, stopping."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from omniq import TaskQueue, TaskState
from omniq.dashboard import EVERYTHING, Dashboard, Visitor, bulk
from tests.dashboard.support import STORES, Client, client_of, url_on

_HIDDEN = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')
_JOB = re.compile(r"data-done>([\d,]+)<.*?data-skipped>([\d,]+)<", re.DOTALL)


async def dry_run(client: Client, verb: str, **query: Any) -> dict[str, list[str]]:
    """Return the fields of the form that the page of a dry run has."""
    page = await client.get(f"/bulk/{verb}", params=query)
    assert page.status_code == 200, page.text
    form = page.text.partition('<form method="post"')[2]
    fields: dict[str, list[str]] = {}
    for name, value in _HIDDEN.findall(form):
        fields.setdefault(name, []).append(value)
    return fields


async def go(client: Client, verb: str, fields: Mapping[str, Any]) -> str:
    """Send the form, and return the path of the page that says how far it is."""
    answer = await client.send_form(f"/bulk/{verb}", fields)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


async def done(client: Client, path: str) -> tuple[int, int]:
    """Wait for the end, and return how many were done and skipped."""
    text = "under way"
    while "under way" in text or "stopping" in text:
        await asyncio.sleep(0.01)  # as a browser does, though it asks less often
        text = (await client.get(path)).text
    found = _JOB.search(text)
    assert found is not None, text
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


@pytest.fixture
def queue_of_jobs(queue: TaskQueue) -> TaskQueue:
    @queue.task(name="job")
    async def job(n: int) -> None: ...

    return queue


@pytest.mark.parametrize("store", STORES)
async def test_exactly_what_the_dry_run_counted_is_changed(store: str, tmp_path: Path) -> None:
    with url_on(store, tmp_path) as url:
        async with TaskQueue(url) as queue, client_of(queue) as client:

            @queue.task(name="job")
            async def job(n: int) -> None: ...

            await queue.aenqueue_many([job.call(n) for n in range(10_000)])
            fields = await dry_run(client, "cancel", queue="default", state="ready")
            assert fields["expected"] == ["10000"]
            await queue.aenqueue_many([job.call(n) for n in range(100)])
            refused = await client.send_form("/bulk/cancel", fields)
            assert refused.status_code == 400
            assert "type the number of tasks, 10,000" in refused.text
            path = await go(client, "cancel", {**fields, "typed": "10,000"})
            assert await done(client, path) == (10_000, 0)
            (stats,) = await queue.astats()
            assert (stats.counts[TaskState.CANCELLED], stats.counts[TaskState.READY]) == (10_000, 100)


async def test_the_dry_run_says_what_it_would_do_and_does_nothing(queue_of_jobs: TaskQueue) -> None:
    queue = queue_of_jobs
    job = queue.functions["job"]
    await queue.aenqueue_many([job.using(tags=("a",)).call(n) for n in range(8)])
    await queue.aenqueue_many([job.call(n) for n in range(3)])
    await job.using(delay=60, tags=("a",)).aenqueue(9)
    async with client_of(queue) as client:
        page = (await client.get("/bulk/cancel", params={"tag": "a"})).text
        assert "Cancel 9 tasks?" in page
        assert page.count("<tr data-key=") == 5
        assert re.search(r"ready <b>8</b>", page)
        assert re.search(r"scheduled <b>1</b>", page)
        assert "Type <strong>" not in page
        nothing = (await client.get("/bulk/cancel", params={"tag": "b"})).text
        assert "Nothing to do" in nothing
        assert "<form method" not in nothing.partition("<main")[2].partition("</main>")[0]
        wrong = await client.get("/bulk/run-now", params={"state": "failed"})
        assert wrong.status_code == 400
    assert (await queue.acount_tasks(states=["cancelled"])).number == 0


async def test_chosen_tasks_are_changed_and_the_others_are_not(queue_of_jobs: TaskQueue) -> None:
    queue = queue_of_jobs
    handles = await queue.aenqueue_many([queue.functions["job"].call(n) for n in range(5)])
    chosen = [handle.id for handle in handles[:2]]
    async with client_of(queue) as client:
        fields = await dry_run(client, "delete", id=chosen)
        path = await go(client, "delete", fields)
        assert await done(client, path) == (2, 0)
    assert [await queue.aget(handle.id) is None for handle in handles] == [True, True, False, False, False]


async def test_a_purge_leaves_what_runs_and_what_comes_after_the_dry_run(queue_of_jobs: TaskQueue) -> None:
    queue = queue_of_jobs
    job = queue.functions["job"]
    await queue.aenqueue_many([job.using(queue="old").call(n) for n in range(3)])
    storage = (await queue.connections.current()).storage
    (running,) = await storage.claim({"old": 1}, worker="w", lease=60)
    async with client_of(queue) as client:
        assert (await client.get("/bulk/purge")).status_code == 400, "only a queue can be purged"
        fields = await dry_run(client, "purge", queue="old")
        late = await job.using(queue="old").aenqueue(9)
        path = await go(client, "purge", fields)
        assert await done(client, path) == (2, 0)
        unbounded = await client.send_form("/bulk/purge", {"before": fields["before"], "expected": "0"})
        assert unbounded.status_code == 400
    assert {task.id for task in await queue.atasks()} == {running.id, late.id}


async def test_it_can_be_stopped_between_two_steps(queue_of_jobs: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = queue_of_jobs
    await queue.aenqueue_many([queue.functions["job"].call(n) for n in range(2_000)])
    dashboard = Dashboard(queue, access=lambda request: Visitor(name="ada", may=EVERYTHING))
    async with client_of(queue, app=dashboard) as client:
        fields = await dry_run(client, "delete", state="ready")
        storage = (await queue.connections.current()).storage
        delete = storage.delete

        async def stop_meanwhile(ids: Any) -> Any:
            monkeypatch.setattr(storage, "delete", delete)
            await client.send_form("/bulk/delete/stop", {"id": dashboard.bulk.jobs()[0].id})
            return await delete(ids)

        monkeypatch.setattr(storage, "delete", stop_meanwhile)
        path = await go(client, "delete", {**fields, "typed": "2000"})
        assert await done(client, path) == (500, 0)
        assert "Delete: stopped" in (await client.get(path)).text
    assert (await queue.acount_tasks()).number == 1_500


async def test_an_error_in_the_middle_is_shown_with_what_was_done(
    queue_of_jobs: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_of_jobs
    await queue.aenqueue_many([queue.functions["job"].call(n) for n in range(900)])
    async with client_of(queue) as client:
        fields = await dry_run(client, "cancel")
        storage = (await queue.connections.current()).storage
        cancel = storage.cancel

        async def once(ids: Any) -> Any:
            monkeypatch.setattr(storage, "cancel", broken)
            return await cancel(ids)

        async def broken(ids: Any) -> Any:
            raise OSError("the disk is full")

        monkeypatch.setattr(storage, "cancel", once)
        path = await go(client, "cancel", fields)
        assert await done(client, path) == (500, 0)
        page = (await client.get(path)).text
        assert "OSError: the disk is full" in page
        assert "Cancel: failed" in page


async def test_jobs_that_are_over_are_forgotten_in_the_end(queue_of_jobs: TaskQueue) -> None:
    over = asyncio.Queue[bulk.Job]()
    jobs = bulk.Bulk(queue_of_jobs, over.put_nowait)
    now = await (await queue_of_jobs.connections.current()).storage.now()
    for _ in range(bulk.MOST_JOBS + 10):
        fields = {"actor": "ada", "filters": "all tasks", "expected": 0, "began": now, "back": "/"}
        jobs.start(bulk.VERBS["cancel"], {}, **fields)
        await over.get()
    assert len(jobs.jobs()) <= bulk.MOST_JOBS + 1
