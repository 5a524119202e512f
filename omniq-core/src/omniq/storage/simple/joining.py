"""Enqueueing and finishing in a transaction of the caller's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from omniq.flow import NewFlow
from omniq.storage import transitions
from omniq.storage.primitives import Tx
from omniq.storage.simple.backend import Backend
from omniq.storage.transactions import CallerTransaction
from omniq.storage.values import Enqueued
from omniq.task import NewTask, Outcome

__all__ = ["Joined"]


class Joined(CallerTransaction):
    """Takes part in a transaction on a connection of the caller's."""

    def __init__(self, backend: Backend, connection: object) -> None:
        self._backend = backend
        self._connection = connection

    @contextlib.contextmanager
    def _tx(self) -> Iterator[Tx]:
        try:
            with self._backend.joined(self._connection) as tx:
                yield tx
                if tx.changed:
                    self._backend.announce(tx)
        except Exception as error:
            fault = self._backend.fault(error)
            if fault is None:
                raise
            raise fault from error

    def enqueue_flow(self, tasks: Sequence[NewTask], flow: NewFlow | None) -> list[Enqueued]:
        with self._tx() as tx:
            return transitions.enqueue(tx, tasks, flow)

    def finish(self, outcome: Outcome) -> bool:
        with self._tx() as tx:
            return transitions.finish(tx, [outcome])[0]
