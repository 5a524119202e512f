"""Tasks in an LMDB file, a store of ordered pairs of bytes: ``lmdb:////var/lib/jobs``."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from threading import Lock

import lmdb

from omniq.errors import StorageUnavailable
from omniq.storage import Capability, Finding, PairsTx, Severity, SimpleStorage, StorageConfig

_open: dict[str, tuple[lmdb.Environment | None, int]] = {}  # LMDB must not open a file twice in one process
_lock = Lock()


class LmdbPairs:
    """One transaction of LMDB."""

    def __init__(self, txn: lmdb.Transaction) -> None:
        self.txn = txn

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        return {key: value for key in keys if (value := self.txn.get(key)) is not None}

    def put(self, pairs: Mapping[bytes, bytes]) -> None:
        for key, value in pairs.items():
            self.txn.put(key, value)

    def delete(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.txn.delete(key)

    def scan(self, begin: bytes, end: bytes, limit: int | None, backwards: bool) -> Iterable[tuple[bytes, bytes]]:
        cursor = self.txn.cursor()
        there = cursor.set_range(end if backwards else begin)
        if backwards:
            there = cursor.prev() if there else cursor.last()
        found: list[tuple[bytes, bytes]] = []
        while there and begin <= cursor.key() < end and (limit is None or len(found) < limit):
            found.append(cursor.item())
            there = cursor.prev() if backwards else cursor.next()
        return found


class LmdbStorage(SimpleStorage):
    """A storage in an LMDB file, one for each namespace."""

    capabilities = frozenset({Capability.DURABLE, Capability.SHARED_BETWEEN_PROCESSES})

    def __init__(self, config: StorageConfig) -> None:
        config.check_options(())
        super().__init__(config)
        self.path = f"{config.location.partition('://')[2]}.{config.namespace}"

    def connect(self) -> lmdb.Environment:
        with _lock:
            env, users = _open.get(self.path, (None, 0))
            env = env or lmdb.open(self.path, subdir=False, map_size=1 << 36, max_readers=500)
            _open[self.path] = env, users + 1
        return env

    def disconnect(self, connection: lmdb.Environment) -> None:
        with _lock:
            env, users = _open.pop(self.path)
            if users > 1:
                _open[self.path] = env, users - 1
            else:
                env.close()

    @contextmanager
    def transaction(self, connection: lmdb.Environment, write: bool) -> Iterator[PairsTx]:
        with self.turn() if write else nullcontext(), connection.begin(write=write) as txn:
            tx = PairsTx(LmdbPairs(txn), datetime.now(UTC))
            yield tx
            tx.flush()

    @contextmanager
    def turn(self) -> Iterator[None]:
        # LMDB's own lock is waited for without end, also while a process has it that was stopped.
        end = time.monotonic() + 5
        with open(f"{self.path}.turn", "ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.001)
            yield

    def fault(self, error: BaseException) -> Exception | None:
        passes = isinstance(error, lmdb.Error | BlockingIOError)
        return StorageUnavailable(f"{self.config.redacted}: {error}") if passes else None

    def findings(self, tx: PairsTx) -> list[Finding]:
        return [Finding(severity=Severity.OK, subject="LMDB", message=".".join(map(str, lmdb.version())))]
