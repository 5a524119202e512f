"""Storing a message on the calling thread, whichever that is: a thread of ours would have to be woken, and wake it.

A plain socket, on which one message at a time goes out and is waited for. Whatever is not plain sailing (TLS, keys, a
server that is away, a second thread at the same time) goes the other way, through the client on its event loop.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from omniq_nats.connection import PATIENCE
from omniq_nats.messages import Lost, Write
from omniq_nats.settings import Settings

__all__ = ["SyncClient"]

STALE = 60.0
"""Seconds without a word after which a connection is made anew: servers end those that do not answer their pings."""
PAUSE = 1.0
"""Seconds without another attempt after one that failed."""
PLAIN = {"user", "password", "token"}
"""What a login may consist of."""


class SyncClient:
    """A connection for whichever thread has it, made at the first need.

    :param settings: of the store.
    :param address: gives host and port of the server that the client is connected to; None: it is not.
    :param renewed: called when it had to be made anew, as the servers may have lost what they had not flushed.
    """

    def __init__(
        self, settings: Settings, address: Callable[[], tuple[str, int] | None], renewed: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._address = address
        self._renewed = renewed
        self._was_connected = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._inbox = ""
        self._number = 0
        self._used_at = 0.0
        self._not_before = 0.0
        self._pid = os.getpid()
        self._is_possible = not settings.encrypted and PLAIN.issuperset(settings.login)
        if not all(server.startswith("nats:") for server in settings.servers):
            self._is_possible = False

    def close(self) -> None:
        """Disconnect; a message that is under way is waited for."""
        with self._lock:
            self._is_possible = False
            self._hang_up()

    def publish(self, write: Write) -> dict[str, Any] | None:
        """Store a message.

        :return: what JetStream answered; None: the message was not sent.
        :raises Lost: if no answer came, so that it is not known whether it was stored.
        """
        # Threads that come at the same time are quicker together, in one batch.
        if not self._is_possible or os.getpid() != self._pid or not self._lock.acquire(blocking=False):
            return None
        try:
            return self._publish(write) if self._is_connected() else None
        finally:
            self._lock.release()

    def _publish(self, write: Write) -> dict[str, Any] | None:
        self._number += 1
        subject = f"{self._inbox}.{self._number:x}"
        try:
            self._send(write, subject)
            headers, data = self._answer(subject.encode())
        except OSError as error:
            self._not_before = time.monotonic() + PAUSE
            self._hang_up()
            raise Lost(f"{self._settings.shown}: {str(error) or type(error).__name__}") from error
        if headers:  # there is no answer for the stream
            return None
        answer: dict[str, Any] = json.loads(data)
        return answer

    def _send(self, write: Write, reply: str) -> None:
        assert self._socket is not None
        lines = "".join(f"{name}: {value}\r\n" for name, value in write.headers().items())
        head = f"NATS/1.0\r\n{lines}\r\n".encode()
        size = len(head) + len(write.data)
        start = f"HPUB {write.subject} {reply} {len(head)} {size}\r\n".encode()
        self._socket.sendall(b"".join((start, head, write.data, b"\r\n")))

    # The protocol

    def _is_connected(self) -> bool:
        now = time.monotonic()
        if self._socket is not None and now - self._used_at > STALE:
            self._hang_up()
        self._used_at = now
        if self._socket is None and now >= self._not_before:
            try:
                self._connect()
            except (OSError, ValueError):
                self._hang_up()
                self._not_before = now + PAUSE
            else:
                is_new, self._was_connected = not self._was_connected, True
                if not is_new:
                    # The caller relied on what was known before.
                    self._renewed()
                    return False
        return self._socket is not None

    def _connect(self) -> None:
        address = self._address()
        if address is None:
            raise OSError("not connected")
        self._socket = socket.create_connection(address, timeout=PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received.clear()
        info = json.loads(self._line().partition(b" ")[2])
        if info.get("tls_required") or not info.get("headers"):
            self._is_possible = False
            raise OSError("the client's way only")
        login = self._settings.login
        told = {
            "verbose": False,
            "pedantic": False,
            "lang": "python3",
            "version": "omniq",
            "name": f"omniq {self._settings.names.namespace}",
            "protocol": 0,
            "headers": True,
            "no_responders": True,
            "user": login.get("user"),
            "pass": login.get("password"),
            "auth_token": login.get("token"),
        }
        told = {name: value for name, value in told.items() if value is not None}
        self._inbox = f"_INBOX.omniq-{self._settings.names.namespace}.{secrets.token_hex(8)}"
        self._socket.sendall(f"CONNECT {json.dumps(told)}\r\nSUB {self._inbox}.* 1\r\nPING\r\n".encode())
        while (line := self._line()) != b"PONG":
            if line.startswith(b"-ERR"):
                raise OSError(line.decode(errors="replace"))

    def _hang_up(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _answer(self, subject: bytes) -> tuple[bytes, bytes]:
        """Return headers and body of the answer to a question."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            line = self._line()
            if line == b"PING":
                assert self._socket is not None
                self._socket.sendall(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                raise OSError(line.decode(errors="replace"))
            elif line.startswith((b"MSG ", b"HMSG ")):
                words = line.split()
                size = int(words[-1])
                split = int(words[-2]) if words[0] == b"HMSG" else 0
                body = self._take(size + 2)
                # Another one is an answer that came too late.
                if words[1] == subject:
                    return body[:split], body[split:size]
        raise TimeoutError("no answer")

    def _line(self) -> bytes:
        while (end := self._received.find(b"\r\n")) < 0:
            self._receive()
        return self._take(end + 2)[:-2]

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _receive(self) -> None:
        assert self._socket is not None
        data = self._socket.recv(65536)
        if not data:
            raise OSError("the connection was closed")
        self._received += data
