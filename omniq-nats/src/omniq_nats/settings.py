"""Where the servers are and how they are to be used: read from a storage URL, checked, and nothing opened yet."""

from __future__ import annotations

import re
import ssl
from typing import Any
from urllib.parse import unquote

from attrs import field, frozen

from omniq.storage import StorageConfig
from omniq_nats.names import Names

__all__ = ["Settings", "read_settings"]

OPTIONS = (
    "credentials",
    "domain",
    "nkey",
    "replicas",
    "storage",
    "timeout",
    "tls_ca",
    "tls_cert",
    "tls_hostname",
    "tls_key",
)
PORTS = {"nats": 4222, "tls": 4222, "ws": 80, "wss": 443}
_DOMAIN = re.compile(r"[^\s.*>]+")


@frozen(kw_only=True)
class Settings:
    """What the URL of a NATS store says."""

    names: Names
    servers: tuple[str, ...]
    shown: str
    """The URL as it may be shown."""
    login: dict[str, Any] = field(factory=dict, repr=False)
    """The arguments of the client's ``connect`` that say who we are."""
    encrypted: bool = False
    """Whether nothing may be said to a server that does not encrypt."""
    api: str = "$JS.API"
    replicas: int | None = None
    """None: one for a stream that is new, and as it is for one that is there."""
    storage: str | None = None
    """``file`` or ``memory``; None: file for a stream that is new."""
    timeout: float = 5.0
    """Seconds after which an operation gives up."""

    def __hash__(self) -> int:
        return hash((self.names, self.servers, self.api))

    @property
    def place(self) -> tuple[str, tuple[str, ...], str]:
        """What storages in one process share that are on the same namespace of the same servers."""
        return self.names.namespace, self.servers, self.api


def read_settings(config: StorageConfig) -> Settings:
    """Read a storage URL.

    :raises ValueError: if an option is unknown or cannot be used.
    """
    config.check_options(OPTIONS)
    rest = config.location.partition("://")[2]
    user, _, hosts = rest.rpartition("@")
    servers = tuple(_server(config, host) for host in hosts.rstrip("/").split(","))
    login = _login(config, user)
    return Settings(
        names=Names(config.namespace),
        servers=servers,
        shown=config.redacted,
        login=login,
        encrypted="tls" in login,
        api=_api(config),
        replicas=_replicas(config),
        storage=_storage(config),
        timeout=_timeout(config),
    )


def _server(config: StorageConfig, host: str) -> str:
    name, colon, port = host.rpartition(":")
    if host.endswith("]") or not colon:
        name, port = host, str(PORTS[config.scheme])
    if not name or not port.isdecimal() or "/" in host:
        raise ValueError(f"{config.redacted}: write {config.scheme}://host:port, or several with commas between them")
    return f"{config.scheme}://{name}:{port}"


def _login(config: StorageConfig, user: str) -> dict[str, Any]:
    login: dict[str, Any] = {}
    name, colon, password = user.partition(":")
    if colon:
        login.update(user=unquote(name), password=unquote(password))
    elif name:
        login["token"] = unquote(name)
    options = config.options
    if "credentials" in options:
        login["user_credentials"] = options["credentials"]
    if "nkey" in options:
        login["nkeys_seed"] = options["nkey"]
    if config.scheme in ("tls", "wss") or any(name.startswith("tls_") for name in options):
        login["tls"] = _tls(config)
    if "tls_hostname" in options:
        login["tls_hostname"] = options["tls_hostname"]
    return login


def _tls(config: StorageConfig) -> ssl.SSLContext:
    options = config.options
    if config.scheme == "ws":
        raise ValueError(f"{config.redacted}: ws:// does not encrypt, so that tls_ options are of no use; write wss://")
    if config.scheme == "wss" and "tls_hostname" in options:
        raise ValueError(f"{config.redacted}: tls_hostname is of no use with wss://, where the host's own name counts")
    if "tls_key" in options and "tls_cert" not in options:
        raise ValueError(f"{config.redacted}: tls_key is of no use without tls_cert")
    try:
        context = ssl.create_default_context(cafile=options.get("tls_ca"))
        if "tls_cert" in options:
            context.load_cert_chain(options["tls_cert"], options.get("tls_key"))
    except OSError as error:
        raise ValueError(f"{config.redacted}: the TLS files cannot be used: {error}") from error
    return context


def _api(config: StorageConfig) -> str:
    domain = config.options.get("domain")
    if domain is None:
        return "$JS.API"
    if not domain:
        raise ValueError(f"{config.redacted}: domain is the name of a JetStream domain")
    if not _DOMAIN.fullmatch(domain):
        raise ValueError(f"{config.redacted}: a domain's name has no blanks, dots, * or >, as {domain!r} has")
    return f"$JS.{domain}.API"


def _replicas(config: StorageConfig) -> int | None:
    text = config.options.get("replicas")
    if text is None:
        return None
    if text not in ("1", "3", "5"):
        raise ValueError(f"{config.redacted}: replicas is 1, 3 or 5, not {text!r}")
    return int(text)


def _storage(config: StorageConfig) -> str | None:
    text = config.options.get("storage")
    if text not in (None, "file", "memory"):
        raise ValueError(f"{config.redacted}: storage is file or memory, not {text!r}")
    return text


def _timeout(config: StorageConfig) -> float:
    text = config.options.get("timeout", "5")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 600:
        raise ValueError(f"{config.redacted}: timeout is a number of seconds from 0.1 to 600, not {text!r}")
    return seconds
