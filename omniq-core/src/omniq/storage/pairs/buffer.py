"""Pairs of bytes in one transaction: what is written is gathered until a scan needs it, or the transaction ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import corrupt
from omniq.storage.pairs.keys import END

__all__ = ["Pairs", "PairsBuffer"]


class Pairs(Protocol):
    """One transaction on pairs of bytes in the order of their keys, which have at most 400 bytes."""

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Return what is stored under keys, without those that are not there.

        :param keys: in any order.
        """

    def put(self, pairs: Mapping[bytes, bytes]) -> None:
        """Store pairs, replacing those with the same keys.

        :param pairs: key → value.
        """

    def delete(self, keys: Sequence[bytes]) -> None:
        """Remove keys; those that are not there are no error.

        :param keys: in any order.
        """

    def scan(self, begin: bytes, end: bytes, limit: int | None, backwards: bool) -> Iterable[tuple[bytes, bytes]]:
        """Return the pairs with ``begin <= key < end`` in order, or from the end, at most so many of them.

        :param begin: the first key.
        :param end: the key before which to stop.
        :param limit: how many pairs at most.
        :param backwards: begin with the last pair before ``end``.
        """


class PairsBuffer:
    """Pairs that are read, and written together.

    :param pairs: the store's transaction.
    :param now: the store's clock.
    """

    def __init__(self, pairs: Pairs, now: datetime) -> None:
        self.now = now
        self.changed = False
        self.problems: list[CorruptRecord] = []
        self._pairs = pairs
        self._puts: dict[bytes, bytes] = {}
        self._deletes: set[bytes] = set()

    def flush(self) -> None:
        """Hand everything that was written to the store."""
        if self._deletes:
            self._pairs.delete(sorted(self._deletes))
        if self._puts:
            self._pairs.put(self._puts)
        self._puts, self._deletes = {}, set()

    def _write(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> None:
        self.changed = True
        for one in deletes:
            self._puts.pop(one, None)
            self._deletes.add(one)
        self._deletes.difference_update(puts)
        self._puts.update(puts)

    def _get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        wanted = set(keys)
        here = {one: self._puts[one] for one in wanted if one in self._puts}
        there = sorted(wanted - here.keys() - self._deletes)
        return {**here, **(self._pairs.get(there) if there else {})}

    def _one(self, where: bytes) -> bytes | None:
        return self._get([where]).get(where)

    def _entries_in(
        self, prefix: bytes, below: bytes = END, limit: int | None = None, *, backwards: bool = False
    ) -> Iterable[tuple[bytes, bytes]]:
        """Return the pairs whose keys begin with a prefix and are below ``prefix + below``."""
        self.flush()
        return self._pairs.scan(prefix, prefix + below, limit, backwards)

    def _number(self, where: bytes) -> int:
        """Return the number under which something was stored; 0 if there is none that can be read."""
        try:
            return int(self._one(where) or b"0")
        except ValueError as error:
            self.problems.append(corrupt("number", where.decode(errors="replace"), error))
            return 0
