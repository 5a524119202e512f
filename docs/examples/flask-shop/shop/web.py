"""The pages: ``flask --app shop.web run``."""

from __future__ import annotations

from flask import abort, request

from shop.application import app, database, queue
from shop.tasks import order_in_process, order_on_loop, order_on_thread

TASKS = {"loop": order_on_loop, "thread": order_on_thread, "process": order_in_process}


@app.post("/orders/<kind>")
def order(kind: str) -> tuple[dict[str, str], int]:
    """Hand an order to a worker."""
    if kind not in TASKS:
        abort(404)
    handle = TASKS[kind].enqueue(request.args["article"])
    return {"id": handle.id}, 202


@app.get("/orders/<task_id>")
def look(task_id: str) -> dict[str, str | None]:
    """Tell how an order stands."""
    task = queue.get(task_id)
    if task is None:
        abort(404)
    return {"state": task.state, "result": task.result, "error": task.error.type if task.error else None}


@app.get("/orders/")
def orders() -> list[list[str]]:
    """List the orders that were carried out."""
    return [list(row) for row in database().execute("SELECT article, kind FROM orders")]
