"""Limits in the dashboard: setting, changing and deleting them, by whom, and what is told."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from omniq import Limit, Rate, TaskQueue
from omniq.dashboard import EVERYTHING, Permission
from tests.dashboard.support import Client, client_of

_FIELD = re.compile(r'<(?:input|textarea)[^>]* name="(\w+)"(?:[^>]* value="([^"]*)"[^>]*>|[^>]*>([^<]*)</textarea>)')


async def form(client: Client, **query: str) -> dict[str, str]:
    """Return the fields of the page on which a limit is set."""
    answer = await client.get("/limit", params=query)
    assert answer.status_code == 200, answer.text
    return {name: unescape(value or text) for name, value, text in _FIELD.findall(answer.text)}


async def sent(client: Client, fields: Mapping[str, Any]) -> tuple[int, str]:
    answer = await client.send_form("/limit", fields)
    return answer.status_code, unescape(answer.text)


FULL = Limit(
    queue="mail",
    concurrency=50,
    rate=Rate(100, per=60.5, burst=20),
    per_key=Limit(concurrency=2, rate=Rate(1_234_567, per=1_234_567.891)),
    weights={"big": 4.5, "ü\u202e<": 2},
)


async def test_the_queues_show_what_runs_of_how_many_and_what_is_held_back(queue: TaskQueue) -> None:
    @queue.task(queue="mail")
    async def send() -> None: ...

    for key in ("a", "a", "b"):
        await send.using(key=key).aenqueue()
    await send.using(queue="other").aenqueue()
    async with client_of(queue) as client:
        assert "Held back" not in (await client.get("/queues")).text
    await queue.aput_limit(Limit(queue="mail", concurrency=3, per_key=Limit(concurrency=1)))
    storage = (await queue.connections.current()).storage
    assert len(await storage.claim({"mail": 9}, worker="w", lease=60)) == 2
    async with client_of(queue) as client:
        page = (await client.get("/queues")).text
        assert '<td class="number">2/3</td><td class="number">1 key</td>' in page
        assert '<td class="number">-</td><td class="number">-</td>' in page, "one that nothing limits"


async def test_a_limit_that_cannot_be_read_is_shown_and_set_anew(tmp_path: Path) -> None:
    async with TaskQueue(f"sqlite:///{tmp_path}/jobs.db") as queue:
        await queue.aput_limit(Limit(queue="mail", concurrency=5))
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
            connection.execute("""UPDATE "omniq.task_limit" SET body = '{'""")
        async with client_of(queue) as client:
            page = (await client.get("/limits")).text
            assert "it cannot be read; set it anew, or delete it" in page
            assert '<td class="number">0/0</td>' in page
            fields = await form(client, queue="mail")
            assert (fields["concurrency"], fields["revision"]) == ("", "0")
            assert "lets no task start" in (await client.get("/limit", params={"queue": "mail"})).text
            status, _ = await sent(client, {**fields, "concurrency": "7"})
            assert status < 400
            assert [limit.concurrency for limit in await queue.alimits()] == [7]


async def test_a_form_that_is_sent_as_it_is_changes_nothing(queue: TaskQueue) -> None:
    for limit in (FULL, Limit(name="stripe", rate=Rate(3))):
        await queue.aput_limit(limit)
        async with client_of(queue) as client:
            fields = await form(client, **{"queue": limit.queue} if limit.queue else {"name": limit.name or ""})
            assert (await sent(client, fields))[0] == 303
        (stored,) = [one for one in await queue.alimits() if one.id == limit.id]
        assert (stored.concurrency, stored.rate, stored.per_key, stored.weights) == (
            limit.concurrency,
            limit.rate,
            limit.per_key,
            limit.weights,
        )
        assert stored.revision == 2


async def test_a_new_one_is_set_with_what_the_form_says(queue: TaskQueue) -> None:
    async with client_of(queue) as client:
        fields = {**await form(client), "queue": "mail", "count": "10", "key_concurrency": " 2 ", "weights": '{"a": 3}'}
        assert (await sent(client, fields))[0] == 303
        (stored,) = await queue.alimits()
        assert (stored.rate, stored.per_key, stored.weights) == (Rate(10), Limit(concurrency=2), {"a": 3})
        assert not stored.declared
        status, text = await sent(client, {**fields, "count": "11"})
        assert status == 409, "it was there already"
        assert "Nothing was changed" in text
        assert await queue.alimits() == [stored]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ({}, "limits nothing"),
        ({"concurrency": "many"}, "Tasks that run at a time: this is no number: 'many'"),
        ({"concurrency": "0"}, "to stop a queue, pause it"),
        ({"per": "60"}, "Tasks that start: say how many"),
        ({"key_burst": "2"}, "Tasks that start, of each key: say how many"),
        ({"count": "1", "per": "nan"}, "per is a number of seconds"),
        ({"weights": "big: 4"}, "Weights: this is no JSON"),
        ({"weights": "[4]"}, "Weights must be such as"),
        ({"weights": '{"big": 4000}'}, "the weight of key 'big' is a number"),
        ({"queue": "", "concurrency": "1"}, "either a queue or a name"),
        ({"name": "stripe", "concurrency": "1"}, "not both"),
        ({"queue": "not a queue", "concurrency": "1"}, "cannot be used"),
        ({"queue": "", "name": "stripe", "weights": '{"a": 1}'}, "belong to the limit of a queue"),
    ],
)
async def test_what_cannot_be_set_is_said_and_what_was_typed_stays(
    queue: TaskQueue, typed: dict[str, str], told: str
) -> None:
    async with client_of(queue) as client:
        fields = {**await form(client), "queue": "mail", **typed}
        answer = await client.send_form("/limit", fields)
        text = unescape(answer.text)
        assert answer.status_code == 400
        assert told.lower() in text.lower()
        shown = {name: unescape(value or area) for name, value, area in _FIELD.findall(answer.text)}
        assert {name: shown[name] for name in typed} == typed
    assert await queue.alimits() == []


async def test_one_that_was_changed_since_the_page_was_opened_is_left_alone(queue: TaskQueue) -> None:
    await queue.aput_limit(Limit(queue="mail", concurrency=5))
    async with client_of(queue) as client:
        fields = await form(client, queue="mail")
        await queue.aput_limit(Limit(queue="mail", concurrency=6))
        for _ in range(2):  # to send it once more does not help
            status, text = await sent(client, {**fields, "concurrency": "7"})
            assert status == 409
            assert "set or deleted meanwhile" in text
    assert [limit.concurrency for limit in await queue.alimits()] == [6]


async def test_only_who_may_set_limits_has_the_buttons(queue: TaskQueue) -> None:
    @queue.task(queue="mail")
    async def job() -> None: ...

    await job.aenqueue()
    await queue.aput_limit(Limit(queue="mail", concurrency=5))
    for may, number in ((EVERYTHING - {Permission.LIMITS}, 0), (EVERYTHING, 1)):
        async with client_of(queue, may) as client:
            assert (await client.get("/queues")).text.count('aria-label="Limit mail"') == number
            page = (await client.get("/limits")).text
            assert "5 at a time" in page
            assert page.count('aria-label="Change mail"') == number
            assert page.count("/limits/delete") == number
            assert page.count("New limit") == number


async def test_a_store_that_holds_none_says_so(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    @queue.task(queue="mail")
    async def job() -> None: ...

    await job.aenqueue()
    storage = (await queue.connections.current()).storage
    monkeypatch.setattr(storage, "limits", evolve(storage.limits, task_limits=False))
    async with client_of(queue) as client:
        page = (await client.get("/limits")).text
        assert "This store holds no limits" in page
        assert "New limit" not in page
        assert "Limit mail" not in (await client.get("/queues")).text
        answer = await client.get("/limit", params={"queue": "mail"})
        assert (answer.status_code, "holds no limits" in answer.text) == (400, True)


async def test_each_change_is_in_the_audit_log(queue: TaskQueue, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="omniq.audit")
    async with client_of(queue) as client:
        await sent(client, {**await form(client, queue="mail"), "concurrency": "5", "burst": "3", "count": "9"})
        await client.send_form("/limits/delete", {"queue": "mail"})
        gone = await client.send_form("/limits/delete", {"name": "stripe"})
        assert gone.headers["location"] == "/limits"
    assert [record.getMessage() for record in caplog.records if record.name == "omniq.audit"] == [
        "ada did put_limit to queue:mail: 5 at a time, 9 in 1 s (3 at once)",
        "ada did unlimit to queue:mail: True",
        "ada did unlimit to name:stripe: False",
    ]
