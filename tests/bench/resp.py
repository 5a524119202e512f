"""A few questions to a Redis server, in the environments of products that bring no client of their own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["Connection"]


class Connection:
    """One connection.

    :param url: ``redis://HOST:PORT/DATABASE``.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._answers = self._socket.makefile("rb")
        if database := parts.path.strip("/"):
            self.ask("SELECT", database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._answers.close()
        self._socket.close()

    def ask(self, *words: str | int) -> Any:
        """Return the answer to a command."""
        encoded = [str(word).encode() for word in words]
        parts = [b"*%d\r\n" % len(encoded), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)]
        self._socket.sendall(b"".join(parts))
        return self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline().rstrip(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._answers.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        return rest

    def lines(self, quiet: float) -> Iterator[bytes]:
        """Yield what the server sends unasked, until it has been quiet for some seconds."""
        self._socket.settimeout(quiet)
        try:
            while line := self._answers.readline():
                yield line
        except TimeoutError:
            return

    def count(self, pattern: str) -> int:
        """Return how many keys there are of a pattern."""
        return int(self.ask("EVAL", "return #redis.call('KEYS', ARGV[1])", 0, pattern))

    def info(self, section: str) -> dict[str, str]:
        """Return what the server tells about itself."""
        lines = self.ask("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)
