"""Why a connection does not come about: what the server said, rather than that the connection broke afterwards.

A server that refuses a client says why and closes the connection. The client may learn of the second before it reads
the first: a write that fails ends its reading, and what the server said stays unread. An :class:`Listener` keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable
from functools import partial

import nats.errors

__all__ = ["Listener", "NotEncrypted", "Reasons"]

MOST_HEARD = 64 * 1024
"""Bytes that are kept of what a server says while a connection is made."""
_REFUSED = re.compile(rb"-ERR +('[^\r\n]*')")


class NotEncrypted(nats.errors.Error):
    """The server does not offer TLS, and nothing is to be said without it."""

    def __str__(self) -> str:
        return "the server does not encrypt (it has no tls in its configuration, or does not demand it of clients)"


class Reasons:
    """Why the attempts to connect failed since the last one that succeeded."""

    def __init__(self) -> None:
        self._latest: BaseException | None = None
        self._telling: BaseException | None = None
        """The latest that says why, rather than that the connection broke."""

    def add(self, error: BaseException) -> None:
        """Note why an attempt failed."""
        self._latest = error
        # What the server says stands in quotation marks.
        if isinstance(error, ssl.SSLError | NotEncrypted) or str(error).startswith("nats: '"):
            self._telling = error

    def clear(self) -> None:
        """Forget them: an attempt succeeded."""
        self._latest = self._telling = None

    def __str__(self) -> str:
        error = self._telling or self._latest
        if error is None:
            return ""
        if isinstance(error, TimeoutError) and not str(error):
            return "no greeting came in time; is it a NATS server that listens there?"
        return str(error) or type(error).__name__


class Listener:
    """Hears what a server says until the connection is made, even if the client gives up reading before.

    :param reader: of the connection.
    :param connection: its socket, unless what goes through that is encrypted.
    """

    def __init__(self, reader: asyncio.StreamReader, connection: socket.socket | None) -> None:
        self.reader = reader
        # What came before there was an ear for it lies in the reader; not every Python need keep it there.
        self._heard = bytearray(getattr(reader, "_buffer", b""))
        self._rest = None if connection is None else connection.dup()
        reader.feed_data = partial(self._hear, reader.feed_data)  # type: ignore[method-assign]  # that is what this is for

    def _hear(self, pass_on: Callable[[bytes], None], data: bytes) -> None:
        if len(self._heard) < MOST_HEARD:
            self._heard += data
        pass_on(data)

    def refusal(self) -> str | None:
        """Return what the server said when it refused the client, in its quotation marks."""
        if self._rest is not None:
            # What came before the connection broke can still be read from the socket.
            with contextlib.suppress(OSError):
                self._heard += self._rest.recv(4096)
        found = _REFUSED.search(self._heard)
        return None if found is None else found[1].decode(errors="replace")

    def close(self) -> None:
        """Leave the connection to the client."""
        with contextlib.suppress(AttributeError):
            del self.reader.feed_data
        if self._rest is not None:
            self._rest.close()
