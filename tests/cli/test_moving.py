"""``omniq export`` and ``omniq import``: from store to store, killed and repeated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from omniq import TaskQueue, TaskState
from omniq.testing import wait_until
from tests.cli.program import environment
from tests.fork_server import Popen, run

MANY = 3000


def omniq(folder: Path, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "omniq", *arguments]
    return run(command, cwd=folder, env=environment(), input=given, capture_output=True, timeout=120, check=False)


def test_a_store_is_moved_in_a_pipe_and_again_after_the_import_was_killed(folder: Path, store: TaskQueue) -> None:
    def work(number: int) -> None: ...

    task = store.task(name="work")(work)
    store.enqueue_many([task.call(number) for number in range(MANY)])
    store.pause("mail")
    done = omniq(folder, "export", "sqlite:///jobs.db")
    assert (done.returncode, done.stderr.strip()) == (0, b"omniq: note: exported 1 pause, 3,000 tasks")
    lines = done.stdout.splitlines(keepends=True)
    half = b"".join(lines[: MANY // 2])
    command = [sys.executable, "-m", "omniq", "import", "sqlite:///moved.db"]
    with Popen(command, cwd=folder, env=environment(), stdin=subprocess.PIPE) as importer:
        assert importer.stdin is not None
        importer.stdin.write(half)
        importer.stdin.flush()
        with TaskQueue(f"sqlite:///{folder / 'moved.db'}") as moved:
            wait_until(lambda: sum(stats.counts[TaskState.READY] for stats in moved.stats()) > 0, 60)
            importer.kill()
    again = omniq(folder, "import", "sqlite:///moved.db", given=done.stdout)
    assert again.returncode == 0, again.stderr
    assert b"there already: " in again.stdout
    assert omniq(folder, "export", "sqlite:///moved.db").stdout.splitlines()[1:] == done.stdout.splitlines()[1:]
    third = omniq(folder, "import", "sqlite:///moved.db", given=done.stdout)
    assert third.stdout.split() == b"imported nothing there already: 1 pause, 3,000 tasks".split()


def test_an_export_that_was_killed_is_not_taken_for_whole_and_is_repeated(folder: Path, store: TaskQueue) -> None:
    def work(number: int) -> None: ...

    task = store.task(name="work")(work)
    store.enqueue_many([task.call(number) for number in range(MANY)])
    command = [sys.executable, "-m", "omniq", "export", "sqlite:///jobs.db"]
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE) as exporter:
        assert exporter.stdout is not None
        # It has more to write than a pipe holds, so it is in the middle of it.
        begun = b"".join(exporter.stdout.readline() for _ in range(MANY // 3))
        exporter.kill()
        begun += exporter.stdout.read()
    assert begun.count(b"\n") < MANY
    cut = omniq(folder, "import", "sqlite:///moved.db", given=begun)
    assert cut.returncode == 1
    assert b"the export was cut off" in cut.stderr
    whole = omniq(folder, "export", "sqlite:///jobs.db").stdout
    again = omniq(folder, "import", "sqlite:///moved.db", given=whole)
    assert again.returncode == 0, again.stderr
    assert omniq(folder, "export", "sqlite:///moved.db").stdout.splitlines()[1:] == whole.splitlines()[1:]


def test_a_file_that_was_cut_off_is_refused_before_anything_is_stored(folder: Path, store: TaskQueue) -> None:
    def work(number: int) -> None: ...

    task = store.task(name="work")(work)
    store.enqueue_many([task.call(number) for number in range(3)])
    whole = omniq(folder, "export", "sqlite:///jobs.db").stdout
    (folder / "cut.jsonl").write_bytes(whole[: len(whole) * 2 // 3])
    command = [sys.executable, "-m", "omniq", "import", "sqlite:///moved.db"]
    with (folder / "cut.jsonl").open("rb") as file:
        refused = run(command, cwd=folder, env=environment(), stdin=file, capture_output=True, check=False)
    assert refused.returncode == 1
    assert b"without its last line" in refused.stderr
    assert not (folder / "moved.db").exists()
    with (folder / "cut.jsonl").open("rb") as file:
        command.append("--partial")
        taken = run(command, cwd=folder, env=environment(), stdin=file, capture_output=True, check=False)
    assert taken.returncode == 0, taken.stderr
    assert taken.stdout.startswith(b"imported ")
