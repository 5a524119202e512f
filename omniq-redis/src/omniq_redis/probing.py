"""Finds out what is wrong with a server that takes a connection and does not serve on it: the driver cannot say.

One that has no room for more clients says so and hangs up, which a client that is writing may never read; one that
speaks TLS, or does not, answers the wrong kind of greeting with silence.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl

from omniq_redis.settings import Address

__all__ = ["is_riddle", "what_is_wrong"]

PATIENCE = 0.3
"""Seconds for each step; the server has just taken a connection, or else there is nothing to be found out."""
ALERT, HANDSHAKE = b"\x15\x03", b"\x16\x03"
"""How the two records of TLS begin with which a server may answer a greeting."""
UNASKED = 0.1
"""Seconds for what a server says by itself, which it does at once."""
_RIDDLES = re.compile(r"UNKNOWN|closed|Connection lost|reset by peer|Broken pipe|Timeout|no connection within|SSL")


def is_riddle(error: BaseException) -> bool:
    """Tell whether an error leaves open what is wrong."""
    return not str(error) or _RIDDLES.search(str(error)) is not None


def what_is_wrong(place: Address | str, tls: bool) -> str | None:
    """Return what is wrong with a server and what to do; None if that cannot be told. Blocks for a second at most.

    :param place: host and port, or the path of a Unix socket.
    :param tls: whether the URL says that it speaks TLS.
    """
    try:
        with _connected(place) as probe:
            said = _read(probe, UNASKED)
            if said is None:
                probe.sendall(b"PING\r\n")
                said = _read(probe, PATIENCE)
            elif said:
                return said.decode(errors="replace").strip().removeprefix("-ERR ")
        if tls and said and said[:1] in b"+-":
            return "the server does not speak TLS there: write redis instead of rediss, or name its TLS port"
        if not tls and said == b"" and _speaks_tls(place):
            return "the server speaks TLS there: write rediss instead of redis"
    except OSError:
        return None
    return None


def _connected(place: Address | str) -> socket.socket:
    if not isinstance(place, str):
        return socket.create_connection(place, PATIENCE)
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.settimeout(PATIENCE)
        probe.connect(place)
    except BaseException:
        probe.close()
        raise
    return probe


def _read(probe: socket.socket, seconds: float) -> bytes | None:
    """Return what the server says; None: nothing, b"": it hung up."""
    probe.settimeout(seconds)
    try:
        return probe.recv(1000)
    except TimeoutError:
        return None
    except ConnectionError:
        return b""


def _speaks_tls(place: Address | str) -> bool:
    """Greet a server as TLS does, and look whether the answer is a record of TLS (RFC 8446, section 5.1)."""
    # Not by wrap_socket: where the server hangs up in the middle, the socket that it makes is never closed.
    context, outgoing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="any").do_handshake()
    with _connected(place) as probe:
        probe.sendall(outgoing.read())
        answer = _read(probe, PATIENCE)
    return answer is not None and answer[:2] in (ALERT, HANDSHAKE)
