"""``omniq limits``: what is stored, set and deleted."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import evolve

from omniq import Limit, Rate, TaskQueue
from omniq._client.limits import reconcile_limits
from omniq.cli import main
from omniq.cli.app import load_queue
from omniq.cli.doctor import diagnose
from omniq.cli.exposition import exposed, store_metrics

APP = "tenants:queue"
# The store as an object, as these commands run in this process.
PROGRAM = """
from omniq import TaskQueue
from omniq.storage import Capability
from omniq.storage.urls import parse_url
from omniq_local.memory.storage import MemoryStorage

class HereStorage(MemoryStorage):
    capabilities = MemoryStorage.capabilities | {Capability.SHARED_BETWEEN_PROCESSES}

queue = TaskQueue(HereStorage(parse_url("memory://tenants-of-the-cli", None)))
"""


@pytest.fixture
def tenants(folder: Path) -> Iterator[TaskQueue]:
    (folder / "tenants.py").write_text(PROGRAM, encoding="utf-8")
    with load_queue(APP) as queue:
        for limit in queue.limits():
            queue.unlimit(limit.queue, name=limit.name)
        yield queue


def test_a_limit_is_set_shown_changed_and_deleted(tenants: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["limits", "list", APP]) == 0
    assert "no limits" in capsys.readouterr().out

    assert main(["limits", "set", APP, "mail", "--concurrency", "50", "--key-rate", "10/2"]) == 0
    assert main(["limits", "set", APP, "mail", "--rate", "100/60"]) == 0  # what is not given stays
    assert main(["limits", "set", APP, "--name", "stripe", "--concurrency", "5"]) == 0
    capsys.readouterr()

    assert main(["limits", "list", APP]) == 0
    shown = capsys.readouterr().out
    assert "queue:mail" in shown
    assert "50 at a time, 100 in 60 s, each key 10 in 2 s" in shown
    assert "name:stripe" in shown
    assert main(["limits", "list", APP, "--json"]) == 0
    found = {one["id"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["queue:mail"]["per_key"]["rate"] == {"count": 10, "per": 2.0, "burst": 1}

    assert main(["limits", "delete", APP, "--name", "stripe"]) == 0
    assert main(["limits", "delete", APP, "--name", "stripe"]) == 1
    assert [limit.id for limit in tenants.limits()] == ["queue:mail"]


def test_a_rate_that_is_set_keeps_its_burst_unless_another_is_given(tenants: TaskQueue) -> None:
    def rates() -> tuple[Rate | None, Rate | None]:
        (limit,) = tenants.limits()
        assert limit.per_key is not None
        return limit.rate, limit.per_key.rate

    tenants.put_limit(Limit(queue="mail", rate=Rate(9, burst=4), per_key=Limit(rate=Rate(5, burst=3))))
    assert main(["limits", "set", APP, "mail", "--rate", "100/60", "--key-rate", "2/1"]) == 0
    assert rates() == (Rate(100, per=60, burst=4), Rate(2, burst=3))

    assert main(["limits", "set", APP, "mail", "--rate", "100/60/20", "--key-rate", "2/1/1"]) == 0
    assert rates() == (Rate(100, per=60, burst=20), Rate(2))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["set", APP], "either a queue or"),
        (["set", APP, "mail", "--name", "stripe", "--concurrency", "1"], "either a queue or"),
        (["set", APP, "mail"], "limits nothing"),
        (["set", APP, "--name", "stripe", "--key-concurrency", "1"], "belong to the limit of a queue"),
        (["set", APP, "mail", "--rate", "often"], "no rate such as 100/60"),
        (["set", APP, "mail", "--rate", "1/1/1/1"], "no rate such as 100/60"),
        (["set", APP, "mail", "--rate", "1/1/"], "no rate such as 100/60"),
        (["delete", APP], "either a queue or"),
    ],
)
def test_what_cannot_be_set_is_wrong_usage(
    tenants: TaskQueue, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    try:
        code = main(["limits", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)

    assert code == 2
    assert words in capsys.readouterr().err
    assert tenants.limits() == []


def test_a_declared_limit_says_whose_it_is(tenants: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    tenants.limit("mail", per_key=Limit(concurrency=1))
    tenants.run(tenants.stored_schedules.reconcile(APP))

    assert main(["limits", "list", APP]) == 0

    assert f"each key 1 at a time  {APP}" in capsys.readouterr().out


def test_stats_and_the_list_show_what_runs_of_how_many_and_what_is_held_back(
    tenants: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    @tenants.task(queue="mail")
    def send() -> None: ...

    tenants.put_limit(Limit(queue="mail", concurrency=9, per_key=Limit(concurrency=1)))
    tenants.put_limit(Limit(name="api", concurrency=2))
    ids = [send.using(key="tenant-1").enqueue().id for _ in range(2)]
    ids += [send.using(limit="api").enqueue().id for _ in range(3)]

    def shown(*command: str) -> str:
        assert main([*command, APP]) == 0
        return capsys.readouterr().out

    async def claim() -> None:
        storage = (await tenants.connections.current()).storage
        assert len(await storage.claim({"mail": 9}, worker="w", lease=60)) == 3

    tenants.run(claim())
    header, *rows = shown("stats").splitlines()
    assert "limit  held back" in header
    (mail,) = [row for row in rows if row.startswith("mail ")]
    assert "3/9      1 key" in mail
    found = next(one for one in json.loads(shown("stats", "--json")) if one["queue"] == "mail")
    assert found["limit"] == {"running": 3, "concurrency": 9, "next_start": None, "held_keys": 1}
    assert shown("queues", "list").splitlines()[0] == header
    assert "3/9      1 key" in shown("stats", "--watch", "--count", "1")
    listed = {row.split()[0]: row.split() for row in shown("limits", "list").splitlines()}
    assert listed["name:api"][-3:] == ["2", "1", "key"]
    assert listed["queue:mail"][-3:] == ["3", "1", "key"]
    tenants.put_limit(Limit(queue="mail", concurrency=2))
    assert shown("limits", "list").splitlines()[-1].split()[-2:] == ["3", "all"]

    tenants.select(ids=ids).delete()


def test_metrics_have_what_runs_under_limits(tenants: TaskQueue) -> None:
    tenants.put_limit(Limit(queue="quiet", per_key=Limit(concurrency=1)))
    tenants.put_limit(Limit(name="quiet", concurrency=2))
    now = datetime(2025, 3, 1, tzinfo=UTC)

    lines = exposed(store_metrics([], [], [], now, tenants.limit_usage())).body.splitlines()

    assert 'omniq_limit_running{limit="queue:quiet"} 0.0' in lines
    assert 'omniq_limit_held_keys{limit="name:quiet"} 0.0' in lines
    assert [line for line in lines if line.startswith("omniq_limit_concurrency")] == [
        'omniq_limit_concurrency{limit="name:quiet"} 2.0'
    ]


def test_the_doctor_warns_of_a_limit_that_is_stored_otherwise_than_it_is_declared(
    tenants: TaskQueue,
) -> None:
    tenants.limit("mail", concurrency=5)
    tenants.run(tenants.stored_schedules.reconcile("first:queue"))
    assert tenants.run(diagnosed(tenants)) == []
    tenants.declared_limits.clear()
    tenants.limit("mail", concurrency=6)

    (message,) = tenants.run(diagnosed(tenants))
    assert message.endswith("queue mail is not what the code declares: what first:queue declares is stored, and holds")

    tenants.put_limit(Limit(queue="mail", concurrency=7))
    (message,) = tenants.run(diagnosed(tenants))
    assert "what was set at run time is stored" in message


async def diagnosed(queue: TaskQueue) -> list[str]:
    return [one.message for one in await diagnose(queue) if one.subject == "limits"]


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[TaskQueue]:
    """A queue whose one limit, of queue mail, cannot be read; a task waits for it."""
    with TaskQueue(f"sqlite:///{tmp_path}/jobs.db") as queue:
        queue.put_limit(Limit(queue="mail", concurrency=5, per_key=Limit(concurrency=1)))
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
            assert connection.execute("""UPDATE "omniq.task_limit" SET body = '{'""").rowcount == 1
        yield queue


@pytest.mark.parametrize("mend", [["set", "--concurrency", "3"], ["delete"]], ids=["set", "deleted"])
def test_a_limit_that_cannot_be_read_is_shown_and_mended(
    damaged: TaskQueue, capsys: pytest.CaptureFixture[str], mend: list[str]
) -> None:
    @damaged.task(queue="mail")
    def send() -> None: ...

    task_id = send.enqueue().id
    url = damaged.url
    assert main(["limits", "list", url]) == 0
    assert "nothing: it cannot be read; set it anew, or delete it" in capsys.readouterr().out
    assert main(["limits", "list", url, "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["id"], shown["concurrency"]) == ("queue:mail", 0)
    assert main(["tasks", "why", url, task_id]) == 0
    assert "the limit of queue 'mail' cannot be read, and lets no task start" in capsys.readouterr().out
    assert main(["doctor", url]) == 1
    assert "omniq limits set" in capsys.readouterr().out

    action, *given = mend
    assert main(["limits", action, url, "mail", *given]) == 0
    assert main(["limits", "list", url]) == 0
    assert "cannot be read" not in capsys.readouterr().out
    assert main(["doctor", url]) == 0
    assert [limit.concurrency for limit in damaged.limits()] == [int(one) for one in given[1:]]


def test_a_worker_that_declares_it_mends_a_limit_that_cannot_be_read(
    damaged: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    declared = damaged.limit("mail", concurrency=2)

    async def reconcile() -> None:
        await reconcile_limits(damaged, (await damaged.connections.current()).storage, "shop:queue")

    damaged.run(reconcile())
    assert [evolve(limit, revision=0, app=None) for limit in damaged.limits()] == [declared]
    assert "what the code declares takes its place" in caplog.text
