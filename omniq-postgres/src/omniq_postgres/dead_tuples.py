"""Claims, prunes and recoveries where dead rows pile up: on from where the last ones were, not over all of it again.

Each of them takes rows from the head of an index, and each row taken leaves a dead entry there. Vacuum removes those,
but not as long as a transaction is open anywhere that began before. Then a look from the head steps over all of
them: so it is done less often the longer it takes.
"""

from __future__ import annotations

import time
from datetime import datetime

from attrs import define, field

from omniq_postgres.operations import Rows

__all__ = ["Age", "Frontier", "LookBack"]

SLOW = 0.02
"""Seconds. A look that takes longer has had to step over something."""
MARGIN = 5.0
"""Seconds by which a row may become visible later than its time says."""


@define
class LookBack:
    """When to look at everything again."""

    least: float = 1.0
    """Seconds between two looks."""
    share: float = 10.0
    """Or so many times as long as a look takes."""
    looked_at: float = float("-inf")
    took: float = 0.0

    def since(self) -> float:
        """How many seconds ago the last look was."""
        return time.monotonic() - self.looked_at

    def is_due(self) -> bool:
        """Whether it is time for one."""
        return self.since() >= max(self.least, self.share * self.took)

    def done(self, began: float) -> None:
        """Take note of a look."""
        self.looked_at = time.monotonic()
        self.took = self.looked_at - began


@define
class Age:
    """How far the removal of rows has come that are ordered by a time in the past."""

    look_back: LookBack = field(factory=lambda: LookBack(least=0.0))
    _age: float = 0.0
    _at: float = 0.0
    _began: float = 0.0

    def begin(self) -> float:
        """Return the age in seconds beyond which nothing is left, as far as is known."""
        self._began = time.monotonic()
        if self.look_back.took < SLOW or self.look_back.is_due():
            return float("inf")
        return self._age + (self._began - self._at) + MARGIN

    def end(self, asked: float, youngest: float | None) -> None:
        """Take note of what was found.

        :param asked: what :meth:`begin` gave.
        :param youngest: the age of the latest row that was taken; None: there was none.
        """
        if asked == float("inf"):
            self.look_back.done(self._began)
        if youngest is not None:
            self._age, self._at = max(youngest, 0.0), self._began
        elif asked == float("inf"):
            self._age, self._at = 0.0, self._began


FLOWS_EVERY = 0.1
"""Seconds between looks at what is left to do about flows, unless it is known that something is."""


@define
class Frontier:
    """How far one storage's claims have come.

    Where it is used, a task that is ready at an old place, such as one that was given back, waits for the next look at
    everything.
    """

    marks: dict[str, dict[int, tuple[datetime, int]]] = field(factory=dict)
    """Queue → priority → the place of the last task claimed."""
    lanes: set[str] = field(factory=set)
    """Queues that had a limit or lines when they were looked at last."""
    pinned_until: float = 0.0
    """Until when, by the monotonic clock, dead rows are taken to pile up."""
    asked_at: float = 0.0
    """When that was last found out."""
    claims: LookBack = field(factory=LookBack)
    waits: LookBack = field(factory=LookBack)
    found_nothing: bool = False
    """Whether the last claim from here on gave nothing."""
    has_flows: bool = True
    """Whether something is known to be left to do about a flow."""
    flows_at: float = 0.0
    """When a claim last looked for that."""

    def looks_at_flows(self) -> bool:
        """Whether a claim is to look if something is left to do about flows; if so, it counts as done."""
        now = time.monotonic()
        if not self.has_flows and now - self.flows_at < FLOWS_EVERY:
            return False
        self.has_flows, self.flows_at = False, now
        return True

    def is_pinned(self) -> bool:
        """Whether dead rows pile up at the moment."""
        return time.monotonic() < self.pinned_until

    def may_claim_on(self) -> bool:
        """Whether to claim from the marks; else look at all that is ready."""
        if not self.is_pinned() or self.claims.is_due():
            return False
        # With nothing else to do, the look back may come sooner.
        return not (self.found_nothing and self.claims.since() > self.claims.share / 2 * self.claims.took)

    def may_wait_on(self) -> bool:
        """Whether to look for work from the marks on; else at all that is ready."""
        return self.is_pinned() and not self.waits.is_due()

    def advance(self, rows: Rows) -> None:
        """Take note of what was claimed."""
        for row in rows:
            queue, priority, place = row[2], row[5], (row[10], row[-1])
            marks = self.marks.setdefault(queue, {})
            # What was found behind a mark does not draw it back.
            if priority not in marks or place > marks[priority]:
                marks[priority] = place
