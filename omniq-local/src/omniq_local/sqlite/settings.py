"""Where an SQLite store is and how it is to be used: read from a storage URL, checked, and nothing opened yet."""

from __future__ import annotations

import os
import re

from attrs import frozen

from omniq.errors import ConfigurationError
from omniq.storage import StorageConfig
from omniq_local.paths import PRIVATE, file_mode, path_meant

__all__ = ["Settings", "read_settings", "table_prefix"]

OPTIONS = ("busy_timeout", "foreign", "mode", "synchronous")

_MARKED = re.compile(r"\^(.)")
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]+")


@frozen(kw_only=True)
class Settings:
    """What the URL of an SQLite store says."""

    path: str
    """The database file, absolute: a later change of the working folder does not lead to another file."""
    prefix: str
    """What the names of the namespace's tables begin with."""
    shown: str
    """The URL as it may be shown."""
    synchronous: str = "NORMAL"
    """NORMAL: a commit survives the death of every process; FULL: that of the machine, too, at the price of a flush."""
    busy_timeout: float = 5.0
    """Seconds to wait for other processes that write to the file."""
    foreign: bool = False
    """Whether tables may be created in a database that belongs to another program."""
    mode: int = PRIVATE
    """The permissions of a file that is made."""

    @property
    def folder(self) -> str:
        """The folder that the file is in."""
        return os.path.dirname(self.path)

    @property
    def inline(self) -> bool:
        """Whether a commit is so quick (it flushes nothing) that it may be done on an event loop's thread."""
        return self.synchronous == "NORMAL"


def table_prefix(namespace: str) -> str:
    """Return the prefix of a namespace's tables.

    SQLite takes no notice of case in names, and keeps those that begin with ``sqlite_`` to itself; namespaces know
    neither rule. ``^`` marks a capital letter, and cannot be in a namespace.

    :raises ConfigurationError: if the namespace holds anything but letters, digits, ``_`` and ``-``.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise ConfigurationError(
            f"namespace {namespace!r} cannot be used: take letters, digits, hyphens and underscores"
        )
    marked = "".join(f"^{letter.lower()}" if letter.isupper() else letter for letter in namespace)
    return f"^^{marked}" if marked.startswith("sqlite_") else marked


def namespace_of(prefix: str) -> str:
    """Return the namespace whose tables have this prefix; see :func:`table_prefix`."""
    return _MARKED.sub(lambda found: found[1].upper(), prefix.removeprefix("^^"))


def read_settings(config: StorageConfig) -> Settings:
    """Read a storage's configuration.

    :raises ConfigurationError: if the URL names no file, or an option has a value that cannot be used.
    :raises ValueError: if there is an unknown option.
    """
    config.check_options(OPTIONS)
    return Settings(
        path=_path(config),
        prefix=table_prefix(config.namespace),
        shown=config.redacted or config.location,
        synchronous=config.choice("synchronous", ("normal", "full")).upper(),
        busy_timeout=config.number("busy_timeout", 5, 0, 3600),
        foreign=config.choice("foreign", ("refuse", "allow")) == "allow",
        mode=file_mode(config),
    )


def _path(config: StorageConfig) -> str:
    shown = config.redacted or config.location
    authority, slash, given = config.location.partition("://")[2].partition("/")
    if authority:
        raise ConfigurationError(f"{shown}: a file is named after three slashes: sqlite:///{authority}{slash}{given}")
    path = path_meant(given, shown)
    if not path or path.endswith("/"):
        raise ConfigurationError(f"{shown} names no file; write sqlite:///jobs.db, or sqlite:////var/lib/shop/jobs.db")
    if path == ":memory:":
        raise ConfigurationError(
            f"{shown}: an SQLite database in memory cannot be shared between threads and processes; "
            "take memory:// for tasks that need not outlive the process"
        )
    if "\0" in path:
        raise ConfigurationError(f"{shown}: a file's name cannot hold a NUL character")
    return os.path.abspath(path)
