"""What an operation does, apart from how it reaches the server: statements to run, one after the other, and a result.

A job is a generator that yields queries, is sent their rows, and returns what it found. The same job runs on an
asynchronous connection, a synchronous one, and on the caller's own of either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from attrs import define, field, frozen

from omniq_postgres.statements import Statements

__all__ = ["Context", "Job", "News", "Query", "Rows", "Steps"]

R = TypeVar("R")

Rows: TypeAlias = list[tuple[Any, ...]]


@frozen
class Query:
    """One statement to run."""

    text: bytes
    parameters: Sequence[Any] = ()
    prepare: bool = True
    """Whether it is run so often, and its best plan depends so little on its parameters, that it is worth planning
    once."""
    after: Query | None = None
    """Sent with it, and run after it in a transaction of its own, in one round trip. Its rows and errors are ignored,
    and it may run although the first one failed."""
    lead: Sequence[Query] = ()
    """Sent with it, and run before it within the same transaction, in one round trip. Their rows come before its own;
    once one has failed, those behind it are not run."""


@define
class News:
    """What others are to be notified of once it is committed."""

    work: dict[str, float] = field(factory=dict)
    """Queue → in how many seconds a task of it is ready; an empty name: look for yourselves."""
    ended: list[str] = field(factory=list)
    """Ids of tasks that ended, or are no longer there."""
    tasks: int = 0
    """How many tasks are, or will be, ready, about."""

    def ready(self, queue: str, seconds: float = 0.0) -> None:
        """Tell of a task that is, or will be, ready."""
        self.tasks += 1
        known = self.work.get(queue)
        if known is None or seconds < known:
            self.work[queue] = max(seconds, 0.0)

    def __bool__(self) -> bool:
        return bool(self.work or self.ended)

    def add(self, other: News) -> None:
        """Take in what another one tells."""
        for queue, seconds in other.work.items():
            self.ready(queue, seconds)
        self.ended += other.ended
        self.tasks += other.tasks


def _never(news: News) -> bool:
    return False


@frozen
class Context:
    """What a job is given to do its work."""

    sql: Statements
    news: News
    may_tell: Callable[[News], bool] = _never
    """Asked whether news may be told by the job itself, see :func:`omniq_postgres.notifier.telling`."""
    joined: bool = False
    """Whether all is done within a transaction of the caller's, who ends it when they like."""

    def query(self, name: str, *parameters: Any, prepare: bool = True) -> Query:
        """Return the query of a statement."""
        return Query(self.sql[name], parameters, prepare)


Steps: TypeAlias = Generator[Query, Rows, R]
Job: TypeAlias = Callable[[Context], Steps[R]]
