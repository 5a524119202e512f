"""What a store says of itself: how to connect, to begin a transaction, and what an error of its driver means."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from omniq.storage.primitives import Tx
from omniq.storage.values import Finding, StorageConfig

__all__ = ["Backend"]


class Backend(ABC):
    """A driver, as the rest of the storage sees it. All of it but :meth:`joined` is called on threads of the storage.

    :param config: where the store is. A backend reads its own options from it.
    """

    timeout = 20.0
    """Seconds after which a call that cannot be done raises :class:`~omniq.errors.StorageUnavailable`."""
    connection_types: tuple[type, ...] = ()
    """The driver's classes of connections in whose transactions tasks can be enqueued, see :meth:`joined`."""

    def __init__(self, config: StorageConfig) -> None:
        self.config = config

    @abstractmethod
    def connect(self) -> Any:
        """Return a new connection; create what the store needs, or check it. Safe from many processes at once."""

    def disconnect(self, connection: Any) -> None:
        """Close a connection.

        :param connection: one that :meth:`connect` made.
        """
        connection.close()

    def drop(self, connection: Any) -> None:
        """Close a connection, if there is one, whatever its state."""
        if connection is not None:
            with contextlib.suppress(Exception):
                self.disconnect(connection)

    @abstractmethod
    def transaction(self, connection: Any, write: bool) -> AbstractContextManager[Tx]:
        """Begin a transaction, commit it at the end, and roll it back after an error.

        Two transactions that write must not change one task at once: the second waits for the first, for the whole
        store (a lock that is taken here) or for each task that a primitive returns.

        :param connection: one that :meth:`connect` made.
        :param write: whether it may write.
        :return: a context manager of the primitives.
        """

    @abstractmethod
    def fault(self, error: BaseException) -> Exception | None:
        """Return what an error of the driver means.

        :param error: what was raised in a transaction.
        :return: a :class:`~omniq.errors.StorageUnavailable` if it passes and the transaction is worth another try;
            another error to raise instead, such as :class:`~omniq.errors.SchemaMismatch`; None if it is none of the
            driver's.
        """

    @abstractmethod
    def findings(self, tx: Any) -> list[Finding]:
        """Return what ``omniq doctor`` shows.

        :param tx: a transaction that only reads.
        """

    def announce(self, tx: Any) -> None:  # noqa: B027  # a backend that has no signal leaves it out
        """Notify the other processes that :meth:`listen` of this transaction, once it is committed.

        :param tx: the transaction, before its commit.
        """

    def listen(self, connection: Any, seconds: float) -> bool:
        """Return True when another process announced a change, False when the time is over.

        A backend that has this and :meth:`announce` may claim ``Capability.NOTIFICATIONS``. It is called again and
        again, on a connection of its own.

        :param connection: one that :meth:`connect` made, of its own.
        :param seconds: how long to listen at most.
        """
        raise NotImplementedError

    def joined(self, connection: Any) -> AbstractContextManager[Tx]:
        """Return the primitives in the transaction of a caller's own connection, which nothing here commits.

        What they did must be undone if the block raises (a savepoint). A backend that has this and
        :attr:`connection_types` may claim ``Capability.TRANSACTIONS``.

        :param connection: the caller's.
        :raises ValueError: if the connection commits each statement by itself.
        """
        raise NotImplementedError
