"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Give a stage on an SQLite store. Its processes end with the test."""
    with Scene(tmp_path) as scene:
        yield scene
