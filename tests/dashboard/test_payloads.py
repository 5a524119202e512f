"""What tasks carry: shown as it is stored, without its secrets, to those who may see it; and copied."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest
from attrs import define

from omniq import TaskQueue, each
from omniq.dashboard.redaction import HIDDEN, is_secret, redacted, restored
from omniq.storage.ids import new_id
from tests.dashboard.support import client_of

SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "key",
    [
        "password", "Passwort_passwd", "smtp_password", "dbPassword", "pwd", "secret", "clientSecret", "token",
        "access_token", "refreshToken", "api_key", "apiKey", "API-KEY", "x-api-key", "authorization", "Authorization",
        "auth", "x-auth", "proxyAuth", "cookie", "Set-Cookie", "sessionid", "credentials", "private_key", "signature",
        "pin", "cvc", "jwt", "passphrase", "AWS_SECRET_ACCESS_KEY",
    ],
)  # fmt: skip
def test_keys_that_speak_of_secrets(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key", ["author", "authors", "name", "passenger_count", "spin", "pinned", "monkey", "key", "url"]
)
def test_keys_that_do_not(key: str) -> None:
    assert not is_secret(key)


def test_secrets_are_hidden_however_deep_and_in_urls() -> None:
    value = {
        "a": [{"password": SECRET, "n": 1}],
        "token": {"x": SECRET},
        "url": f"redis://u:{SECRET}@h/0",
        "none": None,
    }
    shown = redacted({**value, "secret": None})
    assert SECRET not in json.dumps(shown)
    assert shown["a"][0] == {"password": HIDDEN, "n": 1}
    assert shown["secret"] is None, "that there is none is no secret"


def test_secrets_that_were_left_as_they_were_shown_are_restored() -> None:
    original = {"a": [{"password": SECRET, "n": 1}], "b": 2, "url": f"redis://u:{SECRET}@h/0"}
    edited = redacted(original)
    assert restored(edited, original) == original
    edited["a"][0]["n"], edited["b"] = 5, HIDDEN
    assert restored(edited, original) == {**original, "a": [{"password": SECRET, "n": 5}], "b": HIDDEN}
    edited["a"][0]["password"] = "another"
    assert restored(edited, original)["a"][0]["password"] == "another"
    assert restored({"password": HIDDEN}, {}) == {"password": HIDDEN}


@define
class Card:
    number: str
    cvc: str

    def __attrs_post_init__(self) -> None:
        made.append(self)


made: list[Card] = []


async def _ended_task(queue: TaskQueue) -> str:
    @queue.task(name="charge", max_retries=0)
    async def charge(card: Card, password: str, amount: int = 1) -> dict[str, str]:
        return {"receipt": "r-17", "session_token": SECRET}

    call = charge.using(headers={"x-auth-token": SECRET, "request-id": "req-9"})
    handle = await call.aenqueue(Card("4111", SECRET), SECRET, amount=12)
    async with queue.worker():
        await handle
    return handle.id


async def test_a_task_is_shown_as_it_is_stored_without_its_secrets(queue: TaskQueue) -> None:
    task_id = await _ended_task(queue)
    made.clear()
    async with client_of(queue) as client:
        page = html.unescape((await client.get("/task", params={"id": task_id})).text)
        copy = html.unescape((await client.get("/task/copy", params={"id": task_id})).text)
    assert made == [], "nothing is made into an object of a class"
    assert SECRET not in page + copy
    for text in ('"number": "4111"', f'"cvc": "{HIDDEN}"', "req-9", '"receipt": "r-17"', "12"):
        assert text in page


async def test_arguments_that_are_not_there_yet_are_said_to_be(queue: TaskQueue) -> None:
    @queue.task(name="one")
    async def one(n: int) -> int:
        return n

    @queue.task(name="add")
    async def add(numbers: list[int], factor: int) -> int:
        return sum(numbers) * factor

    handle = await queue.aenqueue_flow(each(one, [1, 2, 3]).then(add, factor=2))
    async with client_of(queue) as client:
        page = html.unescape((await client.get("/task", params={"id": handle.id})).text)
        assert "null stands where 3 results of its flow go when it runs" in page
        answer = await client.send_form("/task/copy", {"id": handle.id, "args": "[[1]]", "kwargs": '{"factor": 2}'})
        assert answer.status_code == 409


async def test_defaults_of_functions_hide_their_secrets(queue: TaskQueue) -> None:
    @queue.task(name="send")
    async def send(to: str, n: int = 3, smtp_password: str = SECRET, token: str | None = None) -> None: ...

    async with client_of(queue) as client:
        page = html.unescape((await client.get("/functions")).text)
    assert f"(to: str, n: int = 3, smtp_password: str = {HIDDEN}, token: str | None = None) -> None" in page


async def test_without_the_permission_nothing_of_it_is_shown(queue: TaskQueue) -> None:
    task_id = await _ended_task(queue)

    @queue.task(name="fails", max_retries=0)
    async def fails(what: str) -> None:
        raise ValueError(f"cannot do {what}")

    failed = await fails.aenqueue("marzipan")
    async with queue.worker():
        with pytest.raises(Exception, match="marzipan"):
            await failed
    async with client_of(queue, {"view"}) as client:
        pages = [(await client.get(path)).text for path in (f"/task?id={task_id}", f"/task?id={failed.id}", "/tasks")]
        assert "ValueError" in pages[1]
        for text in ("4111", "r-17", "req-9", "marzipan", "Traceback"):
            assert text not in "".join(pages)
    async with client_of(queue, {"view", "payload"}) as client:
        assert "marzipan" in (await client.get("/tasks")).text


async def test_a_copy_runs_with_the_arguments_as_they_were_edited(queue: TaskQueue) -> None:
    seen: list[tuple[Any, ...]] = []

    @queue.task(name="send")
    async def send(to: str, n: int, *, password: str) -> None:
        seen.append((to, n, password))

    @queue.task(name="log_in")
    async def log_in(password: str, n: int) -> None:
        seen.append(("log in", n, password))

    original = await send.using(priority=7, tags=("a",), key="ada", limit="smtp").aenqueue("ada", 1, password=SECRET)
    login = await log_in.aenqueue(SECRET, 1)
    async with client_of(queue) as client:
        for wrong in ({"args": '["ada", 1'}, {"args": '{"a": 1}'}, {"args": "[]", "kwargs": "[]"}):
            answer = await client.send_form("/task/copy", {"id": original.id, "kwargs": "{}", **wrong})
            assert answer.status_code == 400
        assert (await queue.acount_tasks()).number == 2
        kwargs = json.dumps({"password": HIDDEN})
        answer = await client.send_form("/task/copy", {"id": original.id, "args": '["grace", 2]', "kwargs": kwargs})
        assert answer.status_code == 303
        copied = await queue.arecord(answer.headers["location"].partition("id=")[2])
        answer = await client.send_form("/task/copy", {"id": login.id, "args": json.dumps([HIDDEN, 2]), "kwargs": "{}"})
        other = answer.headers["location"].partition("id=")[2]
    assert (copied.priority, copied.tags, copied.attempt) == (7, ("a",), 0)
    assert (copied.key, copied.limit) == ("ada", "smtp")
    async with queue.worker():
        await original
        await login
        await queue.handle(copied.id)
        await queue.handle(other)
    assert sorted(seen) == [("ada", 1, SECRET), ("grace", 2, SECRET), ("log in", 1, SECRET), ("log in", 2, SECRET)]


async def test_a_copy_takes_texts_with_characters_that_are_not_shown_as_they_are(queue: TaskQueue) -> None:
    @queue.task(name="send")
    async def send(to: str) -> None: ...

    text = "no-break\xa0space, \u202e, \U000e0001, \x07, \t, \n"
    original = await send.aenqueue(text)
    async with client_of(queue) as client:
        page = (await client.get("/task/copy", params={"id": original.id})).text
        shown = re.search(r'<textarea name="args"[^>]*>(.*?)</textarea>', page, re.DOTALL)
        assert shown is not None
        args = html.unescape(shown[1])
        assert args.replace("\n", "").isprintable()
        fields = {"id": original.id, "args": args.replace("no-break", "edited"), "kwargs": "{}"}
        answer = await client.send_form("/task/copy", fields)
        assert answer.status_code == 303, answer.text
    copied = await queue.arecord(answer.headers["location"].partition("id=")[2])
    assert json.loads(copied.payload) == [[text.replace("no-break", "edited")], {}]


async def test_a_copy_of_what_nobody_signed_is_refused() -> None:
    url = f"memory://{new_id()}"
    async with TaskQueue(url) as forger, TaskQueue(url, signing_key="k" * 32) as queue:

        @forger.task(name="send")
        async def send(to: str) -> None: ...

        forged = await send.aenqueue("ada")
        async with client_of(queue) as client:
            answer = await client.send_form("/task/copy", {"id": forged.id, "args": '["ada"]', "kwargs": "{}"})
            assert answer.status_code == 400
            assert "is not signed" in answer.text
        assert (await queue.acount_tasks()).number == 1


async def test_a_copy_is_signed(queue: TaskQueue) -> None:
    async with TaskQueue(f"memory://{new_id()}", signing_key="k" * 32) as signing:

        @signing.task(name="double")
        async def double(n: int) -> int:
            return 2 * n

        original = await double.aenqueue(1)
        async with client_of(signing) as client:
            answer = await client.send_form("/task/copy", {"id": original.id, "args": "[21]", "kwargs": "{}"})
        async with signing.worker():
            assert await signing.handle(answer.headers["location"].partition("id=")[2]) == 42


async def test_arguments_that_are_no_json_are_named_by_their_size(queue: TaskQueue) -> None:
    async with TaskQueue(f"memory://{new_id()}", serializer="cloudpickle") as pickling:

        @pickling.task(name="job")
        async def job(what: object) -> None: ...

        handle = await job.aenqueue({1, 2})
        async with client_of(pickling) as client:
            page = (await client.get("/task", params={"id": handle.id})).text
            assert "bytes of cloudpickle, which cannot be read here" in page
            answer = await client.send_form("/task/copy", {"id": handle.id})
            assert answer.status_code == 303
        assert (await pickling.acount_tasks()).number == 2
