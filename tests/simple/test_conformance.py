"""The conformance kit, run against the stores of the documentation, which are made of the core's parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from omniq.testing import StorageContract


class TestSqlTx(StorageContract):
    """The store of the page on storage plugins."""

    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"mystore://{tmp_path}/jobs.db"


@pytest.mark.long
class TestPairsTx(StorageContract):
    """The store in docs/examples/omniq-lmdb."""

    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"lmdb://{tmp_path}/jobs"
