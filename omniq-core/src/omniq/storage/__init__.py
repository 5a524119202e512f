"""The contract that every store fulfils, and what a store can be made of.

The contract is :class:`Storage`, in :mod:`omniq.storage.base`. A new store has least to do if it is made of
:class:`SimpleStorage` with :class:`SqlTx`, for an SQL database, or with :class:`PairsTx`, for anything that keeps
ordered pairs of bytes; these are imported at their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omniq.storage.base import Storage, StorageFactory
from omniq.storage.values import (
    Adoption,
    Capability,
    Count,
    Enqueued,
    Finding,
    Lease,
    LeaseState,
    QueueStats,
    Severity,
    StorageConfig,
    StorageLimits,
    StoredWorker,
    TaskPage,
    TaskQuery,
)

if TYPE_CHECKING:
    from omniq.storage.pairs import Pairs, PairsTx
    from omniq.storage.simple import SimpleStorage
    from omniq.storage.sql import SqlTx

__all__ = [
    "Adoption",
    "Capability",
    "Count",
    "Enqueued",
    "Finding",
    "Lease",
    "LeaseState",
    "Pairs",
    "PairsTx",
    "QueueStats",
    "Severity",
    "SimpleStorage",
    "SqlTx",
    "Storage",
    "StorageConfig",
    "StorageFactory",
    "StorageLimits",
    "StoredWorker",
    "TaskPage",
    "TaskQuery",
]

_LATE = {
    "Pairs": "omniq.storage.pairs",
    "PairsTx": "omniq.storage.pairs",
    "SimpleStorage": "omniq.storage.simple",
    "SqlTx": "omniq.storage.sql",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
