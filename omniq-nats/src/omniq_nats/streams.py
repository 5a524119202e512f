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
from omniq.storage.escaping import get_logger
from omniq_nats.messages import Full, Life
from omniq_nats.settings import Settings
from omniq_nats.times import Clock, read_stamp
from omniq_nats.transport import NOT_FOUND, Conflict, Lost, Transport, Write

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
    """Return the configuration of a stream.

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
    """Return in what a stream's configuration is not as wanted: name → (what is, what should be)."""
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


async def prepare(transport: Transport, clock: Clock) -> None:
    """Make the stream, or check it; learn the servers' time.

    :raises ConfigurationError: if the servers are too old, or cannot do what the URL asks for.
    :raises SchemaMismatch: if another version of OmniQ made the stream, or another program.
    :raises StorageUnavailable: if JetStream does not answer.
    """
    settings = transport.settings
    deadline = time.monotonic() + 3 * settings.timeout
    while True:
        answer = await _timed(transport, clock)
        error = answer.get("error")
        if error is None:
            await _check(transport, answer["config"])
            break
        if error.get("err_code") != NOT_FOUND:
            raise StorageUnavailable(f"{settings.shown}: JetStream cannot be used: {error.get('description')}")
        await _check_level(transport)
        await _create(transport)
        if time.monotonic() > deadline:
            raise StorageUnavailable(f"{settings.shown}: stream {settings.names.stream} does not come into being")
    beacon = f"{settings.names.root}.w.{BEACON}"
    if answer["config"].get("num_replicas", 1) > 1:
        transport.beacon = beacon
    transport.life = Life(read_stamp(answer["created"]), await _first(transport, beacon, deadline))
    transport.last_seen = max(transport.last_seen, int(answer["state"]["last_seq"]))
    await transport.keep_reserve()


async def _first(transport: Transport, beacon: str, deadline: float) -> int | None:
    """Return the sequence of the message that a stream has for as long as it lives; store it if it is not there."""
    while True:
        (seq,) = await transport.ends([beacon])
        if seq:
            return seq
        try:
            return await transport.publish(Write(beacon, b'["", 0, 0]', expected=0))
        except (Conflict, Lost):
            if time.monotonic() > deadline:
                raise StorageUnavailable(
                    f"{transport.settings.shown}: stream {transport.settings.names.stream} is not to be had"
                ) from None
        except Full:
            return None  # what takes no room is to go on


async def _see_to(transport: Transport, clock: Clock, answer: dict[str, Any]) -> None:
    """Begin anew if the stream is not the one that it was.

    :param answer: what the servers said of it.
    """
    life, error = transport.life, answer.get("error")
    if life is None:
        return  # another call does it already
    if error is None and not life.has_ended(answer):
        return
    if error is not None and error.get("err_code") != NOT_FOUND:
        return
    settings = transport.settings
    if transport.mourned is not life:
        transport.mourned = life
        same = error is None and read_stamp(answer["created"]) == life.created
        what = "is gone" if error is not None else "was emptied" if same else "was replaced by another one"
        _log.error(
            "%s: stream %s %s: the tasks, results and schedules that it held are lost; going on with %s",
            settings.shown,
            settings.names.stream,
            what,
            "a new one" if error is not None else "it as it is",
        )
    transport.life = None
    transport.begin_anew()
    try:
        await prepare(transport, clock)
    finally:
        if transport.life is None:
            transport.life = life  # the next look tries again
    for again in transport.reborn:
        again()


async def look_at_clock(transport: Transport, clock: Clock) -> None:
    """Ask the servers for their time, if that is due."""
    if clock.is_stale or transport.looked_by != transport.generation:
        await look(transport, clock)


async def look(transport: Transport, clock: Clock) -> dict[str, Any]:
    """Look whether the stream is still the one that it was; return what the servers say of it."""
    transport.looked_by = transport.generation
    answer = await _timed(transport, clock)
    await _see_to(transport, clock, answer)
    return answer


async def end_of(transport: Transport, clock: Clock) -> int:
    """Ask the servers for the sequence of the stream's latest message, and with it for their time."""
    answer = await look(transport, clock)
    if "error" in answer:
        raise StorageUnavailable(
            f"{transport.settings.shown}: stream {transport.settings.names.stream} cannot be used: "
            f"{answer['error'].get('description')}"
        )
    return int(answer["state"]["last_seq"])


async def _timed(transport: Transport, clock: Clock) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    # A quick answer tells the time best. It is asked for again only where the time is due: each idle look would else be
    # three, wherever a round trip takes two milliseconds.
    for _ in range(3 if clock.is_stale else 1):
        sent = time.monotonic()
        answer = await transport.ask(f"STREAM.INFO.{transport.settings.names.stream}")
        received = time.monotonic()
        if "ts" in answer:
            clock.learn(sent, received, read_stamp(answer["ts"]))
        if received - sent < 0.002 or "ts" not in answer:
            break
    return answer


async def _check_level(transport: Transport) -> None:
    settings = transport.settings
    answer = await transport.ask("INFO")
    if "error" in answer:
        raise StorageUnavailable(
            f"{settings.shown}: JetStream cannot be used by this account: {answer['error'].get('description')}"
        )
    level = answer.get("api", {}).get("level", 0)
    if level < API_LEVEL:
        version = transport.client.connected_server_version
        raise ConfigurationError(
            f"{settings.shown}: nats-server {version.major}.{version.minor}.{version.patch} has JetStream API level "
            f"{level}, and OmniQ needs {API_LEVEL}: update it to 2.12 or later"
        )


async def _create(transport: Transport) -> None:
    settings = transport.settings
    stream = settings.names.stream
    answer = await transport.ask(f"STREAM.CREATE.{stream}", wanted_config(settings))
    error = answer.get("error")
    if error is None:
        return
    code, description = error.get("err_code"), error.get("description")
    if code == NAME_IN_USE:
        return  # another process was quicker, and it is looked at next
    if code in INSUFFICIENT or "replicas" in (description or ""):
        raise ConfigurationError(
            f"{settings.shown}: the servers cannot keep {settings.replicas or 1} replicas: {description}"
        )
    if error.get("code") == 503:
        await asyncio.sleep(random.uniform(0.05, 0.2))
        return
    raise StorageUnavailable(f"{settings.shown}: stream {stream} could not be made: {description}")


async def _check(transport: Transport, config: dict[str, Any]) -> None:
    settings = transport.settings
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
    answer = await transport.ask(f"STREAM.UPDATE.{stream}", {**config, **wanted_config(settings, config)})
    if "error" in answer:
        told = json.dumps({name: is_now for name, (is_now, _) in different.items()}, default=str)
        raise StorageUnavailable(
            f"{settings.shown}: stream {stream} is not as it should be ({told}) and could not be changed: "
            f"{answer['error'].get('description')}"
        )
