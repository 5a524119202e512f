"""What a flow is: tasks that wait for the ends of others, through gates.

A task stands *behind* at most one gate and *feeds* any number of them. A gate **opens** once everything that feeds it
has ended; it **breaks** as soon as something ends without the success that the gate needs of it. The tasks behind an
open gate become ready, those behind a broken one end as cancelled, with the reason. A chain has one gate for each step,
a group of ten thousand with a callback has one for all of them.

Everything here is a value, nothing does any I/O. :class:`StoredFlow` and :class:`StoredGate` are the working copies of
a store's transaction, and so can be changed; the others are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from attrs import define, field, frozen

__all__ = ["Flow", "Gate", "GateState", "NewFlow", "NewGate", "StoredFlow", "StoredGate"]


class GateState(StrEnum):
    """Where a gate stands. An open one stays open."""

    SHUT = "shut"
    OPEN = "open"
    BROKEN = "broken"


@frozen(kw_only=True)
class NewGate:
    """A gate as a producer hands it to a store."""

    n: int
    """Its number within the flow, 0 or larger."""
    rank: str
    """Its place in the order of the graph: a task's gate must rank before each gate that it feeds, so that no cycle
    can be stored. Compared as texts are."""
    hold: bool = False
    """Whether it stays shut until :meth:`omniq.storage.Storage.release_hold`, whatever feeds it."""


@frozen(kw_only=True)
class NewFlow:
    """A flow as a producer hands it to a store, whole or in parts."""

    id: str
    """UUIDv7 text, chosen by the producer. By custom the id of the task whose result is that of the flow."""
    gates: tuple[NewGate, ...] = ()
    """Those that are stored already are left as they are."""
    unique: str | None = None
    """At most one flow that has not ended has this key."""
    hold_ttl: float = 60.0
    """Seconds until the gates that are still held break, counted from the last call that named the flow."""
    result_ttl: float = 86400.0
    """Seconds that the flow and all of its tasks are kept after the flow's end."""


@frozen(kw_only=True)
class Gate:
    """A gate as it stands."""

    n: int
    rank: str
    state: GateState
    unmet: int
    """How many of the tasks that feed it have not ended, holds included."""
    failed: int
    """How many ended without the success that the gate needs of them."""
    error: str = ""
    """Why it is broken: the first of those."""
    holds: int = 0
    """How many holds are left, see :attr:`NewGate.hold`."""


@frozen(kw_only=True)
class Flow:
    """A flow as it stands."""

    id: str
    unique: str | None
    created_at: datetime
    finished_at: datetime | None
    """When the last of its tasks ended; None as long as one is live."""
    cancelled: bool
    hold_until: datetime | None
    """Until when it can still be built; None if nothing of it is held."""
    counts: Mapping[Any, int]  # of TaskState; as one is a text, too, type checkers must accept counts["failed"]
    """How many of its tasks are in each state, zeros included."""
    gates: tuple[Gate, ...]
    """In the order of their numbers."""
    result_ttl: float = 86400.0
    """Seconds that the flow and all of its tasks are kept after the flow's end."""


@define(kw_only=True)
class StoredGate:
    """A gate as a store keeps it."""

    n: int
    rank: str
    unmet: int = 0
    failed: int = 0
    holds: int = 0
    state: GateState = GateState.SHUT
    error: str = ""
    revives: bool = False
    """Whether it was broken and no longer is, and tasks that its break had ended may still have to be revived."""


@define(kw_only=True)
class StoredFlow:
    """A flow as a store keeps it, without its gates."""

    id: str
    unique: str | None = None
    created_at: datetime
    result_ttl: float = 86400.0
    live: int = 0
    """How many of its tasks have not ended."""
    held: int = 0
    """How many holds of its gates are left."""
    hold_until: datetime | None = None
    finished_at: datetime | None = None
    cancelled: bool = False
    cancelling: bool = False
    """Whether tasks of it have still to be ended as it was cancelled."""
    retrying: bool = False
    """Whether tasks of it have still to be retried: until then no gate of it opens."""
    audit_at: datetime | None = None
    """When to look whether it waits for what cannot come."""
    doubtful: bool = False
    """Whether one of its tasks could not be read, or it was cancelled, so that this is looked at after each step."""
    agenda: dict[int, None] = field(factory=dict)
    """The gates behind which tasks have still to be released, ended or revived, in order."""

    @property
    def is_over(self) -> bool:
        """Whether all of its tasks have ended, and none can come."""
        return self.live <= 0 and not self.held and not self.retrying

    @property
    def is_due(self) -> bool:
        """Whether there is something to do at once."""
        return self.cancelling or self.retrying or bool(self.agenda)
