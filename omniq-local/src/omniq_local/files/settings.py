"""Where a file store is and how it is to be used: read from a storage URL, checked, and nothing opened yet."""

from __future__ import annotations

import os

from attrs import frozen

from omniq.errors import ConfigurationError
from omniq.storage import StorageConfig
from omniq_local.paths import PRIVATE, file_mode, path_meant

__all__ = ["Settings", "read_settings"]

OPTIONS = ("fsync", "lock_timeout", "mode")


@frozen(kw_only=True)
class Settings:
    """What the URL of a file store says."""

    root: str
    """The folder that is the store, absolute."""
    base: str
    """The folder of the namespace in it."""
    shown: str
    """The URL as it may be shown."""
    durable: bool = False
    """Whether each change is flushed to the disk before it is acknowledged."""
    lock_timeout: float = 5.0
    """Seconds to wait for other processes that use the store."""
    mode: int = PRIVATE
    """The permissions of files."""


def read_settings(config: StorageConfig) -> Settings:
    """Read a storage's configuration.

    :raises ConfigurationError: if the URL names no absolute folder, or an option has a value that cannot be used.
    :raises ValueError: if there is an unknown option.
    """
    config.check_options(OPTIONS)
    root = _root(config)
    return Settings(
        root=root,
        base=os.path.join(root, config.namespace),
        shown=config.redacted or config.location,
        durable=config.choice("fsync", ("never", "always")) == "always",
        lock_timeout=config.number("lock_timeout", 5, 0, 3600),
        mode=file_mode(config),
    )


def _root(config: StorageConfig) -> str:
    shown = config.redacted or config.location
    authority, slash, given = config.location.partition("://")[2].partition("/")
    if authority:
        raise ConfigurationError(
            f"{shown}: name the folder by its absolute path, after three slashes: file:///var/lib/shop/jobs"
            f" (not {authority + slash + given!r})"
        )
    path = path_meant("/" + given.strip("/"), shown)
    if not path.strip("/"):
        raise ConfigurationError(f"{shown} names no folder; write file:///var/lib/shop/jobs")
    if "\0" in path:
        raise ConfigurationError(f"{shown}: a folder's name cannot hold a NUL character")
    return os.path.normpath("/" + path.strip("/"))
