"""A look into a peer's tables on PostgreSQL."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["count", "is_there"]


def count(url: str, what: str) -> int:
    """Return how many rows there are.

    :param what: what stands behind FROM.
    """
    return int(_first(url, f"SELECT count(*) FROM {what}"))


def is_there(url: str, table: str) -> bool:
    """Say whether a table exists."""
    return _first(url, f"SELECT to_regclass('{table}')") is not None


def _first(url: str, statement: str) -> Any:
    psycopg: Any = importlib.import_module("psycopg")
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchone()[0]
