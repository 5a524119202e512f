"""The driver's errors: which of them go by when the same is done again, and what the others are called by the core."""

from __future__ import annotations

from enum import Enum, auto

import psycopg
from psycopg import errors

from omniq.errors import OmniQError, SchemaMismatch, StorageError, StorageUnavailable

__all__ = ["Remedy", "remedy_for", "translated"]


class Remedy(Enum):
    """What may help."""

    NOTHING = auto()
    REPEAT = auto()
    """The server took everything back; the same again, on the same connection."""
    RECONNECT = auto()
    """The connection is of no use any more, or the server not of use yet."""


_REPEAT = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.UniqueViolation,  # of what was stored after the statement began: the next one sees it
)
_RECONNECT = (
    errors.ConnectionException,  # class 08
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.DatabaseDropped,
    errors.IdleInTransactionSessionTimeout,
    errors.IdleSessionTimeout,
    errors.TooManyConnections,
    errors.ReadOnlySqlTransaction,  # a standby; the address may lead to its primary soon
    errors.InvalidSqlStatementName,  # a proxy gave the connection to another server process
    errors.DuplicatePreparedStatement,
)
_UNAVAILABLE = (
    errors.InsufficientResources,  # class 53: disk full, out of memory
    errors.OperatorIntervention,  # class 57
    errors.SystemError,  # class 58: I/O errors
    errors.LockNotAvailable,
    errors.InsufficientPrivilege,
    errors.InvalidAuthorizationSpecification,  # class 28
    errors.InvalidCatalogName,
)
_NO_SCHEMA = (errors.UndefinedTable, errors.InvalidSchemaName, errors.UndefinedColumn, errors.UndefinedFunction)


def remedy_for(error: psycopg.Error) -> Remedy:
    """Say what may help against an error."""
    if isinstance(error, _REPEAT):
        return Remedy.REPEAT
    if isinstance(error, _RECONNECT):
        return Remedy.RECONNECT
    if error.sqlstate is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return Remedy.RECONNECT
    if isinstance(error, errors.FeatureNotSupported) and "cached plan" in str(error):
        return Remedy.RECONNECT  # the schema was changed under a prepared statement
    return Remedy.NOTHING


def translated(error: psycopg.Error, shown: str) -> OmniQError | ValueError:
    """Give the error that a user of the core knows.

    :param shown: the store's URL without its secrets.
    """
    text = " ".join(str(error).split())
    if isinstance(error, _NO_SCHEMA):
        return SchemaMismatch(f"{shown} has not the tables that this version needs ({text}); run: omniq migrate URL")
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return StorageUnavailable(f"{shown} cannot be written: it is a standby or read-only ({text})")
    if isinstance(error, errors.QueryCanceled):
        return StorageUnavailable(
            f"{shown} took too long: it is overloaded, or an open transaction holds what was to be changed ({text})"
        )
    if isinstance(error, _UNAVAILABLE) or remedy_for(error) is not Remedy.NOTHING:
        return StorageUnavailable(f"{shown} cannot be used: {text}")
    if isinstance(error, errors.DataException | errors.ProgramLimitExceeded | psycopg.DataError):
        return ValueError(f"{shown} cannot hold this: {text}")
    return StorageError(f"{shown}: {type(error).__name__}: {text}")
