"""A real server that the tests start by themselves, on a free port of this machine and in a folder of their own."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from omniq.testing import wait_until

__all__ = ["HOST", "Server", "find_binary", "free_port"]

HOST = "127.0.0.1"


PORTS = range(10_000, 32_000)
"""Below those that systems give to outgoing connections, of which one might take a port before its server does."""
_held: list[int] = []


def free_port() -> int:
    """Return a port that nobody listens on, and that no other process of the tests is given while this one lives."""
    while True:
        port = random.choice(PORTS)
        # Nobody uses UDP here: that its port of that number is taken is how other processes know.
        with socket.socket(type=socket.SOCK_DGRAM) as sign, socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sign.bind((HOST, port))
                probe.bind((HOST, port))
            except OSError:
                continue
            _held.append(sign.detach())
            if len(_held) > 100:
                os.close(_held.pop(0))
        return port


def find_binary(names: Sequence[str], folders: Sequence[Path | str] = ()) -> Path | None:
    """Look for a program on the path, then in some folders.

    :param names: the first that is found counts.
    """
    for name in names:
        if found := shutil.which(name):
            return Path(found)
    for folder in folders:
        for name in names:
            if os.access(path := Path(folder) / name, os.X_OK):
                return path
    return None


class Server(ABC):
    """One server process, which can be killed and started again on the same port and the same data.

    :param folder: for its data and its log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / f"{type(self).__name__.lower()}-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The storage URL, without a namespace."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Say whether it answers."""

    def options(self) -> dict[str, Any]:
        """Return more arguments for Popen."""
        return {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self, timeout: float = 30) -> None:
        """Start it, and return once it answers."""
        self.launch()
        wait_until(self._answers, timeout=timeout, what=f"{type(self).__name__} to answer")

    def launch(self) -> None:
        """Start it, and return at once."""
        assert self.process is None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self.options()
            )

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(
                f"it ended with {self.process.returncode}:\n{self.log.read_text(errors='replace')[-5000:]}"
            )
        return self.is_ready()

    def kill(self) -> None:
        """Kill it (SIGKILL), and return once it has ended."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it in order, and return once it has ended."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def suspend(self) -> None:
        """Stop it in the middle of whatever it does: it keeps its connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
