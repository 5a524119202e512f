"""The shop's tasks."""

from __future__ import annotations

import os

from flask import current_app

from shop.application import database, queue


class OutOfStockError(Exception):
    """There is no such article."""


def insert(article: str, kind: str) -> str:
    """Store an order, and find out too late that there is no such article."""
    database().execute("INSERT INTO orders VALUES (?, ?)", (article, kind))
    if article == "unicorn":
        raise OutOfStockError(article)
    return f"{article} by {kind} in {current_app.name}, process {os.getpid()}"


@queue.task
async def order_on_loop(article: str) -> str:
    """Carry an order out in a coroutine: a moment's work, for which the loop may stand still."""
    return insert(article, "loop")


@queue.task
def order_on_thread(article: str) -> str:
    """Carry an order out on a thread."""
    return insert(article, "thread")


@queue.task(executor="process")
def order_in_process(article: str) -> str:
    """Carry an order out in a child process."""
    return insert(article, "process")
