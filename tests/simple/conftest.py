"""Makes the stores of the documentation known as if they were installed, to child processes, too."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from build import ProjectBuilder
from pyproject_hooks import quiet_subprocess_runner

from omniq import plugins
from omniq.storage.ids import new_id
from omniq.testing import StorageContract
from tests.servers.mariadb import MariaDbServer
from tests.servers.postgres import QUICK, PostgresServer

DOCS = Path(__file__).parents[2] / "docs"
STORES = ("omniq_mystore", "omniq_simplepg", "omniq_lmdb", "omniq_mysql")
DAILY = {
    "test_a_task_comes_back_as_it_was_enqueued",
    "test_adopted_tasks_are_as_they_were",
    "test_ready_tasks_run_beside_those_that_cannot_be_read",
    "test_no_flow_hangs_whose_tasks_cannot_be_read",
    "test_schedules_fire_beside_those_that_cannot_be_read",
    "test_text_of_any_kind_is_kept",
    "test_bodies_of_any_bytes_are_kept",
    "test_a_key_is_free_once_its_task_has_ended",
    "test_larger_priority_goes_first_and_within_one_the_earlier",
    "test_an_outcome_repeated_after_a_lost_answer_changes_nothing",
    "test_a_schedule_comes_back_as_it_was_stored",
    "test_firing_stores_the_schedule_and_its_tasks",
    "test_of_those_who_enqueue_one_key_one_stores_his_task",
    "test_two_claimers_never_share_a_task",
    "test_nothing_is_lost_when_all_happens_at_once",
}
ENTRY_POINTS = {
    "mystore": "[omniq]\nmystore = omniq_mystore.plugin\n",
    "simplepg": "[omniq.storages]\nsimplepg = omniq_simplepg.storage:Storage\n",
    "lmdb": "[omniq.storages]\nlmdb = omniq_lmdb.storage:LmdbStorage\n",
}


def pytest_itemcollected(item: pytest.Item) -> None:
    # Of the kit what differs most between stores every day, as the official stores run all of it; the rest in the long
    # run.
    if not isinstance(item, pytest.Function):
        return
    if "mariadb" in item.fixturenames or item.name.endswith("[mysql]"):
        item.add_marker(pytest.mark.xdist_group("mariadb"))  # one server for all of them
    if item.cls is not None and issubclass(item.cls, StorageContract) and item.originalname not in DAILY:
        item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def example_stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return folders with the stores."""
    folder = tmp_path_factory.mktemp("installed")
    page = (DOCS / "how-to" / "storage-plugin.md").read_text(encoding="utf-8")
    for name in ("plugin", "storage"):
        (block,) = re.findall(rf"```python\n# omniq_mystore/{name}.py\n(.*?)```", page, re.DOTALL)
        file = folder / "omniq_mystore" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(block, encoding="utf-8")
    # A store that is of use to these tests alone.
    (folder / "omniq_simplepg").mkdir()
    shutil.copy(Path(__file__).with_name("postgres.py"), folder / "omniq_simplepg" / "storage.py")
    for name, entry_points in ENTRY_POINTS.items():
        metadata = folder / f"omniq_{name}-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: omniq-{name}\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text(entry_points)
    # A wheel that is unpacked is installed.
    builder = ProjectBuilder(DOCS / "examples" / "omniq-mysql", runner=quiet_subprocess_runner)
    with ZipFile(builder.build("wheel", tmp_path_factory.mktemp("wheel"))) as wheel:
        wheel.extractall(folder)
    return [str(folder), str(DOCS / "examples" / "omniq-lmdb" / "src")]


# No longer than these tests, as others look at what is installed.
@pytest.fixture(scope="module", autouse=True)
def installed(example_stores: list[str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for path in example_stores:
            patch.syspath_prepend(path)
        patch.setenv("PYTHONPATH", os.pathsep.join([*example_stores, os.environ.get("PYTHONPATH", "")]))
        patch.setattr(plugins, "_default", None)
        yield
    for name in [name for name in sys.modules if name.startswith(STORES)]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres"), QUICK) as running:
        yield running


class Tables:
    """Tables of stores, emptied after a test for the next one: to make them costs more than most tests do.

    :param names: a query for the names of all tables.
    :param execute: runs statements on the server; gives the rows of the last.
    :param quote: what stands around a name.
    """

    def __init__(self, names: str, execute: Callable[..., Sequence[Sequence[Any]]], quote: str = "") -> None:
        self._names, self._execute, self._quote = names, execute, quote
        self._free: list[str] = []

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """Yield a namespace whose tables are empty, or not there yet."""
        name = self._free.pop() if self._free else f"t{new_id().replace('-', '')[-20:]}"
        yield name
        tables = [table for (table,) in self._execute(self._names) if table.startswith(name)]
        kept = {f"{name}_meta", f"{name}_limit_lock"}
        own = [table for table in tables if table.startswith(f"{name}_")]
        self._run(
            *(f"DELETE FROM {{{table}}}" for table in own if table not in kept),
            *(f"UPDATE {{{name}_meta}} SET seq = 0, revision_floor = 0" for _ in own[:1]),
            *(f"DROP TABLE {{{table}}}" for table in tables if table not in own),
        )
        self._free.append(name)

    def _run(self, *statements: str) -> None:
        if statements:
            self._execute(*(text.replace("{", self._quote).replace("}", self._quote) for text in statements))


@pytest.fixture(scope="session")
def postgres_tables(postgres: PostgresServer) -> Tables:
    return Tables(
        "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'",
        lambda *statements: postgres.execute("; ".join(statements)),
        '"',
    )


@pytest.fixture
def postgres_url(postgres: PostgresServer, postgres_tables: Tables) -> Iterator[str]:
    """Yield the URL of an empty store on PostgreSQL."""
    with postgres_tables.namespace() as name:
        yield f"simplepg{postgres.url.removeprefix('postgresql')}?namespace={name}"


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDbServer]:
    with MariaDbServer(tmp_path_factory.mktemp("mariadb")) as running:
        yield running


@pytest.fixture(scope="session")
def mysql_tables(mariadb: MariaDbServer) -> Tables:
    mariadb.execute("CREATE DATABASE shared")
    names = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'shared'"
    return Tables(names, lambda *statements: mariadb.execute("USE shared", *statements), "`")


@pytest.fixture
def shared_mysql_url(mariadb: MariaDbServer, mysql_tables: Tables) -> Iterator[str]:
    """Yield the URL of an empty store in a database that others are in, too."""
    with mysql_tables.namespace() as name:
        yield f"{mariadb.url}/shared?namespace={name}"


@pytest.fixture
def mysql_url(mariadb: MariaDbServer) -> Iterator[str]:
    """Return the URL of an empty database on MariaDB."""
    name = f"t{new_id().replace('-', '')[-20:]}"
    mariadb.execute(f"CREATE DATABASE {name}")
    yield f"{mariadb.url}/{name}"
    mariadb.execute(f"DROP DATABASE {name}")
