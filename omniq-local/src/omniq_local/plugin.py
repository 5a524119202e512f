"""What this distribution brings to OmniQ, by name only: a storage's module is imported when its scheme is opened."""

from __future__ import annotations

from collections.abc import Mapping

from omniq.hookspecs import hookimpl

__all__ = ["omniq_storages"]


@hookimpl
def omniq_storages() -> Mapping[str, str]:
    """Return the URL schemes of this distribution."""
    return {
        "file": "omniq_local.files:FileStorage",
        "memory": "omniq_local.memory.storage:MemoryStorage",
        "sqlite": "omniq_local.sqlite:SQLiteStorage",
    }
