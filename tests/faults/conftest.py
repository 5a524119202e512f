"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scene import Scene
from tests.faults.stages import FileStage, Servers, ServerStage, SqliteStage, Stage
from tests.servers.proxy import Proxy


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Yield the servers of this test process."""
    servers = Servers(tmp_path_factory.mktemp)
    yield servers
    servers.close()


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """Yield a store of the kind that the test names, else a new SQLite database."""
    kind = getattr(request, "param", "sqlite")
    if kind == "sqlite":
        yield SqliteStage(tmp_path)
    elif kind == "file":
        yield FileStage(tmp_path)
    else:
        server = request.getfixturevalue("servers").get(kind)
        with Proxy(server.port) as proxy:
            yield ServerStage(kind, server, proxy)


@pytest.fixture
def server_stage(stage: Stage) -> ServerStage:
    """Return the same where it is on a server."""
    assert isinstance(stage, ServerStage)
    return stage


@pytest.fixture
def scene(tmp_path: Path, stage: Stage) -> Iterator[Scene]:
    """Yield a scene on that store. Its processes end with the test."""
    with Scene(tmp_path, stage) as scene:
        yield scene
