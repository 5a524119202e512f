"""Where a Redis store is and how it is to be used: read from a storage URL, checked, and nothing opened yet."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from omniq.errors import ConfigurationError
from omniq.storage import StorageConfig

__all__ = ["SCHEMES", "Address", "Settings", "read_settings"]

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")

PORT, SENTINEL_PORT = 6379, 26379
OPTIONS = (
    "client_name",
    "connect_timeout",
    "db",
    "password",
    "pool_size",
    "pool_timeout",
    "retry_for",
    "sentinel_password",
    "sentinel_username",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
    "timeout",
    "username",
)

SHORTEST = 0.001
"""Seconds."""

Address = tuple[str, int]
"""Host and port."""


@frozen(kw_only=True)
class Settings:
    """What the URL of a Redis store says."""

    shown: str
    """The URL as it may be shown."""
    prefix: str
    """What the names of all keys and channels begin with. The braces put all keys into one slot of a Cluster."""
    addresses: tuple[Address, ...] = ()
    """Of the server, of the sentinels, or of some nodes of the cluster."""
    path: str | None = None
    """Of the server's Unix socket."""
    kind: str = "server"
    """``server``, ``sentinel`` or ``cluster``."""
    master: str = ""
    """The name by which the sentinels know the master."""
    connection: Mapping[str, Any] = field(factory=dict, repr=False)
    """Arguments for redis-py's connections."""
    sentinel: Mapping[str, Any] = field(factory=dict, repr=False)
    """Arguments for redis-py's connections to sentinels."""
    tls: bool = False
    timeout: float = 5.0
    """Seconds after which an answer that has not come is given up."""
    connect_timeout: float = 5.0
    retry_for: float = 10.0
    """Seconds for which a call goes on trying while the server cannot be reached or does not serve."""
    pool_size: int = 16
    """How many threads can enqueue at once without an event loop."""
    pool_timeout: float = 5.0
    """Seconds that one more waits for its turn."""


def read_settings(config: StorageConfig, extra: Mapping[str, Any] | None = None) -> Settings:
    """Read a storage's configuration.

    :param extra: more arguments for redis-py's connections, such as ``credential_provider``.
    :raises ConfigurationError: if the URL names no server, or an option has a value that cannot be used.
    :raises ValueError: if there is an unknown option.
    """
    config.check_options(OPTIONS)
    scheme, _, kind = config.scheme.partition("+")
    shown = config.redacted or config.scheme
    try:
        parts = urlsplit(config.location)
    except ValueError:
        # Not shown, as its text may hold the password.
        raise ConfigurationError(f"{shown}: cannot be read as a URL") from None
    user, _, place = parts.netloc.rpartition("@")
    steps = [] if scheme == "unix" else [unquote(step) for step in parts.path.split("/") if step]
    master = steps.pop(0) if kind == "sentinel" and steps else ""
    if kind == "sentinel" and not master:
        raise ConfigurationError(f"{shown}: name the master: redis+sentinel://host1:26379,host2:26379/mymaster/0")
    database = _database(config, steps, shown)
    if kind == "cluster" and database:
        raise ConfigurationError(f"{shown}: a cluster has database 0 alone; take namespaces to keep applications apart")
    options = config.options
    name, _, password = user.partition(":")
    credentials = {
        "username": unquote(name) or options.get("username"),
        "password": unquote(password) or options.get("password"),
    }
    path = None
    if scheme == "unix":
        path = unquote(parts.path)
        if not path or place:
            raise ConfigurationError(f"{shown}: a socket is named after three slashes: unix:///run/redis/redis.sock")
    tls = scheme == "rediss"
    encryption = _tls(config, tls)
    common = {"client_name": options.get("client_name"), **encryption}
    return Settings(
        shown=shown,
        prefix=f"{{{config.namespace}}}:",
        addresses=() if path else _addresses(place, SENTINEL_PORT if kind == "sentinel" else PORT, shown),
        path=path,
        kind=kind or "server",
        master=master,
        connection={**common, **credentials, "db": database, **(extra or {})},
        sentinel={
            **encryption,
            "username": options.get("sentinel_username"),
            "password": options.get("sentinel_password"),
        },
        tls=tls,
        timeout=config.number("timeout", 5, SHORTEST, 3600),
        connect_timeout=config.number("connect_timeout", 5, SHORTEST, 3600),
        retry_for=config.number("retry_for", 10, SHORTEST, 3600),
        pool_size=config.count("pool_size", 16, 10_000),
        pool_timeout=config.number("pool_timeout", 5, SHORTEST, 3600),
    )


def _addresses(place: str, default: int, shown: str) -> tuple[Address, ...]:
    addresses: list[Address] = []
    for text in place.split(","):
        try:
            parts = urlsplit(f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigurationError(f"{shown}: {text!r} is not a host and a port") from None
        addresses.append((unquote(host or "localhost"), default if port is None else port))
    return tuple(addresses)


def _database(config: StorageConfig, steps: list[str], shown: str) -> int:
    if len(steps) > 1:
        raise ConfigurationError(f"{shown}: after the host comes the number of a database, and nothing else")
    if steps and "db" in config.options:
        raise ConfigurationError(f"{shown}: the database is named twice, in the path and by the option db")
    number = steps[0] if steps else config.options.get("db", "0")
    if not (number.isascii() and number.isdecimal()):
        raise ConfigurationError(f"{shown}: the database must be a number such as 0, not {number!r}")
    return int(number)


def _tls(config: StorageConfig, encrypts: bool) -> dict[str, Any]:
    options = config.options
    if not encrypts:
        given = [option for option in options if option.startswith("ssl_")]
        if given:
            raise ConfigurationError(
                f"{config.redacted}: {given[0]} is for rediss://, which encrypts; {config.scheme}:// does not"
            )
        return {}
    requirement = config.choice("ssl_cert_reqs", ("required", "optional", "none"))
    checks = ("true", "false") if requirement == "required" else ("false", "true")
    return {
        "ssl_cert_reqs": {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}[
            requirement
        ],
        "ssl_check_hostname": config.choice("ssl_check_hostname", checks) == "true",
        "ssl_ca_certs": options.get("ssl_ca_certs"),
        "ssl_certfile": options.get("ssl_certfile"),
        "ssl_keyfile": options.get("ssl_keyfile"),
    }
