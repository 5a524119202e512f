"""The web application: ``uvicorn shop.web:app``."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Literal

from fastapi import FastAPI, HTTPException, Request, Response

from omniq.contrib.asgi import lifespan
from shop.correlation import request_id
from shop.tasks import order_in_process, order_on_loop, order_on_thread, queue

app = FastAPI(lifespan=lifespan(queue))  # disconnects the queue at the end; the pool belongs to the worker
TASKS = {"loop": order_on_loop, "thread": order_on_thread, "process": order_in_process}


@app.middleware("http")
async def name_request(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Take the id of the request from its header, or make one."""
    request_id.set(request.headers.get("x-request-id") or uuid.uuid4().hex)
    return await call_next(request)


@app.post("/orders/{kind}", status_code=202)
async def order(kind: Literal["loop", "thread", "process"], article: str) -> dict[str, str]:
    """Hand an order to a worker."""
    handle = await TASKS[kind].aenqueue(article)
    return {"id": handle.id}


@app.get("/orders/{task_id}")
async def look(task_id: str) -> dict[str, str | None]:
    """Tell how an order stands."""
    task = await queue.aget(task_id)
    if task is None:
        raise HTTPException(404)
    return {"state": task.state, "result": task.result, "error": task.error.type if task.error else None}
