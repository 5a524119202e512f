"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scene import Scene


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Give a stage, on an SQLite store unless the test names another one. Its processes end with the test."""
    with Scene(tmp_path, getattr(request, "param", "sqlite")) as scene:
        yield scene
