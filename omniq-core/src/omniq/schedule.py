"""What a schedule is: a task to enqueue, and a trigger that says when.

A trigger is a pure function from a time to the next time. A store keeps schedules but never reads a trigger: the
trigger is encoded text to it, and ``next_run`` all that it acts on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from attrs import frozen

from omniq.task import NewTask

__all__ = ["Misfire", "Overlap", "Schedule", "Trigger"]


class Trigger(ABC):
    """Says when a schedule fires.

    An attrs class of plain fields, registered by :attr:`kind` through the hook ``omniq_triggers``.
    """

    kind: ClassVar[str]
    """The name under which the trigger is stored with a schedule."""

    @abstractmethod
    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first time to fire that is later than a moment.

        The same for the same moment, and never earlier for a later one: it is asked of other moments than the last run
        as well.

        :param moment: an aware datetime.
        :return: an aware datetime in UTC, or None if the trigger never fires again.
        """

    def first(self, moment: datetime) -> datetime | None:
        """Return the first time to fire of a schedule that is made, or resumed, at a moment.

        The same as :meth:`next_after`, but for triggers that name one fixed time, which may have passed.

        :param moment: an aware datetime.
        """
        return self.next_after(moment)


class Misfire(StrEnum):
    """What to do with fire times that passed while no scheduler was running."""

    LATEST = "latest"
    """One run for all that were missed."""
    ALL = "all"
    """One run for each that was missed."""
    SKIP = "skip"
    """None; wait for the next."""


class Overlap(StrEnum):
    """What to do when the last run's task has not ended yet."""

    ALLOW = "allow"
    SKIP = "skip"


@frozen(kw_only=True)
class Schedule:
    """A stored schedule. All datetimes are aware, in UTC."""

    id: str
    task: NewTask
    """What to enqueue; its id is replaced at each run."""
    trigger: str
    """The encoded trigger."""
    next_run: datetime | None
    """When it fires next; None: never again."""
    misfire: Misfire = Misfire.LATEST
    overlap: Overlap = Overlap.ALLOW
    jitter: float = 0.0
    """Seconds by which a run may be put off at random."""
    start: datetime | None = None
    end: datetime | None = None
    paused: bool = False
    declared: bool = False
    """Whether it was declared in code (``@queue.task(schedule=…)``) and is therefore kept in step with the code."""
    apps: tuple[str, ...] = ()
    """Of a declared one: the apps whose code declares it, each the ``module:attribute`` of its workers."""
    last_run: datetime | None = None
    """The fire time of the latest run."""
    last_task: str | None = None
    """The id of the latest run's task; where it was not enqueued, as its unique key was taken, of the task that has
    the key."""
    live_tasks: tuple[str, ...] = ()
    """Under ``overlap="skip"``: ids of earlier runs' tasks that had not ended when :attr:`last_task` was enqueued."""
    revision: int = 0
    """Counts the changes: of several who change a schedule at once, one wins."""
