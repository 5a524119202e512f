"""The caller's own database transaction, as a store takes part in it.

A store with :attr:`~omniq.storage.Capability.TRANSACTIONS` gives one of these for a connection of the caller's: what
is enqueued or finished through it exists if and only if the caller commits. Nothing here commits, rolls back or closes
anything.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from omniq.errors import ConfigurationError
from omniq.flow import NewFlow
from omniq.storage import Enqueued
from omniq.task import NewTask, Outcome

__all__ = ["CallerTransaction", "driver_connection"]


class CallerTransaction(ABC):
    """One connection of the caller's, in whatever transaction it is in.

    The methods without the prefix ``a`` work on the calling thread, with a connection of a synchronous driver; with an
    asynchronous one they raise a TypeError that names the twin. The twins work with both kinds.

    Every method is all or nothing within the transaction: one that raises has changed nothing that a commit would
    store. While the transaction is open, the store's heartbeats and recoveries of other tasks do not wait for it, where
    the database locks less than the whole of it.
    """

    is_async: bool = False
    """Whether the connection is of an asynchronous driver, so that only the twins work. The core then refuses the
    others itself, by the names that its users know."""

    def enqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        """Do :meth:`omniq.storage.Storage.enqueue` within the caller's transaction.

        :raises ValueError: if the connection commits each statement by itself, and no transaction is open.
        :raises StorageUnavailable: if the database is locked or cannot be written; the caller is to roll back.
        """
        return self.enqueue_flow(tasks, None)

    async def aenqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        """Do :meth:`enqueue`."""
        return self.enqueue(tasks)

    def enqueue_flow(self, tasks: Sequence[NewTask], flow: NewFlow | None) -> list[Enqueued]:
        """Do :meth:`omniq.storage.Storage.enqueue` with a flow, on a store that holds flows."""
        raise ConfigurationError(f"{type(self).__name__} stores no flows within a transaction of the caller's")

    async def aenqueue_flow(self, tasks: Sequence[NewTask], flow: NewFlow | None) -> list[Enqueued]:
        """Do :meth:`enqueue_flow`."""
        return self.enqueue_flow(tasks, flow)

    @abstractmethod
    def finish(self, outcome: Outcome) -> bool:
        """Record how a delivery ended within the caller's transaction, fenced as by ``Storage.finish``.

        :return: False if the lease was lost; the caller is to roll back then.
        :raises ValueError: if the connection commits each statement by itself, and no transaction is open.
        :raises StorageUnavailable: if the database is locked or cannot be written; the caller is to roll back.
        """

    async def afinish(self, outcome: Outcome) -> bool:
        """Do :meth:`finish`."""
        return self.finish(outcome)


def driver_connection(connection: object) -> object:
    """Return the driver's own connection behind one of SQLAlchemy's or Django's; anything else comes back as it is.

    Imports neither of them. Of SQLAlchemy it takes a ``Connection``, a ``Session`` and a ``scoped_session``; where no
    transaction has begun there, one is: without it, SQLAlchemy's ``commit()`` would not commit what is done on the
    driver's connection. Of Django it takes ``django.db.connection`` and those of ``connections``.

    :param connection: what the caller gave.
    """
    orm: Any = sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(connection, (orm.Session, orm.scoped_session)):
        connection = connection.connection()
    engine: Any = sys.modules.get("sqlalchemy.engine")
    if engine is not None and isinstance(connection, engine.Connection):
        if not connection.in_transaction():
            connection.begin()
        return connection.connection.driver_connection
    if "django.db" in sys.modules and hasattr(connection, "ensure_connection"):
        # By what it can do: django.db.connection stands for a connection, and is none itself.
        connection.ensure_connection()
        return getattr(connection, "connection", connection)
    return connection
