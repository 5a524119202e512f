"""Connections of Django for tests, without a Django project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django  # type: ignore[import-untyped]  # it brings no types
from django.conf import settings as django_settings  # type: ignore[import-untyped]  # the same
from django.db import connections  # type: ignore[import-untyped]  # the same

__all__ = ["ALIAS", "connection_to"]

ALIAS = "shop"
"""By this name ``transaction.atomic(using=…)`` finds the connection."""


@contextmanager
def connection_to(**database: Any) -> Iterator[Any]:
    """Yield the connection of this thread, and close it afterwards.

    :param database: what a project's ``DATABASES`` says of it.
    """
    if not django_settings.configured:
        # Once in a process, for whatever databases its tests use.
        django_settings.configure(USE_TZ=True)
        django.setup()
    connections.settings[ALIAS] = connections.configure_settings({"default": {}, ALIAS: database})[ALIAS]
    connection = connections[ALIAS]
    # It refuses versions that it does not test any more; nothing here depends on what those lack.
    connection.features.minimum_database_version = None
    try:
        yield connection
    finally:
        connection.close()
        del connections[ALIAS]
