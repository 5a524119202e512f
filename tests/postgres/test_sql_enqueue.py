"""Tasks that programs in other languages enqueue: a function in the database, called through psql."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from omniq import Fixed, TaskQueue
from omniq.storage.body import load_content, split_body
from omniq.storage.ids import new_id
from omniq.task import Task, TaskState
from omniq.testing import await_until, wait_until
from tests.docs.pages import DOCS
from tests.postgres.support import never_look, opened, settings_of, take
from tests.servers.postgres import PostgresServer

MANY = 1_000
REFUSED = "22023"
"""The SQLSTATE of a parameter that cannot be used."""


class Client:
    """A program that knows psql and nothing of OmniQ."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.server = server
        self.call = settings_of(url).names.relation("enqueue")

    def psql(self, script: str, user: str = "postgres") -> str:
        """Run a script, up to its first error, and return what it prints."""
        command = [str(self.server.binaries / "psql"), self.server.url.replace("postgres@", f"{user}@")]
        done = subprocess.run(
            [*command, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"],
            input=script.replace("ENQUEUE", self.call),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()


@pytest.fixture
def queue(storage_url: str) -> Iterator[TaskQueue]:
    """Yield a queue whose tables are there."""
    with TaskQueue(storage_url) as queue:
        queue.stats()
        yield queue


@pytest.fixture
def client(server: PostgresServer, storage_url: str, queue: TaskQueue) -> Client:
    return Client(server, storage_url)


def drain(queue: TaskQueue) -> None:
    queue.run_worker(drain=True)


def shown(queue: TaskQueue, task_id: str) -> Task:
    task = queue.get(task_id)
    assert task is not None
    return task


def test_a_task_is_enqueued_by_a_transaction_that_commits_and_by_no_other(client: Client, queue: TaskQueue) -> None:
    ran: list[tuple[str, dict[str, Any]]] = []

    @queue.task(name="shop.confirm", queue="mail")
    def confirm(order: int, to: str, *, when: datetime) -> str:
        ran.append((to, {"order": order, "when": when}))
        return f"to {to}"

    table = f"orders_{new_id()[-8:]}"
    script = f"""
    CREATE TABLE {table} (id bigint);
    BEGIN;
    INSERT INTO {table} VALUES (7);
    SELECT ENQUEUE('mail', 'shop.confirm', '[7, "ä\\n🙂"]',
        '{{"when": {{"$": "datetime", "v": "2030-01-02T03:04:05Z"}}}}');
    COMMIT;
    BEGIN;
    INSERT INTO {table} VALUES (8);
    SELECT ENQUEUE('mail', 'shop.confirm', '[8, "nobody"]', '{{"when": null}}') IS NOT NULL;
    ROLLBACK;
    """
    task_id, called = client.psql(script).splitlines()
    assert called == "t"
    drain(queue)
    assert ran == [("ä\n🙂", {"order": 7, "when": datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)})]
    task = shown(queue, task_id)
    assert (task.state, task.result) == (TaskState.SUCCEEDED, "to ä\n🙂")
    assert client.server.execute(f"SELECT id FROM {table}") == [(7,)]


async def test_a_worker_that_waits_is_woken_by_the_commit(
    server: PostgresServer, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_look(monkeypatch)
    async with opened(storage_url) as store:
        waits = asyncio.create_task(store.wait_for_work(["q"], 600))
        await wait_for_listener(server, storage_url)
        with psycopg.connect(server.url) as connection:
            connection.execute(f"SELECT {settings_of(storage_url).names.relation('enqueue')}('q', 'n')".encode())
            assert await take(store) == []
        async with asyncio.timeout(60):
            await waits
        assert [task.name for task in await take(store)] == ["n"]


async def wait_for_listener(server: PostgresServer, url: str) -> None:
    """Wait until a connection listens, and its owner has looked for work before it sleeps."""
    mark = settings_of(url).names.mark
    listening = "SELECT count(*) FROM pg_stat_activity WHERE query = %s AND state = 'idle'"

    async def listens() -> bool:
        return server.execute(listening, f'LISTEN "omniq_{mark}_work"') != [(0,)]

    await await_until(listens, timeout=60, what="a connection that listens")


def test_a_thousand_in_one_statement_are_stored_in_its_order_and_run(
    client: Client, queue: TaskQueue, storage_url: str
) -> None:
    ran: list[int] = []

    @queue.task(name="note")
    async def note(number: int) -> None:
        ran.append(number)

    ids = client.psql(
        f"SELECT ENQUEUE('default', 'note', jsonb_build_array(n)) FROM generate_series(1, {MANY}) AS n"
    ).split()
    assert len(set(ids)) == MANY
    (stats,) = queue.stats()
    assert stats.counts[TaskState.READY] == MANY
    order = f"SELECT id::text FROM {settings_of(storage_url).names.relation('live')} ORDER BY seq"
    assert [row[0] for row in client.server.execute(order)] == ids
    drain(queue)
    assert sorted(ran) == list(range(1, MANY + 1))


def test_the_body_says_what_the_golden_file_says(client: Client, queue: TaskQueue) -> None:
    task_id = client.psql("""SELECT ENQUEUE('money', 'shop.charge', '[7]', '{"currency": "EUR"}')""")
    golden = split_body((DOCS / "reference" / "wire" / "plain.body").read_bytes())[1]
    task, (header, payload) = shown(queue, task_id), load_content(golden)
    assert (task.queue, task.name, task.serializer) == ("money", "shop.charge", header.serializer)
    assert json.loads(task.payload) == json.loads(payload)


def test_every_option_means_what_it_means_to_a_producer_in_python(client: Client, queue: TaskQueue) -> None:
    @queue.task(name="work")
    def work() -> None: ...

    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    options: Mapping[str, Any] = {
        "priority": -7, "max_retries": 9, "timeout": 2.5, "result_ttl": 60.0, "tags": ["b", "a", "ä\"\\"],
        "headers": {"request": "r-1"},
    }  # fmt: skip
    twin = work.using(**options, retry=Fixed(delay=5), unique="k" * 300, run_at=moment, expires=moment).enqueue()
    wanted = shown(queue, twin.id)
    queue.delete(twin.id)
    given = """'{"priority": -7, "max_retries": 9, "timeout": 2.5, "result_ttl": 60,
        "tags": ["b", "a", "b", "ä\\"\\\\"], "headers": {"request": "r-1"},
        "retry": {"kind": "fixed", "delay": 5, "jitter": 0}, "expires": "%s",
        "run_at": "2030-01-02T05:04:05+02", "delay": null, "unique": "%s", "id": "%s"}'"""
    text = given % (moment.isoformat(), "k" * 300, twin.id)
    assert client.psql(f"SELECT ENQUEUE('default', 'work', options => {text})") == twin.id
    found = shown(queue, twin.id)
    for name in (*options, "id", "queue", "name", "state", "unique", "run_at", "expires_at"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert json.loads(found.retry_spec) == json.loads(wanted.retry_spec)

    # An unique key finds its holder, also one of a producer's in Python, and an id what it was given to.
    again = client.psql(f"""SELECT ENQUEUE('default', 'work', options => '{{"unique": "{"k" * 300}"}}')""")
    assert again == twin.id == work.using(unique="k" * 300).enqueue().id
    assert client.psql(f"""SELECT ENQUEUE('other', 'else', options => '{{"id": "{twin.id.upper()}"}}')""") == twin.id
    assert [stats.queue for stats in queue.stats()] == ["default"]

    later = client.psql("""SELECT ENQUEUE('default', 'work', options => '{"delay": 60, "expires": 3600}')""")
    task = shown(queue, later)
    assert task.state is TaskState.SCHEDULED
    assert task.expires_at is not None
    assert task.expires_at - task.run_at == timedelta(seconds=3540)


WRONG = {
    "'a b', 'n'": 'queue "a b" cannot be used',
    "NULL, 'n'": "queue NULL cannot be used",
    "'q', NULL": "name must be a text of 1 to 500 characters, not NULL",
    "'q', repeat('n', 501)": "name must be a text of 1 to 500 characters",
    "'q', 'n', '{}'": "args must be a JSON array, not object",
    "'q', 'n', '[]', '[]'": "kwargs must be a JSON object, not array",
    "'q', 'n', options => '[]'": "options must be a JSON object, not array",
    """'q', 'n', options => '{"priorty": 1}'""": 'there is no option "priorty"; there are: delay, expires, headers, id',
    """'q', 'n', options => '{"priority": 101}'""": "priority must be a whole number from -100 to 100, not 101",
    """'q', 'n', options => '{"priority": 1.5}'""": "priority must be a whole number",
    """'q', 'n', options => '{"max_retries": "3"}'""": 'max_retries must be a whole number from 0 to 1000000, not "3"',
    """'q', 'n', options => '{"delay": -1}'""": "delay must be a number of seconds from 0 to 3153600000, not -1",
    """'q', 'n', options => '{"timeout": 0}'""": "timeout must be a number of seconds",
    """'q', 'n', options => '{"result_ttl": true}'""": "result_ttl must be a number of seconds",
    """'q', 'n', options => '{"delay": 1, "run_at": "2030-01-02T03:04:05Z"}'""": "either delay or run_at, not both",
    """'q', 'n', options => '{"run_at": 5}'""": "run_at must be a time in ISO 8601 with an offset",
    """'q', 'n', options => '{"run_at": "2030-01-02T03:04:05"}'""": "run_at must be a time in ISO 8601 with an offset",
    """'q', 'n', options => '{"run_at": "2030-02-30T03:04:05Z"}'""": "run_at must be a time in ISO 8601 with an offset",
    """'q', 'n', options => '{"expires": "infinity"}'""": "expires must be a time in ISO 8601 with an offset",
    """'q', 'n', options => '{"unique": true}'""": "unique must be a text of 1 to 500 characters, not true",
    """'q', 'n', options => '{"tags": "a"}'""": "tags must be a JSON array of texts",
    """'q', 'n', options => '{"tags": [1]}'""": "a tag must be a text of 1 to 500 characters, not 1",
    "'q', 'n', options => (SELECT jsonb_build_object('tags', jsonb_agg(i::text)) FROM generate_series(1, 51) AS i)": (
        "tags must be 50 at most, not 51"
    ),
    """'q', 'n', options => '{"headers": {"A": "a"}}'""": "headers must have names of 1 to 64 lower-case letters",
    """'q', 'n', options => '{"headers": {"a": 1}}'""": "headers must be a JSON object of texts",
    """'q', 'n', options => jsonb_build_object('headers', jsonb_build_object('a', repeat('a', 8192)))""": (
        "headers must take 8192 bytes at most"
    ),
    """'q', 'n', options => '{"retry": "fixed"}'""": 'retry must be a JSON object with a text "kind"',
    """'q', 'n', options => '{"id": "7"}'""": 'id must be a UUID as text, not "7"',
}


def test_what_cannot_be_used_is_named_and_nothing_is_stored(client: Client, queue: TaskQueue) -> None:
    with psycopg.connect(client.server.url, autocommit=True) as connection:
        for arguments, reason in WRONG.items():
            with pytest.raises(psycopg.Error) as caught:
                connection.execute(f"SELECT {client.call}({arguments})".encode())
            assert (caught.value.sqlstate, reason in str(caught.value)) == (REFUSED, True), (arguments, caught.value)
    assert queue.stats() == []
    with pytest.raises(RuntimeError, match=f'ERROR:  {REFUSED}: there is no option "dealy"'):
        client.psql("""SELECT ENQUEUE('q', 'n', options => '{"dealy": 1}')""")


@pytest.mark.parametrize("commits", [True, False])
def test_who_asks_for_a_key_of_an_open_transaction_waits_for_its_end(
    client: Client, queue: TaskQueue, commits: bool
) -> None:
    call = f"""SELECT {client.call}('q', 'n', options => '{{"unique": "key"}}')""".encode()
    found: list[str] = []
    with psycopg.connect(client.server.url) as first, psycopg.connect(client.server.url, autocommit=True) as second:
        (held,) = first.execute(call).fetchone() or ()
        waiting = threading.Thread(target=lambda: found.extend(str(row[0]) for row in second.execute(call)))
        waiting.start()
        blocked = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: client.server.execute(blocked, second.info.backend_pid) == [("Lock",)], 60, "that it waits")
        first.commit() if commits else first.rollback()
        waiting.join(60)
    assert (found == [str(held)]) is commits
    assert shown(queue, found[0]).unique == "key"


GRANTS = """
GRANT USAGE ON SCHEMA omniq TO {role};
GRANT SELECT, INSERT ON omniq.{namespace}_task, omniq.{namespace}_live TO {role};
GRANT INSERT ON omniq.{namespace}_delta TO {role};
GRANT USAGE ON SEQUENCE omniq.{namespace}_order TO {role};
"""
OWNERS = """
GRANT USAGE ON SCHEMA omniq TO {role};
ALTER FUNCTION omniq.{namespace}_enqueue SECURITY DEFINER;
REVOKE EXECUTE ON FUNCTION omniq.{namespace}_enqueue FROM PUBLIC;
GRANT EXECUTE ON FUNCTION omniq.{namespace}_enqueue TO {role};
"""


@pytest.mark.parametrize("grants", [GRANTS, OWNERS])
def test_a_role_may_enqueue_and_no_more(client: Client, queue: TaskQueue, storage_url: str, grants: str) -> None:
    page = (DOCS / "backends" / "postgres.md").read_text(encoding="utf-8")
    assert grants.format(role="web", namespace="omniq").strip() in page
    role, namespace = f"role_{new_id()[-8:]}", settings_of(storage_url).names.namespace
    client.psql(f"CREATE ROLE {role} LOGIN; CREATE ROLE {role}_other LOGIN")
    try:
        client.psql(grants.format(role=role, namespace=namespace) + f"GRANT USAGE ON SCHEMA omniq TO {role}_other")
        client.psql(f"CREATE SCHEMA {role} AUTHORIZATION {role}")
        # Whatever else such a role has on its search path.
        hostile = f"""
        CREATE FUNCTION {role}.length(text) RETURNS int LANGUAGE sql AS 'SELECT 1/0';
        SET search_path = {role}, pg_catalog;
        SELECT ENQUEUE('default', 'n', '[1]', options => '{{"unique": "key", "tags": ["a"]}}');
        """
        task_id = client.psql(hostile, role)
        assert shown(queue, task_id).state is TaskState.READY
        for script in (f"DELETE FROM omniq.{namespace}_task", f"UPDATE omniq.{namespace}_live SET priority = 1"):
            with pytest.raises(RuntimeError, match="permission denied"):
                client.psql(script, role)
        with pytest.raises(RuntimeError, match="permission denied"):
            client.psql("SELECT ENQUEUE('default', 'n')", f"{role}_other")
    finally:
        client.psql("".join(f"DROP OWNED BY {name}; DROP ROLE {name};" for name in (role, f"{role}_other")))


def test_a_worker_with_a_key_refuses_it(client: Client, storage_url: str) -> None:
    task_id = client.psql("SELECT ENQUEUE('default', 'work')")
    with TaskQueue(storage_url, signing_key="a key of sixteen bytes or more") as signed:

        @signed.task(name="work")
        def work() -> None:
            raise AssertionError("it ran")

        drain(signed)
        task = shown(signed, task_id)
        assert task.error is not None
        assert (task.state, task.error.type) == (TaskState.FAILED, "PayloadRejected")


def test_a_namespace_has_a_function_of_its_own(server: PostgresServer, storage_url: str) -> None:
    url = f"{storage_url.partition('?')[0]}?namespace=A-b&schema=s{new_id()[-8:]}"
    with TaskQueue(url) as queue:
        queue.stats()
        task_id = Client(server, url).psql("SELECT ENQUEUE('q', 'n')")
        assert shown(queue, task_id).queue == "q"
