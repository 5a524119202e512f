"""Where a PostgreSQL store is and how it is to be used: read from a storage URL, checked, and nothing opened yet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import psycopg
from attrs import field, frozen
from psycopg.conninfo import conninfo_to_dict

from omniq.errors import ConfigurationError
from omniq.storage import StorageConfig

__all__ = ["IDLE_IN_TRANSACTION", "INDEXES", "TABLES", "Names", "Pooler", "Settings", "read_settings"]

OWN_OPTIONS = ("connections", "migrate", "pooler", "schema", "timeout")
LIBPQ_OPTIONS = (
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "gssencmode",
    "gsslib",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "options",
    "passfile",
    "password",
    "port",
    "require_auth",
    "requirepeer",
    "service",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
)
"""What libpq itself understands in a connection's URL."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$-]{0,62}")
TABLES = (
    *("task", "live", "ended", "flow", "gate", "delta", "counter", "paused"),
    *("worker", "schedule", "revision", "migration"),
    *("limits", "lane", "line", "bucket", "wake"),
)
INDEXES = (
    *(
        "ready",
        "scheduled",
        "running",
        "expiry",
        "key",
        "blocked",
        "waiting",
        "seq",
        "tagged",
        "history",
        "retention",
        "gone",
    ),
    *("uncounted", "flow_due", "flow_key", "due"),
    *("lined", "key_slots", "name_slots", "place", "named_place", "limit_key", "rest"),
)
FUNCTIONS = ("enqueue", "enqueue_store", "enqueue_number", "enqueue_text", "enqueue_time")
_LONGEST_TIMEOUT = 3600.0
IDLE_IN_TRANSACTION = 5000
"""Milliseconds after which the server ends a connection of ours that stands still within a transaction."""


class Pooler:
    """What stands between us and the server."""

    AUTO = "auto"
    """Found out on the first connection."""
    NONE = "none"
    """Nothing, or a proxy that gives a server connection for as long as ours lasts."""
    TRANSACTION = "transaction"
    """A proxy that gives a server connection for one transaction: no LISTEN, no prepared statements."""


@frozen
class Names:
    """What the tables of a namespace are called."""

    schema: str
    namespace: str

    def plain(self, word: str) -> str:
        """Return the name of one thing in the namespace, without its schema and as it is."""
        return f"{self.namespace}_{word}"

    def quoted(self, word: str) -> str:
        """Return the same as a statement has it."""
        return f'"{self.plain(word)}"'

    def of_all(self) -> dict[str, str]:
        """Return what stands in the place of each word of a statement: names of tables and so on, and the mark."""
        names = {word: self.relation(word) for word in (*TABLES, "order", *FUNCTIONS)}
        names |= {f"{word}_index": self.quoted(word) for word in INDEXES}
        return names | {"schema": f'"{self.schema}"', "mark": self.mark, "limit_lock": str(int(self.mark[:15], 16))}

    def relation(self, word: str) -> str:
        """Return the text that PostgreSQL finds a table by (``regclass``)."""
        return f'"{self.schema}".{self.quoted(word)}'

    @property
    def mark(self) -> str:
        """A short text that stands for this schema and namespace: in names of channels and for locks."""
        return hashlib.sha256(f"{self.schema}\0{self.namespace}".encode()).hexdigest()[:20]

    @property
    def lock(self) -> int:
        """The advisory lock under which the tables of a schema are changed."""
        return int(hashlib.sha256(f"omniq {self.schema}".encode()).hexdigest()[:15], 16)


@frozen(kw_only=True)
class Settings:
    """What the URL of a PostgreSQL store says."""

    names: Names
    shown: str
    """The URL as it may be shown."""
    dsn: str = field(repr=False)
    """The connection string, as libpq takes it."""
    lone_user: str = field(default="", repr=False)
    """A user without a password: it may be a password whose colon was forgotten, and is shown as little as one."""
    parameters: dict[str, Any] = field(factory=dict, repr=False)
    """The connection's parameters: those of the URL's query, and ours where the URL names none."""
    migrate: bool = True
    """Whether the first use applies the migrations that are missing."""
    pooler: str = Pooler.AUTO
    connections: int = 4
    """How many connections a storage opens at most, besides one that listens and one for each blocking caller."""
    timeout: float = 20.0
    """Seconds after which a call gives up."""


def read_settings(config: StorageConfig) -> Settings:
    """Read a storage's configuration.

    :raises ConfigurationError: if an option has a value that cannot be used.
    :raises ValueError: if there is an unknown option.
    """
    config.check_options([*OWN_OPTIONS, *LIBPQ_OPTIONS])
    options = config.options
    schema = options.get("schema", "omniq")
    if not _IDENTIFIER.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigurationError(
            f"{config.redacted}: schema {schema!r} cannot be used: take 1 to 63 letters, digits, _, - and $, "
            "and not a name that begins with pg_"
        )
    timeout = config.number("timeout", 20.0, 0.1, _LONGEST_TIMEOUT)
    parameters = {
        "application_name": "omniq",
        "connect_timeout": str(max(2, min(10, int(timeout)))),
        # A connection that died silently is noticed within a minute rather than after two hours.
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": str(int(timeout * 1000)),
        **{name: value for name, value in options.items() if name in LIBPQ_OPTIONS},
    }
    dsn, lone_user = _dsn(config, parameters)
    return Settings(
        names=Names(schema, config.namespace),
        shown=config.redacted or config.scheme + "://",
        dsn=dsn,
        lone_user=lone_user,
        parameters=parameters,
        migrate=config.choice("migrate", ("auto", "off")) == "auto",
        pooler=config.choice("pooler", (Pooler.AUTO, Pooler.NONE, Pooler.TRANSACTION)),
        connections=config.count("connections", 4, 100),
        timeout=timeout,
    )


def _dsn(config: StorageConfig, parameters: Mapping[str, Any]) -> tuple[str, str]:
    # libpq knows its schemes in lower case only, and no driver's name behind them.
    dsn = config.scheme.partition("+")[0] + config.location[config.location.index("://") :]
    try:
        has_password = "password" in conninfo_to_dict(dsn, **parameters)
        user = str(conninfo_to_dict(dsn).get("user", ""))
    except psycopg.ProgrammingError:
        # What it says may hold the password.
        raise ConfigurationError(
            f"{config.redacted} cannot be read: write postgresql://user:password@host:port/database, with special "
            "characters as %40 and so on"
        ) from None
    return dsn, "" if has_password else user
