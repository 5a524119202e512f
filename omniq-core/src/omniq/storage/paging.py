"""One page out of a walk over stored tasks: which match, when it is full, and where the next one goes on."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeVar

from attrs import define, field

from omniq.storage.validation import EARLIEST
from omniq.storage.values import TaskPage, TaskQuery
from omniq.task import StoredTask

__all__ = ["CLOCK_SLACK", "LARGEST_PLACE", "Pager", "read_cursor", "slackened"]

T = TypeVar("T")

CLOCK_SLACK = timedelta(minutes=1)
"""By so much a clock may have been put back without a task being missed, see ``Storage.list_tasks``."""
LARGEST_PLACE = 2**63 - 1
"""Where stores count in 64 bits."""


def slackened(moment: datetime, slack: timedelta) -> datetime:
    """Return a time that is earlier or later by a slack, or the time itself where there is none such."""
    try:
        return moment + slack
    except OverflowError:
        return moment


def read_cursor(cursor: str | None, shown: str, latest: T) -> int | T:
    """Return the place before which a page begins, as :meth:`Pager.page` wrote it.

    :param cursor: as it was given to ``list_tasks``.
    :param shown: the store's URL, redacted.
    :param latest: what to return for None, the first page.
    :raises ValueError: if it is none that any store writes.
    """
    if cursor is None:
        return latest
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 20):
        raise ValueError(f"{cursor!r} is not a cursor of {shown}")
    return min(int(cursor), LARGEST_PLACE)


@define
class Pager:
    """Makes a page of tasks that are shown to it, the latest enqueued first.

    ::

        pager = Pager(query)
        for place, task in tasks:
            if pager.is_done_with(place, task):
                break
        return pager.page()
    """

    query: TaskQuery
    tasks: list[StoredTask] = field(init=False, factory=list)
    _over: datetime = field(init=False)
    """What was enqueued before this ends the walk."""
    _looked: int = field(init=False, default=0)
    _last: int | None = field(init=False, default=None)
    _last_found: int | None = field(init=False, default=None)
    _cursor: int | None = field(init=False, default=None)

    @_over.default
    def _default_over(self) -> datetime:
        after = self.query.enqueued_after
        return EARLIEST if after is None else slackened(after, -CLOCK_SLACK)

    def is_done_with(self, place: int, task: StoredTask) -> bool:
        """Take a task if it matches; return True if it is not on this page, nor are those that follow.

        :param place: where it stands in the order; tasks that share a place share a page.
        """
        query = self.query
        is_next = place != self._last
        if is_next and query.look_at is not None and self._looked >= query.look_at:
            self._cursor = self._last
            return True
        if EARLIEST < task.created_at < self._over:
            return True
        is_match = query.matches(task)
        if is_match and place != self._last_found and len(self.tasks) >= query.limit:
            self._cursor = self._last_found
            return True
        self._last = place
        self._looked += 1
        if is_match:
            self._last_found = place
            self.tasks.append(task.bare() if query.bare else task)
        return False

    def page(self) -> TaskPage[StoredTask]:
        """Return the page; its cursor is the place of the last task that the next page need not look at."""
        return TaskPage(tuple(self.tasks), None if self._cursor is None else str(self._cursor))

    @property
    def cursor(self) -> int | None:
        """The place of the last task that the next page need not look at; None: there is no next one."""
        return self._cursor
