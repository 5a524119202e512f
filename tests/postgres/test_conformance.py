"""The conformance kit, run against PostgreSQL."""

from __future__ import annotations

from omniq.testing import StorageContract


class TestPostgresStorage(StorageContract):
    """The fixture ``storage_url`` is the folder's."""
