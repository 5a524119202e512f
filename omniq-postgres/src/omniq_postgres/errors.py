"""The driver's errors: which of them pass when the same is done again, and what the others are called by the core.

Decided by the SQLSTATE's class, its first two characters, as PostgreSQL's manual arranges them ("PostgreSQL Error
Codes"). The driver has a class of its own for each single code, and new servers bring new codes; the few whose meaning
differs from that of their class are named one by one.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

import psycopg

from omniq.errors import OmniQError, SchemaMismatch, StorageError, StorageUnavailable

__all__ = ["Remedy", "remedy_for", "text_of", "translated"]


class Remedy(Enum):
    """What may help."""

    NOTHING = auto()
    REPEAT = auto()
    """The server took everything back; the same again, on the same connection."""
    RECONNECT = auto()
    """The connection is of no use any more, or the server not of use yet."""


class _Kind(NamedTuple):
    remedy: Remedy
    error: type[OmniQError | ValueError]
    """What is raised if the remedy does not help."""


_BUG = _Kind(Remedy.NOTHING, StorageError)
_AGAIN = _Kind(Remedy.REPEAT, StorageUnavailable)
_ANEW = _Kind(Remedy.RECONNECT, StorageUnavailable)
_LATER = _Kind(Remedy.NOTHING, StorageUnavailable)
"""It passes, but not by trying at once: the caller hears of it, and a worker keeps its outcomes for later."""
_UNFIT = _Kind(Remedy.NOTHING, ValueError)
_NO_SCHEMA = _Kind(Remedy.NOTHING, SchemaMismatch)

_OF_CLASS = {
    "08": _ANEW,  # connection exception
    "22": _UNFIT,  # data exception
    "25": _ANEW,  # invalid transaction state: a standby, or a transaction of ours that timed out
    "26": _ANEW,  # invalid SQL statement name: a proxy gave the connection to another server process
    "28": _LATER,  # invalid authorization: until the password or the role is what it should be
    "3D": _LATER,  # invalid catalog name: until there is such a database
    "3F": _NO_SCHEMA,
    "40": _AGAIN,  # transaction rollback: deadlock, serialization
    "53": _ANEW,  # insufficient resources: memory, connections
    "54": _UNFIT,  # program limit exceeded
    "55": _LATER,  # object not in prerequisite state: locked, in use
    "57": _ANEW,  # operator intervention: shutdown, crash, starting
    "58": _LATER,  # system error outside of PostgreSQL: I/O
    "72": _AGAIN,  # snapshot too old
    "F0": _LATER,  # configuration file error
    "XX": _LATER,  # internal error, which a full quota or a file system that became read-only is, too
}
_OF_CODE = {
    "25P02": _BUG,  # in failed transaction: the caller's own, as ours end with each statement
    "23505": _AGAIN,  # unique violation by what was stored after the statement began: the next one sees it
    "42501": _LATER,  # insufficient privilege
    "42703": _NO_SCHEMA,  # undefined column
    "42883": _NO_SCHEMA,  # undefined function
    "42P01": _NO_SCHEMA,  # undefined table
    "42P05": _ANEW,  # duplicate prepared statement: as of class 26
    "53100": _LATER,  # disk full
    "57014": _LATER,  # query canceled: it took too long
}


def _kind_of(error: psycopg.Error) -> _Kind:
    code = error.sqlstate
    if code is None:
        # Of the driver itself: the connection is lost or could not be made, or a value cannot be sent.
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return _ANEW
        return _UNFIT if isinstance(error, psycopg.DataError) else _BUG
    if code == "0A000" and "cached plan" in str(error):
        return _ANEW  # the schema was changed under a prepared statement
    return _OF_CODE.get(code) or _OF_CLASS.get(code[:2], _BUG)


def remedy_for(error: psycopg.Error) -> Remedy:
    """Say what may help against an error."""
    return _kind_of(error).remedy


def text_of(error: BaseException) -> str:
    """Return an error's text on one line, or what it is where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def translated(error: psycopg.Error, shown: str, database: str) -> OmniQError | ValueError:
    """Return the error that a user of the core knows.

    :param shown: the store's URL without its secrets.
    :param database: the name of the database, as the URL need not name it.
    """
    text = text_of(error)
    kind = _kind_of(error).error
    if kind is SchemaMismatch:
        return SchemaMismatch(
            f"{shown}: the database {database!r} has not the tables that this version needs ({text}); "
            "run: omniq migrate URL"
        )
    if error.sqlstate == "25006":
        return StorageUnavailable(f"{shown} cannot be written: it is a standby or read-only ({text})")
    if error.sqlstate == "57014":
        return StorageUnavailable(
            f"{shown} took too long: it is overloaded, or an open transaction holds what was to be changed ({text})"
        )
    if kind is StorageUnavailable:
        return StorageUnavailable(f"{shown} cannot be used: {text}")
    if kind is ValueError:
        return ValueError(f"{shown} cannot hold this: {text}")
    return StorageError(f"{shown}: {type(error).__name__}: {text}")
