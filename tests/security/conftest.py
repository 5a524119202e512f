"""A shop with a queue, somebody who can write to its store, and a canary that must live."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omniq import TaskHandle, TaskQueue, hookimpl
from omniq.plugins import Plugins
from omniq.task import Task
from omniq.testing import wait_until
from tests.bodies import changed
from tests.core.running import working

KEY = "a key that the attacker does not know"
ATTACKER = Path(__file__).with_name("attacker.py")


class Pickled:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


class Shop:
    """An application with a queue on SQLite.

    :param folder: where its store is, and the files that its tasks write.
    :param key: its signing key; None: it has none.
    """

    def __init__(self, folder: Path, key: str | None) -> None:
        self.folder = folder
        self.key = key
        self.store = folder / "jobs.db"
        self.canary = folder / "canary"
        """Exists as soon as the attacker's own code has run."""
        self.rejected: list[str] = []
        self.queue = self.make_queue()

    def make_queue(self, **options: Any) -> TaskQueue:
        """Make a queue with the shop's tasks."""
        plugins = Plugins()
        plugins.register(self, name="shop")
        queue = TaskQueue(f"sqlite:///{self.store}", signing_key=self.key, plugins=plugins, **options)

        @queue.task(name="write", max_retries=1)
        def write(name: str, text: str) -> int:
            return (self.folder / name).write_text(text)

        @queue.task(name="fail", max_retries=1)
        def fail() -> None:
            raise ValueError("as it always does")

        return queue

    @hookimpl
    def omniq_task_rejected(self, task: Task, reason: str) -> None:
        self.rejected.append(task.id)

    def enqueue(self, name: str = "page", text: str = "hello") -> TaskHandle[Any]:
        """Enqueue a task of the shop's own, as it does all day."""
        return self.queue.functions["write"].enqueue(name, text)

    @property
    def command(self) -> str:
        """What the attacker wants to be run."""
        return f"touch {self.canary}"

    @property
    def pickle(self) -> bytes:
        """What runs it when it is unpickled."""
        return pickle.dumps(Pickled(self.command))

    def attack(self, sql: str, *parameters: Any) -> None:
        """Let the attacker change the store; one row or more must have been there to change."""
        given = [{"hex": one.hex()} if isinstance(one, bytes) else one for one in parameters]
        done = subprocess.run(
            [sys.executable, "-I", ATTACKER, self.store],
            input=json.dumps([[sql, given]]),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 0, f"nothing was changed by: {sql}"

    def forge(self, **parts: Any) -> None:
        """Let the attacker change the bodies of all tasks.

        :param parts: what to change, see :func:`tests.bodies.changed`.
        """
        with contextlib.closing(sqlite3.connect(self.store)) as connection:
            bodies = connection.execute('SELECT id, body FROM "omniq.task"').fetchall()
        for task_id, body in bodies:
            self.attack('UPDATE "omniq.task" SET body = ? WHERE id = ?', changed(body, **parts), task_id)

    def work(self, handle: TaskHandle[Any], queue: TaskQueue | None = None, ended: str = "") -> Task:
        """Let a worker run until a task has ended, and a task of the shop's own after it.

        :param ended: what to wait for instead: a state.
        :return: the task as it stands then.
        """
        queue = queue or self.queue
        with working(queue):

            def has_ended() -> bool:
                task = queue.get(handle.id)
                return task is not None and (task.state == ended if ended else task.state.is_final)

            wait_until(has_ended, what="the end of the attacked task")
            # The worker lives, and the canary too.
            assert queue.functions["write"].enqueue("neighbour", "alive").result(timeout=20) == 5
            task = queue.get(handle.id)
        assert task is not None
        assert not self.canary.exists()
        return task

    def written(self, name: str) -> str | None:
        """Return what a task wrote into a file, if it did."""
        path = self.folder / name
        return path.read_text() if path.exists() else None


@pytest.fixture(params=[None, KEY], ids=["without a key", "with a key"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path, request.param)
    yield shop
    shop.queue.close()
    assert not shop.canary.exists()


@pytest.fixture
def signing_shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path, KEY)
    yield shop
    shop.queue.close()
    assert not shop.canary.exists()
