"""``omniq enqueue``: a task from the command line, with arguments in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from omniq import Task, TaskQueue, TaskState
from omniq.cli import main
from tests.cli.program import Program, run_omniq


def enqueue(*arguments: str) -> int:
    return main(["enqueue", "shop:queue", *arguments])


def stored(store: TaskQueue, capsys: pytest.CaptureFixture[str]) -> Task:
    """The task whose id was printed."""
    captured = capsys.readouterr()
    assert captured.err == ""
    task = store.get(captured.out.removesuffix("\n"))
    assert task is not None
    return task


def arguments_of(task: Task) -> object:
    return json.loads(task.payload)


def test_the_id_of_the_stored_task_is_printed(store: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert enqueue("add", "1", "2") == 0

    task = stored(store, capsys)
    assert (task.name, task.state, task.queue) == ("shop.add", TaskState.READY, "default")
    assert arguments_of(task) == [[1, 2], {}]


def test_arguments_are_given_by_position_and_by_name(store: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert enqueue("resize", '"a=b.png"', "width=300") == 0
    assert arguments_of(stored(store, capsys)) == [[{"$": "path", "v": "a=b.png"}], {"width": 300}]


def test_the_options_of_the_task_can_be_chosen(store: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert enqueue("add", "1", "2", "--queue", "big", "--priority", "-5", "--delay", "60", "--unique", "k") == 0

    task = stored(store, capsys)
    assert (task.queue, task.priority, task.unique, task.state) == ("big", -5, "k", TaskState.SCHEDULED)
    assert (task.run_at - task.created_at).total_seconds() == pytest.approx(60, abs=1)


def test_a_unique_key_that_is_taken_gives_the_id_of_its_task(
    store: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enqueue("add", "1", "2", "--unique", "k") == 0
    first = stored(store, capsys)
    assert enqueue("add", "3", "4", "--unique", "k") == 0
    assert stored(store, capsys).id == first.id


def test_negative_numbers_follow_a_double_dash(store: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert enqueue("add", "--", "-1", "-2e3") == 2  # -2000.0 is no int
    capsys.readouterr()
    assert enqueue("add", "--", "-1", "-2") == 0
    assert arguments_of(stored(store, capsys)) == [[-1, -2], {}]


@pytest.mark.parametrize("name", ["shop.add", "add"])
def test_a_name_may_be_the_end_of_the_registered_one(
    name: str, store: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enqueue(name, "1", "2") == 0
    assert stored(store, capsys).name == "shop.add"


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("omniq: error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rsize", "1"], "shop:queue has no task 'rsize'; did you mean resize?"),
        (["dd", "1"], "shop:queue has no task 'dd'; did you mean add?"),
        (
            ["xyz"],
            (
                "shop:queue has no task 'xyz'; it has "
                "shop.add, shop.burn, shop.chain, shop.resize, shop.sleep, shop.talk, shop.whoami"
            ),
        ),
        (["resize", "a.png"], "a.png is not JSON; for a text write '\"a.png\"'"),
        (["resize", "image=a.png"], "image=a.png is not JSON; for a text write 'image=\"a.png\"'"),
        (["burn", "it's"], "it's is not JSON; for a text write '\"it'\"'\"'s\"'"),
        (["add", "NaN", "1"], "NaN is not JSON; for a text write '\"NaN\"'"),
        (["add", "left=1", "left=2"], "argument left is given twice"),
        (["add", "1"], "shop.add(left: 'int', right: 'int') -> 'int': missing a required argument: 'right'"),
        (
            ["add", "1", "2", "size=3"],
            "shop.add(left: 'int', right: 'int') -> 'int': got an unexpected keyword argument 'size'",
        ),
        (["add", "1", "2", "--priority", "101"], "priority must be between -100 and 100, not 101"),
        (
            ["add", "1", "2", "--delay", "-1"],
            "argument --delay: '-1' is not a number of seconds, zero or more (see omniq enqueue --help)",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_wrong_usage_is_said_with_the_mend(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert enqueue(*arguments) == 2
    assert error_of(capsys) == text


@pytest.mark.usefixtures("folder")
def test_json_that_does_not_fit_the_annotation_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert enqueue("resize", "3") == 2
    text = error_of(capsys)
    assert text.startswith("shop.resize: args[0]: ")
    assert "Path" in text


def test_an_ending_that_fits_two_tasks_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "twins.py").write_text(
        "from omniq import TaskQueue\n"
        "queue = TaskQueue('sqlite:///jobs.db')\n"
        "@queue.task(name='a.run')\ndef one(): ...\n"
        "@queue.task(name='b.run')\ndef two(): ...\n"
        "@queue.task(name='a.rerun')\ndef three(): ...\n"
    )
    assert main(["enqueue", "twins:queue", "run"]) == 2
    assert error_of(capsys) == "'run' may mean a.run or b.run; write more of the name"
    assert main(["enqueue", "twins:queue", "b.run"]) == 0


def test_a_task_for_a_store_inside_this_process_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mem.py").write_text(
        "from omniq import TaskQueue\nqueue = TaskQueue('memory://')\n@queue.task\ndef run(): ...\n"
    )
    assert main(["enqueue", "mem:queue", "run"]) == 2
    assert "lives inside one process" in error_of(capsys)


def test_a_store_that_cannot_be_opened_is_a_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "jobs.db").write_text("no database at all, but long enough to look at\n" * 100)
    assert enqueue("add", "1", "2") == 1
    assert "jobs.db" in error_of(capsys)


def test_waiting_prints_the_result_as_json(folder: Path, start: Callable[..., Program]) -> None:
    worker = start("worker", "shop:queue")

    ended = run_omniq("enqueue", "shop:queue", "resize", '"ü.png"', "width=5", "--wait", cwd=folder)
    assert (ended.returncode, ended.stdout) == (0, '"ü.5.png"\n')
    assert ended.stderr.startswith("task 0")

    ended = run_omniq("enqueue", "shop:queue", "talk", "--wait", cwd=folder)
    assert (ended.returncode, ended.stdout) == (0, "null\n")

    ended = run_omniq("enqueue", "shop:queue", "burn", '"the cake"', "--wait", cwd=folder)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[-1] == "omniq: error: the task failed with RuntimeError: the cake"
    assert "Traceback" not in ended.stderr

    ended = run_omniq("enqueue", "shop:queue", "burn", '"the cake"', "--wait", "-v", cwd=folder)
    assert "in burn\n    raise RuntimeError(text)" in ended.stderr

    assert worker.stop() == 0


def test_waiting_has_an_end_if_asked_to(store: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert enqueue("add", "1", "2", "--wait", "--wait-timeout", "0.05") == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "has not ended within 0.05 s; it goes on" in captured.err
    assert store.stats()[0].counts[TaskState.READY] == 1


def test_times_and_tags_of_the_task_can_be_chosen(store: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enqueue", "shop:queue", "add", "1", "2", "--run-at", "2199-01-31T09:00+01:00", "--expires",
                 "2199-02-01T09:00Z", "--tag", "a", "--tag", "b"]) == 0  # fmt: skip
    task = store.get(capsys.readouterr().out.strip())
    assert task is not None
    assert task.run_at == datetime(2199, 1, 31, 8, tzinfo=UTC)
    assert task.expires_at == datetime(2199, 2, 1, 9, tzinfo=UTC)
    assert task.tags == ("a", "b")

    assert main(["enqueue", "shop:queue", "add", "1", "2", "--expires", "60"]) == 0
    task = store.get(capsys.readouterr().out.strip())
    assert task is not None
    assert task.expires_at == task.created_at + timedelta(seconds=60)

    assert main(["enqueue", "shop:queue", "add", "1", "2", "--run-at", "tomorrow"]) == 2
    assert "'tomorrow' is no time such as 2030-01-31T09:00" in capsys.readouterr().err
