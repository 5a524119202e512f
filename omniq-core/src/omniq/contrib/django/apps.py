"""The Django application: it imports the ``tasks`` modules of all others, and keeps queues in step with databases."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig  # type: ignore[import-untyped]  # it brings no types
from django.db.backends.base.base import NO_DB_ALIAS  # type: ignore[import-untyped]  # the same
from django.db.backends.signals import connection_created  # type: ignore[import-untyped]  # the same
from django.db.models.signals import post_migrate  # type: ignore[import-untyped]  # the same
from django.utils.module_loading import autodiscover_modules  # type: ignore[import-untyped]  # the same

from omniq.contrib.django.backend import backends, disconnect
from omniq.contrib.django.databases import is_in_memory

__all__ = ["OmniQConfig"]


class OmniQConfig(AppConfig):  # type: ignore[misc]  # Django brings no types
    """``"omniq.contrib.django"`` in ``INSTALLED_APPS``."""

    name = "omniq.contrib.django"
    label = "omniq"
    verbose_name = "OmniQ"

    def ready(self) -> None:
        """Import the module ``tasks`` of each installed application, so that each process knows all tasks."""
        autodiscover_modules("tasks")
        post_migrate.connect(_make_tables, sender=self)
        connection_created.connect(_let_go)


def _make_tables(using: str, **_: Any) -> None:
    """Make the tables of the queues that are in a database which was migrated, such as one for tests.

    Not at the first use, which may be in a test's transaction: SQLite would wait for the end of that.
    """
    for backend in backends():
        if backend.own_database == using and not is_in_memory(using):
            backend.queue.stats()
            backend.queue.close()


def _let_go(connection: Any, **_: Any) -> None:
    """Disconnect the queues where Django is about to copy or drop a database, which connections would prevent."""
    if connection.alias == NO_DB_ALIAS:
        disconnect()
