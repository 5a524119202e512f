"""A project of Django on PostgreSQL, with its queue in its own database: restarts, and Django's test databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from omniq import TaskQueue
from omniq.task import AttemptOutcome, TaskState
from omniq.testing import wait_until
from tests.contrib.django_project import TIME, Project
from tests.servers.postgres import QUICK, PostgresServer

THREADS = 2
TASKS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres"), QUICK) as running:
        yield running


def place(server: PostgresServer, name: str) -> dict[str, str]:
    """Make a database, and return the environment of a project in it."""
    server.execute(f"CREATE DATABASE {name}")
    return {"OWN": "1", "DATABASE": "default", "PORT": str(server.port), "NAME": name, "RETRIES": "3"}


def test_tests_of_the_project_have_the_queue_in_the_test_databases(server: PostgresServer, tmp_path: Path) -> None:
    environment, project = place(server, "shop"), Project(tmp_path)
    project.write(**environment)
    project.manage("test", "--parallel", "2", **environment)

    # They are gone, which connections of ours would have prevented; and nothing of it was stored for real.
    assert server.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test%'") == []
    with TaskQueue(f"{server.url.removesuffix('/postgres')}/shop") as queue:
        assert queue.stats() == []


def test_a_server_that_restarts_fails_each_connection_of_a_worker_once_at_most(
    server: PostgresServer, tmp_path: Path
) -> None:
    environment, project = place(server, "restarted"), Project(tmp_path)
    project.write(**environment)
    enqueue = f"for _ in range({TASKS}): tasks.record.enqueue('x'); tasks.note.enqueue('y')"
    with (
        TaskQueue(f"{server.url.removesuffix('/postgres')}/restarted") as queue,
        project.worker("--threads", str(THREADS), **environment),
    ):

        def ended(number: int) -> bool:
            return sum(stats.counts[TaskState.SUCCEEDED] for stats in queue.stats()) == number

        project.python(enqueue, **environment)
        wait_until(lambda: ended(2 * TASKS), TIME, "the end of the first tasks")
        server.stop()
        server.start()
        project.python(enqueue, **environment)
        wait_until(lambda: ended(4 * TASKS), TIME, "the end of those after the restart")

        tasks = queue.tasks(limit=100)
        failed = [
            (task.name, attempt.error and attempt.error.type)
            for task in tasks
            for attempt in task.history
            if attempt.outcome is not AttemptOutcome.SUCCEEDED
        ]
        # A thread's connection lasts (CONN_MAX_AGE), and it learns by one failure that it is gone. That of a coroutine
        # is its own.
        assert len(failed) <= THREADS, failed
        assert set(failed) <= {("shop.tasks.record", "django.db.utils.OperationalError")}
