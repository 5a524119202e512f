"""The command line as a user runs it: in a folder with a small application."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from omniq.testing import wait_until
from tests.fork_server import Popen, run

__all__ = ["SHOP", "Program", "environment", "run_omniq"]

SHOP = """
from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from omniq import TaskQueue, current_task

queue = TaskQueue("sqlite:///jobs.db", max_retries=0)
colour = "green"


@queue.task
def resize(image: Path, width: int = 200) -> Path:
    assert isinstance(image, Path)
    return image.with_suffix(f".{width}.png")


@queue.task
async def add(left: int, right: int) -> int:
    return left + right


@queue.task
def burn(text: str) -> None:
    raise RuntimeError(text)


@queue.task
def whoami() -> int:
    return os.getpid()


@queue.task(queue="slow")
async def sleep(seconds: float) -> None:  # a task's name
    await asyncio.sleep(seconds)  # what the task is there for


@queue.task
def chain(left: int) -> None:
    if left:
        chain.enqueue(left - 1)


@queue.task
def talk() -> None:
    logging.getLogger("shop").warning("the shop is open")
"""


def environment(**more: str) -> dict[str, str]:
    """The environment of a user's terminal: UTF-8, and nothing of OmniQ's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OMNIQ_")}
    return {**inherited, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", **more}


def run_omniq(*arguments: str, cwd: Path, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return run(
        [sys.executable, "-m", "omniq", *arguments],
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Program:
    """A command that goes on until it is told to stop; its output is in files."""

    def __init__(self, *arguments: str, cwd: Path, **more: str) -> None:
        self.out = cwd / "out.txt"
        self.err = cwd / "err.txt"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = Popen(
                [sys.executable, "-m", "omniq", *arguments],
                cwd=cwd,
                env=environment(**more),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()

    def says(self, text: str, timeout: float = 60) -> str:
        """Wait until stderr holds a text; give all of stderr."""

        def said() -> str:
            ended = self.process.poll() is not None  # asked first: its last words come before its end
            shown = self.stderr
            assert text in shown or not ended, shown
            return shown if text in shown else ""

        return wait_until(said, timeout, f"{text!r} on stderr")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and give the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def press_ctrl_c(self) -> int:
        """Send SIGINT to the whole process group, as a terminal does, and give the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(30)

    def end(self) -> None:
        """Make sure that it has ended, whatever the test made of it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
