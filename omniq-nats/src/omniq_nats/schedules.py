"""Schedules as they are stored: a line about the message, and the schedule's text."""

from __future__ import annotations

import json

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq.records import dump_schedule, load_schedule
from omniq.schedule import Schedule
from omniq_nats.messages import Stored

__all__ = ["encode_schedule", "nonce_of", "read_schedule", "readable", "revision_of"]

_log = get_logger("omniq.nats")


def encode_schedule(schedule: Schedule, nonce: str) -> bytes:
    """Give the body of the message that a schedule is stored in.

    A new schedule, of revision 0, gets the sequence of its message: none that was stored before it had a larger one,
    as each change of a schedule is a message and raises its revision by one.

    :param nonce: tells the attempt that stores it from others.
    """
    return f"{json.dumps([nonce, schedule.revision])}\n{dump_schedule(schedule)}".encode()


def _head(stored: Stored) -> tuple[str, int]:
    """Return what tells the attempt that stored a schedule from others, and its revision."""
    nonce, revision = json.loads(stored.data.partition(b"\n")[0])
    if not (isinstance(nonce, str) and isinstance(revision, int)):
        raise ValueError(f"these are no nonce and revision: {nonce!r}, {revision!r}")
    return nonce, revision or stored.seq


def nonce_of(stored: Stored) -> str | None:
    """Return what tells the attempt that stored a schedule from others; None if it cannot be read."""
    try:
        return _head(stored)[0]
    except (ValueError, TypeError, RecursionError):
        return None


def revision_of(stored: Stored) -> int:
    """Give a schedule's revision; 0 if it cannot be read, so that another one can be stored in its place."""
    try:
        return _head(stored)[1]
    except (ValueError, TypeError, RecursionError):
        return 0


def readable(stored: Stored) -> Schedule | None:
    """Read a schedule; one that cannot be read must not keep the others from firing."""
    try:
        return read_schedule(stored)
    except CorruptRecord as error:
        _log.error("%s", error)
        return None


def read_schedule(stored: Stored) -> Schedule:
    """Read a schedule.

    :raises CorruptRecord: if it cannot be read.
    """
    try:
        _, revision = _head(stored)
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptRecord(
            f"the schedule on {stored.subject} cannot be read: {error}; "
            "delete it (omniq schedules delete) and store it anew"
        ) from error
    return load_schedule(stored.data.partition(b"\n")[2], revision=revision)
