"""Tasks in the context of a Flask application, and omniq's commands beside Flask's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask, current_app, g, has_app_context

from omniq import TaskFailed
from omniq.contrib.flask import init_app
from tests.cli.program import environment
from tests.contrib import flask_tasks
from tests.contrib.conftest import MakeQueue
from tests.core.running import working
from tests.fork_server import run

SHOP = """
from flask import Flask, current_app
from omniq import TaskQueue
from omniq.contrib.flask import init_app

queue = TaskQueue("sqlite:///jobs.db", max_retries=0)


@queue.task
def greet(name):
    return f"{current_app.name}: {current_app.config['GREETING']} {name}"


def create_app(greeting="Hello"):
    app = Flask("shop")
    app.config["GREETING"] = greeting
    init_app(app, queue)
    return app
"""


def test_each_attempt_has_a_context_of_its_own_which_ends_with_its_error(make_queue: MakeQueue) -> None:
    queue, app = make_queue(), Flask("shop")
    ended: list[str] = []
    init_app(app, queue)

    @app.teardown_appcontext
    def end(error: BaseException | None) -> None:
        ended.append(f"{g.user}: {error}")

    def count(user: str) -> int:
        g.seen = g.get("seen", 0) + 1
        g.user = user
        if user == "nobody":
            raise LookupError("unknown")
        return int(g.seen)

    @queue.task(max_retries=0)
    def on_thread(user: str) -> tuple[str, int]:
        return current_app.name, count(user)

    @queue.task(max_retries=0)
    async def on_loop(user: str) -> tuple[str, int]:
        return current_app.name, count(user)

    with working(queue):
        for task in (on_thread, on_loop):
            assert task.enqueue("ada").result(30) == ("shop", 1)
            assert task.enqueue("bob").result(30) == ("shop", 1)
            with pytest.raises(TaskFailed):
                task.enqueue("nobody").result(30)
    assert ended == ["ada: None", "bob: None", "nobody: unknown"] * 2


def test_a_child_process_has_the_context_where_its_module_brings_the_application() -> None:
    with flask_tasks.queue as queue, working(queue, processes=1):
        text, process = flask_tasks.greet.enqueue("Ada").result(60)

    assert text == "Hello Ada"
    assert process != os.getpid()


def test_the_last_application_counts_and_no_other_queue_has_it(make_queue: MakeQueue) -> None:
    queue, other = make_queue(), make_queue()
    for name in ("first", "second"):  # as tests do, with an application each
        init_app(Flask(name), queue)

    @queue.task
    def within() -> str:
        return current_app.name

    @other.task
    def beside() -> bool:
        return has_app_context()

    with working(queue):
        assert within.enqueue().result(30) == "second"
    with working(other):
        assert beside.enqueue().result(30) is False


def flask(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(
        [sys.executable, "-m", "flask", "--app", "shop:create_app('Hi')", "omniq", *words],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_flask_omniq_knows_the_queue_of_an_application_from_a_factory(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")

    assert flask(tmp_path, "enqueue", "shop.greet", '"Ada"').returncode == 0
    # In processes of their own, which find the application as this one did.
    worked = flask(tmp_path, "worker", "--processes", "2", "--drain")
    listed = flask(tmp_path, "tasks", "list", "--json")

    assert worked.returncode == 0, worked.stderr
    (task,) = json.loads(listed.stdout)["tasks"]
    assert (task["state"], task["result"]) == ("succeeded", "shop: Hi Ada")


def test_flask_omniq_shows_help_and_errors_as_omniq_does(
    make_queue: MakeQueue, capfd: pytest.CaptureFixture[str]
) -> None:
    app = Flask("shop")
    init_app(app, make_queue())
    runner = app.test_cli_runner()

    shown = runner.invoke(args=["omniq", "tasks", "list", "--help"])
    wrong = runner.invoke(args=["omniq", "tasks", "list", "--wrong"])

    assert shown.exit_code == 0
    assert shown.output.startswith("usage: flask omniq tasks list [-h]")
    assert "APP" not in shown.output
    assert wrong.exit_code == 2
    assert "there is no option --wrong (see flask omniq tasks list --help)" in wrong.output


def test_what_is_no_application_is_refused_where_it_is_given(make_queue: MakeQueue) -> None:
    with pytest.raises(TypeError, match=r"takes a Flask and a TaskQueue, not TaskQueue\("):
        init_app(make_queue(), Flask("shop"))  # type: ignore[arg-type]  # what the test is about
