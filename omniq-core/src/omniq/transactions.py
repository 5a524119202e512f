"""The caller's own database transaction, as a store takes part in it.

A store with :attr:`~omniq.storage.Capability.TRANSACTIONS` gives one of these for a connection of the caller's: what
is enqueued or finished through it exists if and only if the caller commits. Nothing here commits, rolls back or closes
anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from omniq.storage import Enqueued
from omniq.task import NewTask, Outcome

__all__ = ["CallerTransaction"]


class CallerTransaction(ABC):
    """One connection of the caller's, in whatever transaction it is in.

    The methods without the prefix ``a`` work on the calling thread, with a connection of a synchronous driver; with an
    asynchronous one they raise a TypeError that names the twin. The twins work with both kinds.
    """

    @abstractmethod
    def enqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        """Do :meth:`omniq.storage.Storage.enqueue` within the caller's transaction."""

    @abstractmethod
    async def aenqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        """Do :meth:`omniq.storage.Storage.enqueue` within the caller's transaction."""

    @abstractmethod
    def finish(self, outcome: Outcome) -> bool:
        """Record how a delivery ended within the caller's transaction, fenced as by ``Storage.finish``.

        :return: False if the lease was lost; the caller is to roll back then.
        """

    @abstractmethod
    async def afinish(self, outcome: Outcome) -> bool:
        """Do :meth:`finish`."""
