"""The example of a storage plugin, docs/examples/omniq-mysql: built, installed, and run against a real MariaDB."""

from __future__ import annotations

import asyncio
import io
import tokenize
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from omniq.errors import ConfigurationError, SchemaMismatch, StorageUnavailable
from omniq.plugins import default_plugins
from omniq.storage import Enqueued, transitions
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import NewTask, Succeeded
from omniq.testing import wait_until
from tests.cli.program import run_omniq
from tests.servers.mariadb import MariaDbServer

SOURCE = Path(__file__).parents[2] / "docs" / "examples" / "omniq-mysql" / "src" / "omniq_mysql" / "storage.py"

SHOP = """
import os

from omniq import TaskQueue

queue = TaskQueue(os.environ["SHOP_URL"])


@queue.task
def add(a: int, b: int) -> int:
    return a + b
"""


def opened(url: str) -> Any:
    return default_plugins().open_storage(parse_url(url))


def task(**values: Any) -> NewTask:
    return NewTask(**{"id": new_id(), "queue": "q", "name": "n", "body": b"", **values})


# The package


def test_the_wheel_brings_all_that_a_package_has() -> None:
    installed = distribution("omniq-mysql")
    files = {str(file) for file in installed.files or ()}
    assert {"omniq_mysql/py.typed", "omniq_mysql/plugin.py", "omniq_mysql/storage.py"} <= files
    assert any(file.endswith("licenses/LICENSE") for file in files)
    assert "mysql://" in str(installed.metadata.get_payload())  # type: ignore[attr-defined]  # the README
    assert [(entry.group, entry.value) for entry in installed.entry_points] == [("omniq", "omniq_mysql.plugin")]


def test_the_store_has_at_most_a_hundred_lines_of_code() -> None:
    between = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(SOURCE.read_text(encoding="utf-8")).readline):
        is_docstring = token.type == tokenize.STRING and before in between - {tokenize.NL, tokenize.COMMENT}
        if token.type not in between and not is_docstring:
            lines.update(range(token.start[0], token.end[0] + 1))
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token.type
    assert 60 < len(lines) <= 100


# By its commands


def test_the_commands_work_on_it(mysql_url: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)

    def omniq(*arguments: str) -> str:
        done = run_omniq(*arguments, cwd=tmp_path, SHOP_URL=mysql_url)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "omniq-mysql" in omniq("plugins")
    omniq("enqueue", "shop:queue", "add", "1", "2")
    omniq("worker", "shop:queue", "--drain")
    assert '"succeeded": 1' in omniq("stats", mysql_url, "--json")
    doctor = omniq("doctor", mysql_url)
    assert "MariaDB" in doctor
    assert "innodb_flush_log_at_trx_commit = 1" in doctor
    assert "has no schema to migrate" in omniq("migrate", mysql_url)


@pytest.mark.long
def test_the_demo_runs_on_it(mysql_url: str, tmp_path: Path) -> None:
    done = run_omniq("demo", "--url", mysql_url, "--limit", "3", "--workers", "1", cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


# Places


@pytest.mark.parametrize("url", ["mysql://root@localhost", "mariadb:///shop", "mysql://localhost/"])
def test_a_url_without_host_or_database_says_what_is_missing(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"name a host and a database: \w+://host/database"):
        opened(url)


def test_an_unknown_option_is_named_with_the_known() -> None:
    with pytest.raises(
        ConfigurationError, match="unknown option 'ssl'; mysql:// knows ssl_ca, ssl_cert, ssl_key, name"
    ):
        opened("mysql://localhost/shop?ssl=1")


async def test_who_may_not_enter_hears_so_at_once(mariadb: MariaDbServer, mysql_url: str) -> None:
    store = opened(mysql_url.replace("root@", "nobody:hush@"))
    with pytest.raises(StorageUnavailable, match=r"cannot be used: Access denied for user 'nobody'") as caught:
        await store.open()
    assert "hush" not in str(caught.value)

    with pytest.raises(StorageUnavailable, match="cannot be used: Unknown database 'nowhere'"):
        await opened(f"{mariadb.url}/nowhere").open()


async def test_user_password_and_tls_are_taken_from_the_url(mariadb: MariaDbServer, mysql_url: str) -> None:
    mariadb.execute("CREATE OR REPLACE USER 'sh@op' IDENTIFIED BY 'h:u/s?h' REQUIRE SSL", "GRANT ALL ON *.* TO 'sh@op'")
    place = mysql_url.replace("root@", "sh%40op:h%3Au%2Fs%3Fh@")
    store = opened(f"{place}?ssl_ca={mariadb.ca}&namespace=eu")
    await store.open()
    await store.enqueue([task()])
    await store.close()
    database = mysql_url.rpartition("/")[2]
    assert mariadb.execute(f"SELECT queue FROM {database}.eu_task") == [("q",)]


async def test_tables_of_another_version_are_refused(mariadb: MariaDbServer, mysql_url: str) -> None:
    database = mysql_url.rpartition("/")[2]
    store = opened(mysql_url)
    await store.open()
    mariadb.execute(f"UPDATE {database}.omniq_meta SET version = 7")
    with pytest.raises(SchemaMismatch, match="of version 7, and this program knows 1"):
        await store.enqueue([task()])
    mariadb.execute(f"DROP TABLE {database}.omniq_meta")
    with pytest.raises(SchemaMismatch, match="has not the tables"):
        await store._io_threads[True].run(lambda tx: tx.rows("SELECT nothing FROM {task}"), True, False)
    await store.close()


async def test_what_the_tables_cannot_hold_is_refused_at_once(mysql_url: str) -> None:
    store = opened(mysql_url)
    await store.open()
    with pytest.raises(ValueError, match="cannot hold this: Data too long for column 'queue'"):
        await store.enqueue([task(queue="q" * 251)])
    await store.close()


# Several writers


def one_waits(mariadb: MariaDbServer) -> bool:
    return bool(mariadb.execute("SELECT 1 FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"))


async def test_a_key_that_another_takes_meanwhile_is_seen(mariadb: MariaDbServer, mysql_url: str) -> None:
    store = opened(mysql_url)
    await store.open()
    first, second = task(unique="k"), task(unique="k")
    other = store.connect()
    with store.transaction(other, True) as tx:
        transitions.enqueue(tx, [first])
        enqueued = asyncio.create_task(store.enqueue([second]))
        await asyncio.to_thread(wait_until, lambda: one_waits(mariadb), what="the second to wait for the first")
    assert await enqueued == [Enqueued(first.id, False)]
    other.close()
    await store.close()


async def test_the_victim_of_a_deadlock_tries_again(mariadb: MariaDbServer, mysql_url: str) -> None:
    store = opened(mysql_url)
    await store.open()
    await store.enqueue([task(), task()])
    first, second = await store.claim({"q": 2}, worker="w", lease=600)
    other = store.connect()
    with store.transaction(other, True) as tx:
        # The server ends the transaction that has changed less.
        transitions.enqueue(tx, [task(queue="other") for _ in range(100)])
        tx.load([second.id])
        outcomes = [Succeeded(id=one.id, delivery=one.delivery, result=b"") for one in (first, second)]
        finished = asyncio.create_task(store.finish(outcomes))
        await asyncio.to_thread(wait_until, lambda: one_waits(mariadb), what="the worker to wait for the second")
        await asyncio.to_thread(tx.load, [first.id])
    assert await finished == [True, True]
    other.close()
    await store.close()
