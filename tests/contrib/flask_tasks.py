"""A Flask application and its queue, for tasks in child processes: each imports this module anew."""

from __future__ import annotations

import os

from flask import Flask, current_app

from omniq import TaskQueue
from omniq.contrib.flask import init_app

queue = TaskQueue("memory://flask")
app = Flask("shop")
app.config["GREETING"] = "Hello"
init_app(app, queue)


@queue.task(executor="process", max_retries=0)
def greet(name: str) -> tuple[str, int]:
    return f"{current_app.config['GREETING']} {name}", os.getpid()
