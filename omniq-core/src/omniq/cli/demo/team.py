"""The demo's worker processes: started like any worker, and killed without warning."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import define

from omniq.cli.parent_watch import ParentWatch
from omniq.cli.supervisor import how_it_ended

__all__ = ["LEASE", "Member", "Team"]

APP = "omniq.cli.demo.tasks:queue"
LEASE = 3
"""Seconds after which the tasks of the killed worker run elsewhere."""
RECOVER_EVERY = 0.5
CONCURRENCY = 8
THREADS = 4
PATIENCE = 10.0
"""Seconds that a worker gets to stop before it is killed."""


@define(kw_only=True)
class Member:
    """One worker process."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    killed: bool = False
    caught: int = 0
    """How many tasks it ran when it was killed."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def fell(self) -> str | None:
        """How it ended by itself; None if all is well."""
        code = self.process.poll()
        return None if code is None or self.killed else how_it_ended(code)

    def has_id(self, worker: str | None) -> bool:
        """Whether a worker's id, ``host-pid-random``, is this process's."""
        return worker is not None and worker.rsplit("-", 2)[1:2] == [str(self.pid)]


class Team:
    """The worker processes, the dead ones too.

    :param folder: where their logs go.
    :param environment: what they get besides this process's environment.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._parent_watch = ParentWatch()
        self.members: list[Member] = []

    @property
    def alive(self) -> list[Member]:
        """Those that were not killed."""
        return [member for member in self.members if not member.killed]

    def start(self) -> Member:
        """Start one more worker."""
        number = len(self.members) + 1
        log = self._folder / f"worker-{number}.log"
        options = {
            "--concurrency": CONCURRENCY,
            "--threads": THREADS,
            "--lease": LEASE,
            "--recover-every": RECOVER_EVERY,
            "--parent-watch": self._parent_watch.child_end,
        }
        words = [str(word) for option in options.items() for word in option]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "omniq", "worker", APP, *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(self._parent_watch.child_end,),
                process_group=0,
            )
        member = Member(number=number, process=process, log=log)
        self.members.append(member)
        return member

    @contextlib.contextmanager
    def frozen(self, member: Member) -> Iterator[None]:
        """Let a worker stand still meanwhile."""
        member.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            if not member.killed:
                member.process.send_signal(signal.SIGCONT)

    def kill(self, member: Member) -> None:
        """Kill a worker with SIGKILL, and return when it is dead."""
        member.killed = True
        member.process.kill()
        member.process.wait()

    def stop(self) -> None:
        """Stop every worker, and return when all have ended."""
        for member in self.alive:
            with contextlib.suppress(ProcessLookupError):
                member.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        for member in self.alive:
            try:
                member.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill(member)
        self._parent_watch.close()
