"""``omniq worker``: one process that runs an application's tasks."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from omniq import TaskFailed, TaskQueue, TaskState, Worker
from omniq.cli import main
from omniq.cli.app import load_queue
from omniq.testing import wait_until
from tests.cli.program import Program, run_omniq
from tests.cli.test_plugins import install


@pytest.fixture
def shop(folder: Path) -> TaskQueue:
    """The application, imported here as well, to enqueue."""
    return load_queue("shop:queue")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_tasks_run_until_a_signal_ends_the_worker_in_order(
    number: signal.Signals, shop: TaskQueue, start: Callable[..., Program]
) -> None:
    with shop:
        handle = shop.functions["shop.add"].enqueue(1, 2)
        worker = start("worker", "shop:queue")
        assert handle.result(timeout=60) == 3
        running = shop.functions["shop.sleep"].enqueue(0.5)
        wait_until(lambda: running.task().state is TaskState.RUNNING)

        assert worker.stop(number) == 0
        assert running.task().state is TaskState.SUCCEEDED
    assert "Traceback" not in worker.stderr
    assert worker.stdout == ""


OPTIONS = [
    "--label", "zone=a", "--label=rack=7=8",
    "-q", "urgent,default", "-c", "50", "--threads", "4", "--process-slots", "3",
    "--process-tasks", "10", "--process-memory", "500M", "--drain", "--lease", "20",
    "--recover-every", "7", "--grace", "0.5", "--no-scheduler", "--no-log-setup", "--log-format", "json",
]  # fmt: skip


def test_every_option_reaches_the_worker_and_the_workers_of_a_supervisor(
    shop: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[dict[str, Any]] = []
    watched: list[int] = []
    commands: list[Sequence[str]] = []

    class Supervisor:
        def __init__(
            self, command: Callable[[int], Sequence[str]], *, processes: int, grace: float, drain: bool
        ) -> None:
            assert (processes, grace, drain) == (2, 0.5, True)
            commands.append(command(99))

        async def run(self) -> int:
            return 0

    make = TaskQueue.worker

    def note(queue: TaskQueue, **options: Any) -> Worker:
        worked.append(options)
        return make(queue, **options)

    monkeypatch.setattr(TaskQueue, "worker", note)
    monkeypatch.setattr("omniq.cli.worker.run_as_process", lambda *_, **__: None)
    monkeypatch.setattr("omniq.cli.worker.Supervisor", Supervisor)
    monkeypatch.setattr("omniq.cli.worker.stop_when_parent_ends", lambda child_end, within: watched.append(child_end))

    assert main(["worker", "shop:queue", *OPTIONS]) == 0
    assert main(["worker", "shop:queue", *OPTIONS, "--processes", "2"]) == 0
    python, _, module, *words = commands[0]
    assert (python, module) == (sys.executable, "omniq")
    assert main(words) == 0
    assert watched == [99]

    # Each is made twice: to check the options before anything begins, and to work.
    assert len(worked) == 5
    for options in worked:
        assert options == {
            "app": "shop:queue",
            "labels": {"zone": "a", "rack": "7=8"},
            "queues": ["urgent", "default"],
            "concurrency": 50,
            "threads": 4,
            "processes": 3,
            "process_tasks": 10,
            "process_memory": 500 << 20,
            "lease": 20,
            "recover_every": 7,
            "grace": 0.5,
            "scheduler": False,
            "drain": True,
        }


def test_a_second_signal_puts_back_what_runs(shop: TaskQueue, start: Callable[..., Program]) -> None:
    with shop:
        running = shop.functions["shop.sleep"].enqueue(60)
        worker = start("worker", "shop:queue")
        wait_until(lambda: running.task().state is TaskState.RUNNING)
        worker.process.send_signal(signal.SIGTERM)
        worker.says("finishing 1 tasks")

        assert worker.stop() == 0
        assert running.task().state is TaskState.READY


def test_only_the_chosen_queues_are_served(shop: TaskQueue, start: Callable[..., Program]) -> None:
    with shop:
        other = shop.functions["shop.add"].enqueue(1, 2)
        chosen = shop.functions["shop.add"].using(queue="chosen").enqueue(1, 2)
        last = shop.functions["shop.add"].using(queue="last").enqueue(1, 2)
        start("worker", "shop:queue", "-q", "last,chosen", "-c", "1")

        assert chosen.result(timeout=60) == last.result(timeout=60) == 3
        assert other.task().state is TaskState.READY


def test_what_a_task_logs_names_the_task(shop: TaskQueue, start: Callable[..., Program]) -> None:
    with shop:
        handle = shop.functions["shop.talk"].enqueue()
        worker = start("worker", "shop:queue")
        handle.result(timeout=60)

    line = next(line for line in worker.says("succeeded").splitlines() if "the shop is open" in line)
    assert re.search(rf" WARNING shop: the shop is open \[task {handle.id[-12:]} shop\.talk\]$", line)


CONFIGURED = """
import logging
import logging.config

from omniq import TaskQueue

class Ours(logging.Formatter):
    def format(self, record):
        return f"ours: {record.levelname} {record.getMessage()} of {getattr(record, 'task_name', '-')}"

logging.config.dictConfig({
    "version": 1,
    "formatters": {"ours": {"()": Ours}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "ours"}},
    HANDLED
})
queue = TaskQueue("sqlite:///jobs.db", max_retries=0)

@queue.task(executor="process")
def sell(amount):
    logging.getLogger("shop").info("sold %d", amount)
    raise RuntimeError("sold out")
"""


@pytest.mark.parametrize(
    ("handled", "options", "expected", "lines"),
    [
        (
            '"root": {"handlers": ["console"], "level": "INFO"},',
            [],
            ["ours: INFO sold 5 of configured.sell\n", "ours: ERROR task "],
            1,
        ),
        (
            '"root": {"handlers": ["console"], "level": "INFO"},',
            ["--no-log-setup"],
            ["ours: INFO sold 5 of configured.sell\n", "ours: ERROR task "],
            1,
        ),
        ('"loggers": {},', [], ["INFO    shop: sold 5 [task ", "ERROR   omniq.task: task "], 1),
        ('"loggers": {},', ["--no-log-setup"], ["Traceback (most recent call last)"], 1),
    ],
    ids=["handlers of its own", "handlers of its own alone", "no handlers", "no handlers and none of ours"],
)
def test_an_application_that_sets_up_logging_does_not_silence_the_worker(
    folder: Path, start: Callable[..., Program], handled: str, options: list[str], expected: list[str], lines: int
) -> None:
    (folder / "configured.py").write_text(CONFIGURED.replace("HANDLED", handled))
    # Not imported here, where it would silence other tests.
    with TaskQueue(f"sqlite:///{folder}/jobs.db", max_retries=0) as queue:

        @queue.task(name="configured.sell")
        def sell(amount: int) -> None: ...

        handle = sell.enqueue(5)
        worker = start("worker", "configured:queue", "--processes", "1", *options)
        with pytest.raises(TaskFailed):
            handle.result(timeout=60)
        worker.stop()
    for text in expected:
        assert worker.stderr.count(text) == lines, worker.stderr


def test_the_level_of_the_log_can_be_chosen(shop: TaskQueue, start: Callable[..., Program]) -> None:
    with shop:
        handle = shop.functions["shop.talk"].enqueue()
        worker = start("worker", "shop:queue", "--log-level", "warning")
        handle.result(timeout=60)

    assert worker.stop() == 0
    assert len(worker.stderr.splitlines()) == 1


def test_the_log_can_be_json_for_programs_that_read_it(
    folder: Path, shop: TaskQueue, start: Callable[..., Program]
) -> None:
    install(folder, "shop-broken", "shop_broken", "1 / 0")  # which is found before logging is set up
    with shop:
        burnt = shop.functions["shop.burn"].enqueue("the cake")
        # As by a supervisor, which hands its own options on.
        worker = start("worker", "shop:queue", "--processes", "1", "--log-format", "json")
        worker.says("RuntimeError: the cake")
        assert worker.stop() == 0

    lines = [json.loads(line) for line in worker.stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert [line["level"] for line in lines if "plugin 'shop_broken'" in line["message"]] == ["WARNING"]
    (failed,) = [line for line in lines if line["level"] == "ERROR"]
    assert (failed["task_id"], failed["task_name"], failed["task_queue"]) == (burnt.id, "shop.burn", "default")
    assert "Traceback" not in failed["message"]
    assert failed["exception"].endswith("RuntimeError: the cake")


def test_a_failed_task_does_not_end_the_worker(shop: TaskQueue, start: Callable[..., Program]) -> None:
    with shop:
        worker = start("worker", "shop:queue")
        burnt = shop.functions["shop.burn"].enqueue("the cake")
        worker.says("RuntimeError: the cake")
        assert shop.functions["shop.add"].enqueue(1, 2).result(timeout=60) == 3

        assert burnt.task().state is TaskState.FAILED
        assert worker.stop() == 0


def test_an_application_without_tasks_is_told_so(folder: Path, start: Callable[..., Program]) -> None:
    (folder / "bare.py").write_text("from omniq import TaskQueue\nqueue = TaskQueue('sqlite:///jobs.db')\n")
    worker = start("worker", "bare:queue")
    worker.says("bare:queue has no tasks: is the module imported that declares them with @queue.task?")
    worker.says("serves")
    assert worker.stop() == 0


def test_a_store_inside_this_process_is_warned_of(folder: Path, start: Callable[..., Program]) -> None:
    (folder / "mem.py").write_text("from shop import *\nqueue = TaskQueue('memory://')\n")
    worker = start("worker", "mem:queue")
    worker.says("memory:// lives inside this process: only tasks that are enqueued in it will run")
    worker.says("serves")
    assert worker.stop() == 0


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-q", ","], "queues must name at least one queue"),
        (["-q", "a b"], "queue 'a b' cannot be used"),
        (["--lease", "0"], "lease must be more than zero seconds"),
        (["--process-memory", "much"], "'much' is not a number of bytes, such as 500M or 2G"),
        (["--drain", "--reload"], "--reload waits for changes, --drain for nothing; leave one of them out"),
        (["--processes", "0"], "'0' is not a whole number of 1 or more"),
    ],
)
def test_options_that_cannot_be_used_are_wrong_usage(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["worker", "shop:queue", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_a_store_that_cannot_be_opened_is_a_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "jobs.db").write_text("no database at all, but long enough to look at\n" * 100)

    assert main(["worker", "shop:queue", "--log-level", "error"]) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("omniq: error: ")
    assert captured.count("\n") == 1


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_worker_that_drains_leaves_when_there_is_nothing_left_to_do(
    processes: str, shop: TaskQueue, start: Callable[..., Program]
) -> None:
    with shop:
        done = [shop.functions["shop.chain"].enqueue(2), shop.functions["shop.sleep"].enqueue(0.3)]
        later = shop.functions["shop.add"].using(delay=3600).enqueue(1, 2)
        worker = start("worker", "shop:queue", "--drain", "--processes", processes)

        assert worker.process.wait(60) == 0
        assert {handle.task().state for handle in done} == {TaskState.SUCCEEDED}
        # The tasks that its tasks enqueued as well.
        assert [task.name for task in shop.tasks(state=TaskState.SUCCEEDED)].count("shop.chain") == 3
        assert later.task().state is TaskState.SCHEDULED


def test_a_worker_says_at_its_start_what_it_runs_on_what_and_how_much_at_once(
    folder: Path, start: Callable[..., Program]
) -> None:
    (folder / "more.py").write_text("from shop import queue\n\n@queue.task\ndef extra() -> None: ...\n")
    worker = start("worker", "shop:queue", "--import", "more", "-q", "slow,defualt", "-c", "50", "--process-slots", "3")

    said = worker.says(" serves ")

    assert re.search(r"omniq\.worker: OmniQ [\d.]+, Python [\d.]+: store sqlite:///jobs\.db, namespace omniq\n", said)
    assert re.search(r"omniq\.worker: \d tasks: more\.extra, shop\.add, shop\.burn, ", said)
    assert "50 tasks at once, of them 20 on threads and 3 in processes of their own; lease 30 s, grace 25 s" in said
    assert "WARNING omniq.worker: no task is declared for queue defualt" in said
    assert "did you mean default?" in said
    assert worker.stop() == 0


def test_a_module_that_cannot_be_imported_too_is_wrong_usage(folder: Path, start: Callable[..., Program]) -> None:
    worker = start("worker", "shop:queue", "--import", "more")

    assert worker.process.wait(30) == 2
    assert "there is no module 'more'" in worker.stderr


def test_the_other_modules_reach_the_workers_of_a_supervisor(folder: Path, start: Callable[..., Program]) -> None:
    (folder / "more.py").write_text("from shop import queue\n\n@queue.task\ndef extra() -> str: return 'ran'\n")
    worker = start("worker", "shop:queue", "--import=more", "--processes", "2")

    done = run_omniq("enqueue", "more:queue", "extra", "--wait", "--wait-timeout", "30", cwd=folder)

    assert (done.returncode, done.stdout) == (0, '"ran"\n')
    assert "2 processes, in each 100 tasks at once" in worker.stderr
    assert worker.stderr.count(": OmniQ ") == 1, "the supervisor says it for all"
    assert worker.stop() == 0
