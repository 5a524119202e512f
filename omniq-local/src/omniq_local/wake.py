"""How those who wait are woken across threads and processes: by a datagram on the loopback interface with a token.

Nothing is read from a datagram but the token, and all that a known token does is to end a wait early; so none needs
to be trusted. One that is lost costs its receiver the time until it looks again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
import weakref
from collections.abc import Iterable

__all__ = ["Bell", "Inbox", "Signal"]

HOST = "127.0.0.1"
TOKEN_BYTES = 8


class Signal:
    """Wakes one coroutine, once, from any thread."""

    def __init__(self) -> None:
        self.token = secrets.randbits(63)
        """What it is called in the table of waiters."""
        self.fired = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._future: asyncio.Future[None] | None = None

    def fire(self) -> None:
        """End the wait, or the next one if there is none at the moment."""
        self.fired = True
        if threading.get_ident() == self._thread:
            self._set()
            return
        # On a loop that was closed no coroutine waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set)

    async def wait(self, seconds: float) -> bool:
        """Wait until fired, or some seconds; tell whether it was fired."""
        if not self.fired and seconds > 0:
            self._future = self._loop.create_future()
            timer = self._loop.call_later(seconds, self._set)
            try:
                # Fired by another thread meanwhile: the call that sets the future is on its way.
                await self._future
            finally:
                timer.cancel()
                self._future = None
        return self.fired

    def _set(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Bell:
    """Knows the signals of this process, and rings those of other processes."""

    def __init__(self) -> None:
        self._signals: dict[int, Signal] = {}
        self._inboxes: weakref.WeakSet[Inbox] = weakref.WeakSet()
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def add(self, signal: Signal) -> None:
        """Have a signal fired when its token is rung."""
        self._signals[signal.token] = signal

    def discard(self, signal: Signal) -> None:
        """Forget a signal."""
        self._signals.pop(signal.token, None)

    def ring(self, pokes: Iterable[tuple[int, int]]) -> None:
        """Wake waiters, each given by token and port. Never fails: a waiter that is not reached looks by itself."""
        for token, port in pokes:
            if not self.heard(token):
                self._send(token, port)

    def heard(self, token: int) -> bool:
        """Fire the signal that has a token; tell whether it is one of this process."""
        signal = self._signals.get(token)
        if signal is None:
            return False
        signal.fire()
        return True

    def _send(self, token: int, port: int) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto(token.to_bytes(TOKEN_BYTES, "big"), (HOST, port))

    def new_inbox(self) -> Inbox:
        """Return a place where the running loop is reached from other processes."""
        inbox = Inbox(self)
        self._inboxes.add(inbox)
        return inbox

    def after_fork(self) -> None:
        """Close the child's copies of the parent's sockets."""
        self._lock = threading.Lock()
        self.close()
        for inbox in self._inboxes:
            inbox.disown()

    def close(self) -> None:
        """Close the socket from which others are rung."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


class Inbox:
    """Receives the datagrams for one event loop.

    :param bell: knows whom a token wakes.
    """

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind((HOST, 0))
            self._loop.add_reader(self._socket, self._receive)
        except BaseException:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]

    def _receive(self) -> None:
        # Many in one turn of the loop, but not so many that a flood of them stops it.
        with contextlib.suppress(BlockingIOError, InterruptedError):
            for _ in range(100):
                self._bell.heard(int.from_bytes(self._socket.recv(TOKEN_BYTES), "big"))

    def close(self) -> None:
        """Stop receiving. Callable from the loop's thread, and after the loop has ended."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
        self.disown()

    def disown(self) -> None:
        """Close the socket, and leave the loop alone."""
        self._socket.close()
