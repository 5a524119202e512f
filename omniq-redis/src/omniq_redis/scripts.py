"""The Lua scripts, one for each verb, and how a call of one is written on the wire."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from hashlib import sha1
from importlib.resources import files

from attrs import frozen

__all__ = ["Script", "arguments_of", "evalsha", "pack", "script"]

USES = "--! "
FLAGS = "#!lua flags=allow-oom\n"


@frozen
class Script:
    """A script of the server."""

    name: str
    source: bytes
    sha: bytes
    """By which the server knows it once it was loaded."""


NEEDED_WHEN_FULL = frozenset(
    {"cancel", "cancel_flow", "settle", "claim", "finish", "heartbeat", "recover", "retry", "sign_off", "await", "look"}
    | {"put_limit", "delete_limit", "pass_on", "restore", "purge", "resume"}
)
"""Scripts that a server which is out of memory runs all the same, so that what it holds can be worked off."""


@functools.cache
def script(name: str, *, flagged: bool = True) -> Script:
    """Return a script, whole: its first line names the parts that it is made of.

    :param flagged: whether the server (Redis from 7 on, Valkey) knows flags in the first line.
    """
    folder = files("omniq_redis") / "lua"
    text = (folder / f"{name}.lua").read_text("utf-8")
    first, _, body = text.partition("\n")
    parts = [(folder / "parts" / f"{part}.lua").read_text("utf-8") for part in first.removeprefix(USES).split()]
    first = FLAGS if flagged and name in NEEDED_WHEN_FULL else ""
    source = (first + "\n".join(_without_comments([*parts, body]))).encode()
    return Script(name, source, sha1(source, usedforsecurity=False).hexdigest().encode())


def _without_comments(parts: Iterable[str]) -> Iterable[str]:
    # The server keeps the text of every script, and the replicas and the log of slow calls get to see it.
    for part in parts:
        for line in part.splitlines():
            if line.strip() and not line.lstrip().startswith("--"):
                yield line


def arguments_of(words: Iterable[bytes]) -> bytes:
    """Write the words of a command as the server reads them."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def pack(*words: bytes) -> bytes:
    """Write a command as the server reads it."""
    return b"*%d\r\n%b" % (len(words), arguments_of(words))


def evalsha(wanted: Script, prefix: str) -> bytes:
    """Write the four words with which a call of a script begins."""
    return arguments_of([b"EVALSHA", wanted.sha, b"1", prefix.encode()])
