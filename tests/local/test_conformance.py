"""The conformance kit, run against the storages of this distribution."""

from __future__ import annotations

from pathlib import Path

import pytest

from omniq.ids import new_id
from omniq.testing import StorageContract


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    def storage_url(self) -> str:
        return f"memory://{new_id()}"


class TestSQLiteStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/jobs.db"


class TestFileStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/jobs"
