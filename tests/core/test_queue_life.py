"""The queue itself: where it is, when it connects, and that it leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from omniq import (
    TaskQueue,
    UnknownPlugin,
    UnknownScheme,
)
from tests.core.running import MakeQueue, working


def test_two_namespaces_of_one_store_know_nothing_of_each_other(make_queue: MakeQueue, url: str) -> None:
    one = make_queue(namespace="one")
    with TaskQueue(f"{url}?namespace=two") as two:

        @one.task(name="note")
        def note() -> None: ...

        handle = note.enqueue()

        assert two.get(handle.id) is None
        assert list(two.tasks()) == []
        assert one.get(handle.id) is not None


def test_without_a_url_the_environment_names_the_store_or_else_a_file_in_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMNIQ_URL", raising=False)
    assert TaskQueue().url == "sqlite:///omniq.db"

    monkeypatch.setenv("OMNIQ_URL", "memory://from-environment")
    assert TaskQueue().url == "memory://from-environment"
    assert TaskQueue("memory://given").url == "memory://given"

    assert list(tmp_path.iterdir()) == [], "constructing a queue does no I/O"


def test_the_default_store_is_used_from_the_folder_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMNIQ_URL", raising=False)
    with TaskQueue() as queue:

        @queue.task
        def note() -> None: ...

        note.enqueue()
    assert (tmp_path / "omniq.db").exists()


def test_a_queue_can_be_used_again_after_it_was_closed(queue: TaskQueue) -> None:
    @queue.task
    async def answer() -> int:
        return 42

    for _ in range(2):
        with queue:
            handle = answer.enqueue()
            with working(queue):
                assert handle.result(30) == 42
            queue.close()
            assert handle.result(30) == 42
    queue.close()


async def test_a_queue_is_an_asynchronous_context_manager(queue: TaskQueue) -> None:
    @queue.task
    async def answer() -> int:
        return 42

    for _ in range(2):
        async with queue, queue.worker():
            assert await (await answer.aenqueue()) == 42


def test_a_queue_shows_its_url_without_the_password() -> None:
    with pytest.raises(UnknownScheme) as caught:
        TaskQueue("nowhere://me:hunter2@host/0")
    assert "hunter2" not in str(caught.value)
    assert repr(TaskQueue("memory://shown")) == "TaskQueue('memory://shown')"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"serializer": "nope"}, UnknownPlugin, "'nope'"),
        ({"accept": ["nope"]}, UnknownPlugin, "'nope'"),
        ({"accept": "json"}, TypeError, r"write \['json'\]"),
        ({"max_payload": 0}, ValueError, "max_payload"),
        ({"max_retries": -1}, ValueError, "max_retries"),
        ({"retry": 5}, TypeError, "retry must be a RetryPolicy"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"result_ttl": -1}, ValueError, "result_ttl"),
        ({"namespace": "a b"}, ValueError, "namespace 'a b'"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_at_once(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TaskQueue("memory://", **options)  # type: ignore[arg-type]  # the mistake that is tested


def run_program(program: str, folder: Path) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_importing_and_making_a_queue_says_nothing_and_starts_nothing(tmp_path: Path) -> None:
    program = """
import threading
import omniq

omniq.TaskQueue("sqlite:///jobs.db")
assert threading.active_count() == 1, threading.enumerate()
"""
    assert run_program(program, tmp_path) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_never_closes_its_queue_ends_in_silence(tmp_path: Path) -> None:
    program = """
from omniq import TaskQueue

queue = TaskQueue("sqlite:///jobs.db")

@queue.task
def note() -> None: ...

note.enqueue()
queue.enqueue_many([note.call()] * 10)
"""
    assert run_program(program, tmp_path) == (0, "", "")
