"""The application, its queue, and the database that both use.

Made on import: a child process that runs a task imports the module of that task, and with it this one.
"""

from __future__ import annotations

import os
import sqlite3

from flask import Flask, g

from omniq import TaskQueue
from omniq.contrib.flask import init_app

app = Flask("shop")
app.config["DATABASE"] = os.environ.get("SHOP_DATABASE", "shop.db")
queue = TaskQueue(os.environ.get("SHOP_TASKS", "sqlite:///tasks.db"), max_retries=0)
init_app(app, queue)  # from here on each attempt of a task has an application context of its own


def database() -> sqlite3.Connection:
    """Return the connection of the request, or of the task, that runs."""
    if "database" not in g:
        g.database = sqlite3.connect(app.config["DATABASE"], timeout=30)
        g.database.execute("CREATE TABLE IF NOT EXISTS orders (article text, kind text)")
    connection: sqlite3.Connection = g.database
    return connection


@app.teardown_appcontext
def give_back(error: BaseException | None) -> None:
    """Commit what a request or a task has written; roll it back if that raised."""
    connection = g.pop("database", None)
    if connection is not None:
        if error is None:
            connection.commit()
        connection.close()
