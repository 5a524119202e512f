"""Schedules as they are stored: a line about the message, and the schedule's text."""

from __future__ import annotations

import json

from omniq.errors import CorruptRecord
from omniq.schedule import Schedule
from omniq.storage import corrupt_records
from omniq.storage.corrupt_records import corrupt, log_once
from omniq.storage.escaping import get_logger
from omniq.storage.records import dump_schedule
from omniq.storage.validation import LARGEST_REVISION, UNREADABLE
from omniq_nats import names
from omniq_nats.messages import Stored

__all__ = ["encode_schedule", "nonce_of", "read_schedule", "readable"]

_log = get_logger("omniq.nats")


def encode_schedule(schedule: Schedule, nonce: str) -> bytes:
    """Return the body of the message that a schedule is stored in.

    A new schedule, of revision 0, gets the sequence of its message: none that was stored before it had a larger one,
    as each change of a schedule is a message and raises its revision by one.

    :param nonce: tells the attempt that stores it from others.
    """
    return f"{json.dumps([nonce, schedule.revision])}\n{dump_schedule(schedule)}".encode()


def _head(stored: Stored) -> tuple[str, int]:
    """Return what tells the attempt that stored a schedule from others, and its revision."""
    nonce, revision = json.loads(stored.data.partition(b"\n")[0])
    if not (type(nonce) is str and type(revision) is int and 0 <= revision < LARGEST_REVISION):
        raise ValueError("these are no nonce and revision")
    return nonce, revision or stored.seq


def nonce_of(stored: Stored) -> str | None:
    """Return what tells the attempt that stored a schedule from others; None if it cannot be read."""
    try:
        return _head(stored)[0]
    except UNREADABLE:
        return None


def readable(stored: Stored) -> Schedule | None:
    """Read a schedule; one that cannot be read must not keep the others from firing."""
    try:
        return read_schedule(stored)
    except CorruptRecord as problem:
        log_once(_log, problem)
        return None


def read_schedule(stored: Stored) -> Schedule:
    """Read a schedule.

    :raises CorruptRecord: if it cannot be read.
    """
    name = names.readable(stored.subject.rpartition(".")[2])
    place = f"message {stored.seq} on {stored.subject}"
    try:
        _, revision = _head(stored)
        schedule = corrupt_records.read_schedule(stored.data.partition(b"\n")[2], place=place, revision=revision)
        if schedule.id != name:
            raise ValueError("it names another schedule than its subject")
    except UNREADABLE as error:
        raise corrupt("schedule", name, error, place=place) from error
    except CorruptRecord as error:
        raise corrupt("schedule", name, error.__cause__ or error, place=place) from error
    return schedule
