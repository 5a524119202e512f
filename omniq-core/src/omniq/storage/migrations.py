"""What a store with a schema of its own tells about it, for ``omniq migrate``."""

from __future__ import annotations

from abc import ABC, abstractmethod

from attrs import field, frozen

__all__ = ["Migrated", "Migration"]


@frozen(kw_only=True)
class Migration:
    """One step of a schema."""

    version: int
    """Counted from 1, without gaps."""
    name: str
    """What it brings, in a few words."""
    sql: str = field(repr=False)
    """The statements that do it, for this store's schema and namespace."""
    applied: bool
    """Whether the store has it."""


class Migrated(ABC):
    """A storage that also is one of these has a schema that is migrated. Neither method needs ``open()``."""

    @abstractmethod
    async def migrations(self) -> list[Migration]:
        """Return all steps that this version knows, in order. Changes nothing.

        :raises SchemaMismatch: if the store was migrated by a newer version.
        :raises StorageUnavailable: if it cannot be reached.
        """

    @abstractmethod
    async def migrate(self) -> list[Migration]:
        """Apply what is missing. Safe from many processes at once.

        :return: the steps that this call applied.
        :raises SchemaMismatch: if the store was migrated by a newer version.
        :raises StorageUnavailable: if it cannot be reached, or the role may not change the schema.
        """
