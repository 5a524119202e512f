"""The client's own messages on the wire, without its detours: a queue and a task for each that goes out or comes in.

They take more of a core's time than all else that is done for a message. The client still connects, logs in, connects
again after a loss and subscribes anew. Where a connection is no plain stream of bytes (a WebSocket), or takes no more
at the moment, messages go the client's way.

For that the client's private parts are used, which another version may not have: what is used is in
:data:`PRIVATE_PARTS`. If one of them is not as expected, all messages go the client's public way, which is slower.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import Any, TypeAlias

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

try:
    from nats.aio.transport import TcpTransport
    from nats.protocol.parser import AWAITING_CONTROL_LINE
except ImportError:  # they are private, see PRIVATE_PARTS
    TcpTransport = AWAITING_CONTROL_LINE = None  # type: ignore[assignment, misc]  # seen by _differences

from omniq.storage.escaping import get_logger

__all__ = ["PRIVATE_PARTS", "Heard", "Message", "WireClient", "stream_of"]

_log = get_logger("omniq.nats")

ROOM = 1024 * 1024
"""Bytes that may wait for the network before messages wait for it, too."""


class Message:
    """A message that came.

    :param subject: on which it came.
    :param data: its body.
    :param headers: its headers, as they came or taken apart; None: it has none.
    """

    __slots__ = ("_headers", "data", "subject")

    def __init__(self, subject: str, data: bytes, headers: bytes | dict[str, str] | None = None) -> None:
        self.subject = subject
        self.data = data
        self._headers = headers

    @property
    def headers(self) -> dict[str, str] | None:
        """Its headers; None: it has none."""
        if isinstance(self._headers, bytes):
            self._headers = _read_headers(self._headers)
        return self._headers

    def stored_as(self) -> tuple[str, int] | None:
        """Return the subject and the sequence of the stored message that this is; None: it is none."""
        raw = self._headers
        if isinstance(raw, bytes):
            # To take all of them apart takes longer than all else that is done for the message.
            if raw.startswith(b"NATS/1.0\r\n"):
                # The last of a name counts, as the server puts its own behind those that were stored.
                place = _PLACE.match(raw, max(0, raw.rfind(b"\r\nNats-Subject: ")))
                if place is not None:
                    return place[1].decode(), int(place[2])
                subject, seq = _find(raw, b"\r\nNats-Subject: "), _find(raw, b"\r\nNats-Sequence: ")
                if subject and seq:
                    return subject.decode(), int(seq)
            return None
        if raw is None or "Status" in raw or "Nats-Sequence" not in raw:
            return None
        return raw["Nats-Subject"], int(raw["Nats-Sequence"])


_PLACE = re.compile(rb"\r\nNats-Subject: ([^\r]+)\r\nNats-Sequence: (\d+)\r\n")
"""How the server writes where a message is stored."""

Heard: TypeAlias = Callable[[Message], None]


def _is_parser(client: Client) -> bool:
    parser: Any = client._ps
    return bool(parser.buf == b"" and parser.state == AWAITING_CONTROL_LINE)


def _is_transport(client: Client) -> bool:
    transport = TcpTransport()  # type: ignore[no-untyped-call]  # it has no annotations
    return client._transport is None and transport._io_reader is None and transport._io_writer is None


def _takes_messages(client: Client) -> bool:
    return list(inspect.signature(client._process_msg).parameters) == ["sid", "subject", "reply", "data", "headers"]


PRIVATE_PARTS: Mapping[str, Callable[[Client], bool]] = {
    "Client._pending is the list of what waits to be sent": lambda client: client._pending == [],
    "Client._pending_data_size is the number of bytes in it": lambda client: client._pending_data_size == 0,
    "Client._ps is its parser, whose buf and state tell whether a message is half read": _is_parser,
    "Client._transport is a TcpTransport, with the streams _io_reader and _io_writer": _is_transport,
    "Client._process_msg takes each message that was read, and the number of its subscription": _takes_messages,
    "Subscription._id is the number of a subscription": lambda client: Subscription(client, 7)._id == 7,
    "StreamReader.feed_data is called with what was received": lambda _: callable(asyncio.StreamReader.feed_data),
}
"""What is used of the client that it does not promise, each with a look whether a new client has it."""


@functools.cache
def _differences() -> tuple[str, ...]:
    """Return what is not as expected in the client that is installed."""
    found = []
    for part, is_there in PRIVATE_PARTS.items():
        try:
            if not is_there(Client()):
                found.append(part)
        except (AttributeError, TypeError, ValueError):
            found.append(part)
    if found:
        _log.warning(
            "nats-py %s is not as it was when this version of omniq-nats was tested: not true that %s. "
            "Everything works, but messages take a slower way",
            metadata.version("nats-py"),
            "; ".join(found),
        )
    return tuple(found)


def stream_of(client: Client) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Return the streams of a client's connection; None if it has none, or they are not where they are expected."""
    transport = getattr(client, "_transport", None)
    reader, writer = getattr(transport, "_io_reader", None), getattr(transport, "_io_writer", None)
    if isinstance(reader, asyncio.StreamReader) and isinstance(writer, asyncio.StreamWriter):
        return reader, writer
    return None


class WireClient(Client):
    """The client, with a short way out and in."""

    def __init__(self) -> None:
        super().__init__()
        self._is_short = not _differences()
        """Whether messages go and come in the short way."""
        self._heard: dict[int, Heard] = {}
        self._is_due = False
        self._reader: asyncio.StreamReader | None = None
        """Of the present connection."""

    # Out

    def post(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> bool:
        """Send a message; after :meth:`together`, with others that are sent before the loop comes round.

        :return: False: it was not sent, and has to go the client's way.
        """
        if not self._is_short or not self._is_open:
            return False
        if headers:
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
            size = len(head) + 12
            start = f"HPUB {subject} {reply} {size} {size + len(data)}\r\nNATS/1.0\r\n".encode()
            message = b"".join((start, head, b"\r\n", data, b"\r\n"))
        else:
            message = b"".join((f"PUB {subject} {reply} {len(data)}\r\n".encode(), data, b"\r\n"))
        self._put(message)
        return True

    def post_all(self, messages: Sequence[tuple[str, bytes]]) -> bool:
        """Send many messages without headers in one piece; see :meth:`post`.

        :param messages: subjects, with a space and the subject for the answer behind it where there is one, and data.
        """
        if not self._is_short or not self._is_open:
            return False
        parts = [b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(data), data) for subject, data in messages]
        self._put(b"".join(parts))
        return True

    def _put(self, message: bytes) -> None:
        # Through the client's own buffer, so that nothing overtakes what it has to say itself.
        self._pending.append(message)
        self._pending_data_size += len(message)
        if not self._is_due:
            self._write_out()

    def together(self) -> None:
        """Have what is sent before the loop comes round go out in one piece, as a call of the system's is dear."""
        if self._is_short and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._write_out)

    @property
    def _is_open(self) -> bool:
        transport = self._transport
        if not self.is_connected or not isinstance(transport, TcpTransport) or transport._io_writer is None:
            return False
        if transport._io_reader is not self._reader:
            self._tap(transport._io_reader)
        return transport._io_writer.transport.get_write_buffer_size() <= ROOM

    def _write_out(self) -> None:
        self._is_due = False
        transport = self._transport
        if not self._pending or not self.is_connected or not isinstance(transport, TcpTransport):
            return  # the client sends it when it is connected again
        if transport._io_writer is not None:
            transport._io_writer.write(b"".join(self._pending))
            self._pending = []
            self._pending_data_size = 0

    # In

    def _tap(self, reader: asyncio.StreamReader | None) -> None:
        """See what comes through a connection before the client does, and leave to it what is not ours."""
        self._reader = reader
        if reader is not None:
            reader.feed_data = partial(self._receive, reader, reader.feed_data)  # type: ignore[method-assign]  # that is what this is for

    def _receive(self, reader: asyncio.StreamReader, pass_on: Callable[[bytes], None], data: bytes) -> None:
        parser = self._ps
        start = 0
        # The client reads on where it has begun.
        if not getattr(reader, "_buffer", True) and not parser.buf and parser.state == AWAITING_CONTROL_LINE:
            start = self._take(data)
        if start < len(data):
            pass_on(data[start:] if start else data)

    def _take(self, data: bytes) -> int:
        """Read the messages that are complete and have a listener; return the place where others begin."""
        start = 0
        while data.startswith((b"MSG ", b"HMSG "), start):
            middle = data.find(b"\r\n", start) + 2
            if middle < 2:
                break
            words = data[start:middle].split()
            end = middle + int(words[-1])
            heard = self._heard.get(int(words[2]))
            if heard is None or end + 2 > len(data):
                break
            headers = None
            if words[0] == b"HMSG":
                split = middle + int(words[-2])
                headers = data[middle:split]
                middle = split
            start = end + 2
            _call(heard, Message(words[1].decode(), data[middle:end], headers))
        return start

    async def hear(self, subject: str, heard: Heard) -> Subscription:
        """Subscribe, and call a function with each message as it comes."""

        async def on_message(message: Msg) -> None:
            _call(heard, Message(message.subject, message.data, message.headers))

        subscription = await self.subscribe(subject, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0)
        if self._is_short:
            self._heard[subscription._id] = heard
        return subscription

    async def unhear(self, subscription: Subscription) -> None:
        """End a subscription."""
        if self._is_short:
            self._heard.pop(subscription._id, None)
        await subscription.unsubscribe()

    async def _process_msg(self, *arguments: Any, **named: Any) -> None:
        heard = self._heard.get(arguments[0]) if self._is_short else None
        if heard is None:
            await super()._process_msg(*arguments, **named)
        else:
            _, subject, _, data, headers = arguments
            _call(heard, Message(subject.decode(), data, bytes(headers) if headers else None))


def _call(heard: Heard, message: Message) -> None:
    try:
        heard(message)
    except Exception:  # any client may have sent it, and the connection is not to suffer
        _log.exception("a message on %s could not be dealt with", message.subject)


def _find(raw: bytes, name: bytes) -> bytes:
    """Return what follows the last header of a name; empty: there is none."""
    start = raw.rfind(name)
    return raw[start + len(name) : raw.find(b"\r\n", start + 2)] if start >= 0 else b""


def _read_headers(raw: bytes) -> dict[str, str]:
    first, *lines = raw.decode("utf-8", "surrogateescape").split("\r\n")
    headers = {}
    status = first[8:].strip()
    if status:
        headers["Status"], _, headers["Description"] = status.partition(" ")
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return headers
