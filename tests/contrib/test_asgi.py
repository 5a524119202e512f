"""A queue, and a worker of it, within the life of an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from omniq import TaskHandle, TaskState
from omniq.contrib.asgi import lifespan
from omniq.testing import await_until
from tests.contrib.conftest import MakeQueue


async def test_an_embedded_worker_lives_as_long_as_the_application(make_queue: MakeQueue) -> None:
    queue = make_queue()

    @queue.task
    async def greet(name: str) -> str:
        return f"Hello {name}"

    app = FastAPI(lifespan=lifespan(queue, {"concurrency": 2}))

    @app.get("/{name}")
    async def hello(name: str) -> str:
        handle = await greet.aenqueue(name)
        return await handle.aresult(30)

    async def announced() -> bool:
        return [worker.about and worker.about.concurrency for worker in await queue.aworkers()] == [2]

    transport = httpx.ASGITransport(app)
    for _ in range(2):  # an application may be started again
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://app") as web,
        ):
            assert (await web.get("/Ada")).json() == "Hello Ada"
            await await_until(announced, 30, "the worker's first heartbeat")
        assert await queue.aworkers() == []


async def test_without_a_worker_the_queue_is_disconnected_at_the_end(make_queue: MakeQueue) -> None:
    queue = make_queue()

    @queue.task
    def greet() -> None: ...

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse((await greet.aenqueue()).id)

    app = Starlette(routes=[Route("/", hello)], lifespan=lifespan(queue))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as web,
    ):
        task = (await web.get("/")).text
        connected = await queue.connections.current()

    assert await queue.connections.current() is not connected
    assert (await queue.arecord(task)).state is TaskState.READY


async def test_the_applications_own_lifespan_is_there_for_the_worker_and_its_state_for_requests(
    make_queue: MakeQueue,
) -> None:
    queue = make_queue()
    pool: list[str] = []
    late: list[TaskHandle[str]] = []

    @queue.task
    async def use() -> str:
        return pool[-1]

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, str]]:
        pool.append("open")
        yield {"pool": "open"}
        # The worker has ended what it ran and claims nothing more, and the queue is still connected.
        late.append(await use.aenqueue())
        pool.append("closed")

    app = Starlette(lifespan=lifespan(queue, {}, inner=own))
    async with app.router.lifespan_context(app) as state:
        assert state == {"pool": "open"}
        assert await (await use.aenqueue()).aresult(30) == "open"
    assert pool == ["open", "closed"]
    assert (await queue.arecord(late[0].id)).state is TaskState.READY


def test_what_is_no_queue_is_refused_where_it_is_given() -> None:
    with pytest.raises(TypeError, match=r"takes a TaskQueue, not <starlette.*write lifespan=lifespan\(queue\)"):
        lifespan(Starlette())  # type: ignore[arg-type]  # what the test is about
