"""What ``omniq doctor`` says about a Redis store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

import hiredis

from omniq.errors import StorageUnavailable
from omniq.storage import Finding, Severity
from omniq.storage.escaping import get_logger
from omniq.storage.times import from_micros
from omniq_redis.client import LAYOUT, Client
from omniq_redis.errors import LOST, unavailable
from omniq_redis.times import LATEST

__all__ = ["diagnose", "warn"]

_log = get_logger("omniq.redis")

OLDEST = (6, 2)
"""The first version of Redis that has all the commands of the scripts."""
CLOCKS_APART = 1.0
"""Seconds between the clocks of server and client that are worth a word."""
NEARLY_FULL = 0.9

Info = Mapping[str, str]


async def diagnose(client: Client) -> list[Finding]:
    """See :meth:`~omniq.storage.Storage.diagnose`."""
    try:
        info = await _info(client)
        began = time.time()
        now = await client.run("now") / 1e6
        took = time.time() - began
        await client.check()  # of whatever type the key is that is read next, after that it is ours
        meta = _pairs(await client.ask(b"HGETALL", f"{client.settings.prefix}meta".encode()))
        settings = {name: await _setting(client, name) for name in ("save", "appendfsync")}
    except (*LOST, hiredis.ReplyError) as error:
        raise unavailable(client.settings, error) from error
    if not info:
        return [Finding.warning("server", "this user may not use INFO, so next to nothing can be told"), *_store(meta)]
    return [
        *_server(info),
        *_role(info),
        *_eviction(info),
        *_memory(info),
        *_persistence(info, settings),
        *_store(meta),
        *_clock(now - (began + took / 2), took),
    ]


async def warn(client: Client) -> None:
    """Log a warning if the server is set up so that it throws tasks away."""
    with suppress(*LOST, hiredis.ReplyError):
        for finding in _eviction(await _info(client, b"memory")):
            if finding.severity is not Severity.OK:
                _log.warning("%s: eviction policy %s", client.settings.shown, finding.message)


async def _info(client: Client, *sections: bytes) -> Info:
    try:
        text: bytes = await client.ask(b"INFO", *sections)
    except hiredis.ReplyError as error:
        if "NOPERM" in str(error):
            return {}
        raise
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


async def _setting(client: Client, name: str) -> str | None:
    """Return a setting of the server's; None where it does not tell, as those that are hired do not."""
    with suppress(hiredis.ReplyError, StorageUnavailable):
        return _pairs(await client.ask(b"CONFIG", b"GET", name.encode())).get(name)
    return None


def _pairs(flat: list[bytes]) -> dict[str, str]:
    texts = [text.decode(errors="replace") for text in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _server(info: Info) -> Iterator[Finding]:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "")
    mode = info.get("redis_mode") or info.get("server_mode") or "standalone"
    digits = tuple(int(part) for part in info.get("redis_version", "0").split(".")[:2] if part.isdecimal())
    if digits < OLDEST:
        yield Finding.error("server", f"{name} {version}: OmniQ needs 6.2 or later")
    else:
        yield Finding.ok("server", f"{name} {version}, {mode}")


def _role(info: Info) -> Iterator[Finding]:
    if info.get("role") == "master":
        replicas = info.get("connected_slaves", "0")
        yield Finding.ok("role", "master" + (f" of {replicas} replica(s)" if replicas != "0" else ""))
    else:
        yield Finding.error("role", "a replica, which cannot be written to: connect to its master, or through Sentinel")


def _eviction(info: Info) -> Iterator[Finding]:
    policy = info.get("maxmemory_policy", "")
    if policy == "noeviction":
        yield Finding.ok("eviction", "noeviction: a full server refuses new tasks and keeps those that it has")
    elif policy.startswith("volatile-"):
        yield Finding.ok(
            "eviction",
            f"{policy}: no task has an expiry by which the server would remove it, so a full server refuses new tasks "
            "and keeps those that it has",
        )
    elif policy:
        yield Finding.error(
            "eviction",
            f"{policy}: a full server throws tasks away; CONFIG SET maxmemory-policy noeviction (and in its file)",
        )


def _memory(info: Info) -> Iterator[Finding]:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        yield Finding.ok("memory", f"{_mib(used)} used, without a limit of the server's own (maxmemory)")
    elif used > NEARLY_FULL * limit:
        yield Finding.warning(
            "memory", f"{_mib(used)} of {_mib(limit)} used: new tasks will soon be refused; raise maxmemory, or prune"
        )
    else:
        yield Finding.ok("memory", f"{_mib(used)} of {_mib(limit)} used")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _persistence(info: Info, settings: Mapping[str, str | None]) -> Iterator[Finding]:
    for what in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(what, "ok") != "ok":
            yield Finding.error(
                "persistence", f"{what} is {info[what]}: the server could not write to its disk; see its log"
            )
    if info.get("aof_enabled") == "1":
        fsync = settings["appendfsync"]
        promise = {
            "always": "what was acknowledged survives the death of the server and of its machine",
            "everysec": "what was acknowledged survives the death of the server; that of its machine may cost a second",
            "no": "what was acknowledged survives the death of the server; that of its machine may cost half a minute",
        }.get(fsync or "", "see appendfsync for what a dead machine may cost")
        yield Finding.ok("persistence", f"append-only file, appendfsync {fsync or 'unknown'}: {promise}")
    elif settings["save"]:
        yield Finding.warning(
            "persistence",
            f"snapshots alone (save {settings['save']}): what came after the last one ends with the server; "
            "CONFIG SET appendonly yes (and in its file)",
        )
    elif settings["save"] is None:
        yield Finding.warning(
            "persistence", "no append-only file, and the server does not tell whether it takes snapshots"
        )
    else:
        yield Finding.warning(
            "persistence", "none: all tasks end with the server; CONFIG SET appendonly yes (and in its file)"
        )


def _store(meta: Mapping[str, str]) -> Iterator[Finding]:
    yield Finding.ok("layout", f"version {meta.get('layout', '?')}; this OmniQ writes version {LAYOUT}")
    lost_at = meta.get("lost_at", "")
    if lost_at.isdecimal():
        when = from_micros(min(int(lost_at[:19]), LATEST)).isoformat(timespec="seconds")
        yield Finding.warning(
            "data",
            f"on {when} what the server had held was gone: those tasks are lost; "
            "repair its persistence or find what emptied it, then HDEL the fields lost and lost_at of the key meta",
        )


def _clock(difference: float, uncertain: float) -> Iterator[Finding]:
    if abs(difference) > CLOCKS_APART + uncertain:
        way = "ahead of" if difference > 0 else "behind"
        yield Finding.warning(
            "clock",
            f"the server's is {abs(difference):,.1f} s {way} this machine's; the server's decides when tasks run",
        )
    else:
        yield Finding.ok("clock", "the server's and this machine's agree")
