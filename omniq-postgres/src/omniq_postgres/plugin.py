"""What this distribution brings to OmniQ, by name only: the storage's module is imported when its scheme is opened."""

from __future__ import annotations

from collections.abc import Mapping

from omniq.hookspecs import hookimpl

__all__ = ["omniq_storages"]


@hookimpl
def omniq_storages() -> Mapping[str, str]:
    """Return the URL schemes of this distribution."""
    return {
        "postgres": "omniq_postgres.storage:PostgresStorage",
        "postgresql": "omniq_postgres.storage:PostgresStorage",
        "postgresql+psycopg": "omniq_postgres.storage:PostgresStorage",  # as SQLAlchemy writes it
    }
