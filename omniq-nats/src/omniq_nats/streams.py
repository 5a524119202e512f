"""The stream of a namespace: made if it is not there, and checked if it is.

While a process uses it, it may be removed, emptied, or replaced by another one; one in memory ends with its
server. Whatever was known of it is wrong then. It is noticed by the stream's :class:`Life`, whenever the servers are
asked for the stream's state.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

from omniq.errors import ConfigurationError, SchemaMismatch, StorageUnavailable
from omniq.escaping import get_logger
from omniq_nats.link import NOT_FOUND, Conflict, Link, Lost, Write
from omniq_nats.messages import Full, Life
from omniq_nats.settings import Settings
from omniq_nats.times import Clock, read_stamp

__all__ = ["API_LEVEL", "differences", "prepare", "wanted_config"]

_log = get_logger("omniq.nats")

API_LEVEL = 2
"""Of JetStream: that of server 2.12, the first with atomic batches."""
SCHEMA = "3"
SCHEMA_KEY = "omniq.schema"
NAME_IN_USE = 10058
INSUFFICIENT = (10005, 10074)
BEACON = "="


def wanted_config(settings: Settings, found: dict[str, Any] | None = None) -> dict[str, Any]:
    """Give the configuration of a stream.

    :param found: as it is, if there is one: what the URL says nothing about stays so.
    """
    known = found or {}
    return {
        "name": settings.names.stream,
        "subjects": settings.names.subjects,
        "retention": "limits",
        "max_msgs_per_subject": 1,
        "discard": "new",
        "storage": settings.storage or known.get("storage", "file"),
        "num_replicas": settings.replicas or known.get("num_replicas", 1),
        "allow_direct": True,
        "allow_atomic": True,
        "allow_msg_ttl": True,
        "republish": dict(zip(("src", "dest"), settings.names.republished, strict=True)),
        "deny_delete": False,
        "deny_purge": False,
        "metadata": {**known.get("metadata", {}), SCHEMA_KEY: SCHEMA},
    }


def differences(found: dict[str, Any], settings: Settings) -> dict[str, tuple[Any, Any]]:
    """Give in what a stream's configuration is not as wanted: name → (what is, what should be)."""
    wanted = wanted_config(settings, found)
    different = {}
    for name, value in wanted.items():
        there = found.get(name)
        if name == "subjects":
            if sorted(there or ()) != sorted(value):
                different[name] = (there, value)
        elif name == "metadata":
            if (there or {}).get(SCHEMA_KEY) != SCHEMA:
                different[name] = (there, value)
        elif (there or False) != (value or False):
            different[name] = (there, value)
    return different


async def prepare(link: Link, clock: Clock) -> None:
    """Make the stream, or check it; learn the servers' time.

    :raises ConfigurationError: if the servers are too old, or cannot do what the URL asks for.
    :raises SchemaMismatch: if another version of OmniQ made the stream, or somebody else.
    :raises StorageUnavailable: if JetStream does not answer.
    """
    settings = link.settings
    deadline = time.monotonic() + 3 * settings.timeout
    while True:
        answer = await _timed(link, clock)
        error = answer.get("error")
        if error is None:
            await _check(link, answer["config"])
            break
        if error.get("err_code") != NOT_FOUND:
            raise StorageUnavailable(f"{settings.shown}: JetStream cannot be used: {error.get('description')}")
        await _check_level(link)
        await _create(link)
        if time.monotonic() > deadline:
            raise StorageUnavailable(f"{settings.shown}: stream {settings.names.stream} does not come into being")
    beacon = f"{settings.names.root}.w.{BEACON}"
    if answer["config"].get("num_replicas", 1) > 1:
        link.beacon = beacon
    link.life = Life(read_stamp(answer["created"]), await _first(link, beacon, deadline))
    link.last_seen = max(link.last_seen, int(answer["state"]["last_seq"]))
    await link.keep_reserve()


async def _first(link: Link, beacon: str, deadline: float) -> int | None:
    """Return the sequence of the message that a stream has for as long as it lives; store it if it is not there."""
    while True:
        (seq,) = await link.ends([beacon])
        if seq:
            return seq
        try:
            return await link.publish(Write(beacon, b'["", 0, 0]', expected=0))
        except (Conflict, Lost):
            if time.monotonic() > deadline:
                raise StorageUnavailable(
                    f"{link.settings.shown}: stream {link.settings.names.stream} is not to be had"
                ) from None
        except Full:
            return None  # what takes no room is to go on


async def _see_to(link: Link, clock: Clock, answer: dict[str, Any]) -> None:
    """Begin anew if the stream is not the one that it was.

    :param answer: what the servers said of it.
    """
    life, error = link.life, answer.get("error")
    if life is None:
        return  # another call does it already
    if error is None and not life.has_ended(answer):
        return
    if error is not None and error.get("err_code") != NOT_FOUND:
        return
    settings = link.settings
    if link.mourned is not life:
        link.mourned = life
        same = error is None and read_stamp(answer["created"]) == life.created
        what = "is gone" if error is not None else "was emptied" if same else "was replaced by another one"
        _log.error(
            "%s: stream %s %s: the tasks, results and schedules that it held are lost; going on with %s",
            settings.shown,
            settings.names.stream,
            what,
            "a new one" if error is not None else "it as it is",
        )
    link.life = None
    link.begin_anew()
    try:
        await prepare(link, clock)
    finally:
        if link.life is None:
            link.life = life  # the next look tries again
    for again in link.reborn:
        again()


async def look_at_clock(link: Link, clock: Clock) -> None:
    """Ask the servers for their time, if that is due."""
    if clock.is_stale or link.looked_by != link.generation:
        await look(link, clock)


async def look(link: Link, clock: Clock) -> dict[str, Any]:
    """Look whether the stream is still the one that it was; return what the servers say of it."""
    link.looked_by = link.generation
    answer = await _timed(link, clock)
    await _see_to(link, clock, answer)
    return answer


async def end_of(link: Link, clock: Clock) -> int:
    """Ask the servers for the sequence of the stream's latest message, and with it for their time."""
    answer = await look(link, clock)
    if "error" in answer:
        raise StorageUnavailable(
            f"{link.settings.shown}: stream {link.settings.names.stream} cannot be used: "
            f"{answer['error'].get('description')}"
        )
    return int(answer["state"]["last_seq"])


async def _timed(link: Link, clock: Clock) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for _ in range(3):
        sent = time.monotonic()
        answer = await link.ask(f"STREAM.INFO.{link.settings.names.stream}")
        received = time.monotonic()
        if "ts" in answer:
            clock.learn(sent, received, read_stamp(answer["ts"]))
        if received - sent < 0.002 or "ts" not in answer:
            break
    return answer


async def _check_level(link: Link) -> None:
    settings = link.settings
    answer = await link.ask("INFO")
    if "error" in answer:
        raise StorageUnavailable(
            f"{settings.shown}: JetStream cannot be used by this account: {answer['error'].get('description')}"
        )
    level = answer.get("api", {}).get("level", 0)
    if level < API_LEVEL:
        version = link.client.connected_server_version
        raise ConfigurationError(
            f"{settings.shown}: nats-server {version.major}.{version.minor}.{version.patch} has JetStream API level "
            f"{level}, and OmniQ needs {API_LEVEL}: update it to 2.12 or later"
        )


async def _create(link: Link) -> None:
    settings = link.settings
    stream = settings.names.stream
    answer = await link.ask(f"STREAM.CREATE.{stream}", wanted_config(settings))
    error = answer.get("error")
    if error is None:
        return
    code, description = error.get("err_code"), error.get("description")
    if code == NAME_IN_USE:
        return  # somebody else was quicker, and it is looked at next
    if code in INSUFFICIENT or "replicas" in (description or ""):
        raise ConfigurationError(
            f"{settings.shown}: the servers cannot keep {settings.replicas or 1} replicas: {description}"
        )
    if error.get("code") == 503:
        await asyncio.sleep(random.uniform(0.05, 0.2))
        return
    raise StorageUnavailable(f"{settings.shown}: stream {stream} could not be made: {description}")


async def _check(link: Link, config: dict[str, Any]) -> None:
    settings = link.settings
    stream = settings.names.stream
    schema = config.get("metadata", {}).get(SCHEMA_KEY)
    if schema is None:
        raise SchemaMismatch(
            f"{settings.shown}: stream {stream} was not made by OmniQ; take another namespace, or remove it"
        )
    if schema != SCHEMA:
        raise SchemaMismatch(
            f"{settings.shown}: stream {stream} was made by another version of omniq-nats (its schema is {schema}, "
            f"this one knows {SCHEMA}): update omniq-nats everywhere"
        )
    different = differences(config, settings)
    if not different:
        return
    if "storage" in different:
        raise ConfigurationError(
            f"{settings.shown}: stream {stream} has storage {config['storage']!r}, which cannot be changed; "
            "leave the option out, or take another namespace"
        )
    answer = await link.ask(f"STREAM.UPDATE.{stream}", {**config, **wanted_config(settings, config)})
    if "error" in answer:
        told = json.dumps({name: is_now for name, (is_now, _) in different.items()}, default=str)
        raise StorageUnavailable(
            f"{settings.shown}: stream {stream} is not as it should be ({told}) and could not be changed: "
            f"{answer['error'].get('description')}"
        )
