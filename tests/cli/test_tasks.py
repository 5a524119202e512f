"""``omniq tasks``: finding tasks, looking at one, and cancelling, retrying and deleting many."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from omniq import Progress, TaskHandle, TaskQueue, TaskState
from omniq.cli import main
from omniq.cli.app import load_queue, store_of
from omniq.storage import Lease
from omniq.storage.ids import new_id
from omniq.task import NewTask, StoredTask
from tests.bodies import body_of
from tests.cli.program import run_omniq

URL = "sqlite:///jobs.db"
NOWHERE = "0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e"


@pytest.fixture
def shop(folder: Path) -> Iterator[TaskQueue]:
    with load_queue("shop:queue") as queue:
        yield queue


def enqueue(shop: TaskQueue, name: str, *args: object, **options: Any) -> str:
    return shop.functions[f"shop.{name}"].using(**options).enqueue(*args).id


def work_off(shop: TaskQueue, *ids: str) -> None:
    """Run a worker until these tasks have ended."""

    async def work() -> None:
        async with shop.worker(grace=0, scheduler=False):
            handles: list[TaskHandle[Any]] = [shop.handle(task_id) for task_id in ids]
            await asyncio.gather(*(handle.aresult() for handle in handles), return_exceptions=True)
        await shop.aclose()

    asyncio.run(work())


def claim(shop: TaskQueue, queue: str) -> StoredTask:
    """Take a task as a worker does, and run it for ever."""

    async def take() -> StoredTask:
        storage = await store_of(shop)
        (task,) = await storage.claim({queue: 1}, worker="the-worker", lease=600)
        return task

    return shop.run(take())


def states(shop: TaskQueue, ids: Sequence[str]) -> list[TaskState | None]:
    return [None if (task := shop.get(task_id)) is None else task.state for task_id in ids]


@pytest.fixture
def mixed(shop: TaskQueue) -> dict[str, str]:
    """One task in each state, by its state."""
    ended = {"succeeded": enqueue(shop, "resize", Path("a.png")), "failed": enqueue(shop, "burn", "the cake")}
    work_off(shop, *ended.values())
    running = enqueue(shop, "sleep", 60)
    claim(shop, "slow")
    cancelled = enqueue(shop, "talk")
    shop.cancel(cancelled)
    return {
        **ended,
        "running": running,
        "cancelled": cancelled,
        "scheduled": enqueue(shop, "add", 1, 2, delay=600, tags=["order-17"]),
        "ready": enqueue(shop, "add", 1, 2),
    }


# List


@pytest.mark.parametrize("app", ["shop:queue", URL])
def test_a_list_has_a_row_for_each_task_the_latest_first(
    app: str, mixed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "list", app]) == 0

    header, *rows = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert header == ["id", "state", "name", "queue", "attempts", "when", "error"]
    assert [row[0] for row in rows] == [task_id[-12:] for task_id in sorted(mixed.values(), reverse=True)]
    by_state = {row[1]: row for row in rows}
    assert by_state["scheduled"][2:] == ["shop.add", "default", "0/1", "in 9 min", "-"]
    assert re.fullmatch(r"for \d+ s", by_state["ready"][5])
    assert by_state["running"][2:5] == ["shop.sleep", "slow", "1/1"]
    assert re.fullmatch(r"for \d+ s", by_state["running"][5])
    assert re.fullmatch(r"\d+ s ago", by_state["succeeded"][5])
    assert by_state["failed"][4] == "1/1"
    assert by_state["failed"][6] == "RuntimeError: the cake"


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["--state", "failed"], ["failed"]),
        (["--queue", "slow"], ["running"]),
        (["--name", "shop.add"], ["ready", "scheduled"]),
        (["--name", "add"], ["ready", "scheduled"]),
        (["--name", "unheard-of"], []),
        (["--tag", "order-17"], ["scheduled"]),
        (["--name", "add", "--state", "ready"], ["ready"]),
        (["--state", "failed,cancelled"], ["cancelled", "failed"]),
        (["--state", "failed, running", "--queue", "slow"], ["running"]),
        (["--after", "2999-01-31T09:00"], []),
        (["--before", "2999-01-31T09:00", "--after", "2001-01-31T09:00+02:00", "--tag", "order-17"], ["scheduled"]),
        (["--before", "2001-01-31"], []),
    ],
)
def test_filters_choose_among_the_tasks(
    filters: list[str], found: list[str], mixed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "list", "shop:queue", "--json", *filters]) == 0

    answer = json.loads(capsys.readouterr().out)
    assert [task["id"] for task in answer["tasks"]] == [mixed[state] for state in found]
    assert answer["cursor"] is None


def test_the_last_line_of_a_page_leads_to_the_next_page(shop: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [enqueue(shop, "talk") for _ in range(5)]
    seen: list[str] = []
    more: list[str] = []
    for expected in (2, 2, 1):
        assert main(["tasks", "list", "shop:queue", "--limit", "2", *more]) == 0
        header, *rows = capsys.readouterr().out.splitlines()
        assert header.startswith("id ")
        if expected == 2:
            more = [rows.pop().removeprefix("there are more: ")]
        assert len(rows) == expected
        seen += [row.split()[0] for row in rows]

    assert seen == [task_id[-12:] for task_id in ids[::-1]]


def test_a_list_is_short_unless_all_are_asked_for(shop: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    talk = shop.functions["shop.talk"]
    ids = [handle.id for handle in shop.enqueue_many([talk.call() for _ in range(1100)])]

    assert main(["tasks", "list", URL]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 25 + 1
    assert main(["tasks", "list", URL, "--all"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("id ")
    assert [row.split()[0] for row in rows] == [task_id[-12:] for task_id in ids[::-1]]
    assert main(["tasks", "list", URL, "--all", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [task["id"] for task in answer["tasks"]] == ids[::-1]
    assert answer["cursor"] is None


@pytest.mark.usefixtures("shop")
def test_a_store_without_tasks_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "list", "shop:queue"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "no such tasks\n"
    assert captured.err == "omniq: note: looked in namespace omniq of sqlite:///jobs.db\n"
    assert main(["tasks", "list", "shop:queue", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"tasks": [], "cursor": None}


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("url", ["sqlite:///jobs.db", "file://{folder}/jobs"])
def test_what_finds_nothing_names_where_it_looked_and_what_else_is_there(
    url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = url.format(folder=folder)
    with TaskQueue(url, namespace="Shop_2") as other:

        @other.task
        def talk() -> None: ...

        task_id = talk.enqueue().id
    place = rf"looked in namespace omniq of {re.escape(url)}; there, too: namespace Shop_2 \(\?namespace=NAME\)\n"

    for command in ("tasks list", "stats", "queues list", "schedules list", "flows list", "limits list"):
        assert main([*command.split(), url]) == 0
        assert re.fullmatch(f"omniq: note: {place}", capsys.readouterr().err), command
    of_one = "tasks show", "tasks cancel", "flows show", "limits delete", "schedules show", "schedules pause"
    for command in (*of_one, "queues resume"):
        assert main([*command.split(), url, task_id]) == 1
        assert re.search(place, capsys.readouterr().err), command
    assert main(["tasks", "list", f"{url}?namespace=Shop_2"]) == 0
    assert capsys.readouterr().err == ""


def test_a_task_can_be_named_by_the_end_of_its_id(shop: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = enqueue(shop, "talk"), enqueue(shop, "talk")

    assert main(["tasks", "show", "shop:queue", first[-12:]]) == 0
    assert first in capsys.readouterr().out
    assert main(["tasks", "cancel", URL, first[-12:], second]) == 0
    assert {shop.handle(task_id).task().state for task_id in (first, second)} == {TaskState.CANCELLED}
    capsys.readouterr()
    assert main(["tasks", "retry", URL, second[-12:], "000000000000"]) == 1
    assert "there is no task '000000000000'" in capsys.readouterr().err
    assert shop.handle(second).task().state is TaskState.READY


def test_a_short_id_is_looked_for_among_the_latest_tasks(
    shop: TaskQueue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = shop.functions["shop.talk"]
    oldest, *_ = shop.enqueue_many([talk.call() for _ in range(10)])
    monkeypatch.setattr("omniq.cli.short_ids.PAGE", 3)

    assert main(["tasks", "show", URL, oldest.id[-12:]]) == 0
    monkeypatch.setattr("omniq.cli.short_ids.MOST_PAGES", 2)
    assert main(["tasks", "show", URL, oldest.id[-12:]]) == 1
    assert f"none of the latest 6 tasks has an id that ends in {oldest.id[-12:]}" in capsys.readouterr().err


def test_the_error_of_a_list_is_its_first_line_and_of_bounded_length(
    shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    work_off(shop, enqueue(shop, "burn", "the \x1b[31mcake\nand more"), enqueue(shop, "burn", "x" * 5000))

    assert main(["tasks", "list", URL]) == 0
    _, long, short = capsys.readouterr().out.splitlines()
    assert short.endswith(r"  RuntimeError: the \x1b[31mcake")
    assert len(long) < 400
    assert long.endswith("x…")


def test_a_name_from_the_store_cannot_command_the_terminal(
    store: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    @store.task(name="evil\x1b]0;gotcha\x07\n")
    def evil() -> None: ...

    evil.enqueue()

    assert main(["tasks", "list", URL]) == 0
    assert r"evil\x1b]0;gotcha\x07\n" in capsys.readouterr().out.splitlines()[1]


# Show


def details(text: str) -> dict[str, str]:
    """Read ``label  value`` lines up to the first empty line."""
    lines = text.partition("\n\n")[0].splitlines()
    pairs = [re.split("  +", line, maxsplit=1) for line in lines]
    return {pair[0]: pair[1] for pair in pairs}


def test_a_task_of_the_application_is_shown_with_its_values(
    mixed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "show", "shop:queue", mixed["succeeded"]]) == 0

    shown = details(capsys.readouterr().out)
    assert shown["task"] == mixed["succeeded"]
    assert shown["name"] == "shop.resize"
    assert re.fullmatch(r"succeeded \d+ s ago", shown["state"])
    assert shown["arguments"] == "PosixPath('a.png')"
    assert shown["result"] == "PosixPath('a.200.png')"
    assert shown["attempts"] == "1 of 1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+ \(\d+ s ago\)", shown["finished"])


def test_without_the_application_values_are_shown_as_stored(
    mixed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "show", URL, mixed["succeeded"]]) == 0

    shown = details(capsys.readouterr().out)
    assert shown["arguments"] == '{"$": "path", "v": "a.png"}  (as stored)'
    assert shown["result"] == '{"$": "path", "v": "a.200.png"}  (as stored)'


def test_a_failure_is_shown_with_its_traceback(mixed: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "show", URL, mixed["failed"]]) == 0

    text = capsys.readouterr().out
    assert details(text)["error"] == "RuntimeError: the cake"
    traceback = text.partition("\n\n")[2]
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert "raise RuntimeError(text)" in traceback
    assert traceback.endswith("RuntimeError: the cake\n")


def test_a_task_is_shown_with_the_errors_of_its_earlier_attempts(
    mixed: dict[str, str], shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.retry(mixed["failed"])
    work_off(shop, mixed["failed"])

    assert main(["tasks", "show", URL, mixed["failed"]]) == 0
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("history  "))
    assert len(lines[at:]) == 2
    for line in lines[at:]:
        assert re.search(r"  1\. failed \d+ s ago after \d+\.\d s on \S+: RuntimeError: the cake$", line)

    assert main(["tasks", "show", URL, mixed["failed"], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [past["outcome"] for past in told["history"]] == ["failed", "failed"]
    assert told["history"][1]["error"] == told["error"]
    assert told["history"][1]["worker"] == told["worker"]
    assert told["history"][1]["started_at"] == told["started_at"]


def test_a_running_task_is_shown_with_its_worker_and_progress(
    shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    task_id = enqueue(shop, "sleep", 60, unique="only-one", tags=["a", "b"], priority=7, timeout=90)
    task = claim(shop, "slow")

    async def report() -> None:
        progress = Progress(done=3, total=12, note="half\x1b[31m way")
        await (await store_of(shop)).set_progress({Lease(task_id, task.delivery): progress})

    shop.run(report())
    shop.cancel(task_id)

    assert main(["tasks", "show", "shop:queue", task_id]) == 0
    shown = details(capsys.readouterr().out)
    assert re.fullmatch(r"running for \d+ s, asked to stop", shown["state"])
    assert shown["worker"] == "the-worker"
    assert shown["progress"] == r"3 of 12 (25%): half\x1b[31m way"
    assert shown["arguments"] == "60"
    assert (shown["unique"], shown["tags"], shown["priority"]) == ("only-one", "a, b", "7")
    assert shown["timeout"] == "1 min 30 s"


def test_a_long_argument_is_cut_for_people_only(shop: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    task_id = enqueue(shop, "burn", "x" * 10_000)

    assert main(["tasks", "show", "shop:queue", task_id]) == 0
    assert details(capsys.readouterr().out)["arguments"].endswith("x… (10,002 characters; --json shows all)")
    assert main(["tasks", "show", "shop:queue", task_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["args"] == ["x" * 10_000]


def test_arguments_cannot_command_the_terminal(shop: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    task_id = enqueue(shop, "burn", "a\x9b2J\u202e")

    assert main(["tasks", "show", URL, task_id]) == 0
    assert details(capsys.readouterr().out)["arguments"] == r'"a\x9b2J\u202e"  (as stored)'


def test_why_a_task_waits_is_said_reason_by_reason_and_shown_with_the_rest(
    mixed: dict[str, str], shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.pause("default")
    last = enqueue(shop, "talk")

    for app in ("shop:queue", URL):
        assert main(["tasks", "why", app, last[-12:]]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "its queue 'default' is paused: omniq queues resume lets it go on",
            "no worker is alive: start one with omniq worker",
            "up to 1 ready task of queue 'default' is ahead of it",
        ]
    assert main(["tasks", "show", URL, last]) == 0
    assert details(capsys.readouterr().out)["why"] == "its queue 'default' is paused: omniq queues resume lets it go on"
    assert main(["tasks", "show", URL, mixed["running"]]) == 0
    assert details(capsys.readouterr().out)["why"].startswith("it runs on worker the-worker since ")
    assert main(["tasks", "show", URL, mixed["failed"]]) == 0
    assert "why" not in details(capsys.readouterr().out)  # its state, its error and its times say it all


def test_why_a_task_waits_is_said_to_programs(mixed: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "why", URL, mixed["scheduled"], "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["kind"], second["kind"]) == ("delayed", "no worker")
    assert first["fields"] == {"at": shown_at(first), "error": None}
    assert first["text"].startswith("it waits for its time: it is due at ")
    assert main(["tasks", "show", URL, mixed["scheduled"], "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [reason["kind"] for reason in shown["why"]] == ["delayed", "no worker"]
    assert shown["run_at"] == first["fields"]["at"]


def shown_at(reason: dict[str, Any]) -> str:
    at: str = reason["fields"]["at"]
    assert datetime.fromisoformat(at).tzinfo is not None
    return at


@pytest.mark.usefixtures("mixed")
def test_why_of_a_task_that_is_not_there_fails_and_says_where_it_looked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "why", URL, NOWHERE]) == 1
    assert f"{NOWHERE}" in (said := capsys.readouterr().err)
    assert "looked in namespace omniq of sqlite:///jobs.db" in said


def test_json_shows_everything(mixed: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "show", "shop:queue", mixed["succeeded"], "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert main(["tasks", "show", URL, mixed["succeeded"], "--json"]) == 0
    unknown = json.loads(capsys.readouterr().out)

    assert (known["args"], known["kwargs"], known["decoded"], known["result"]) == (["a.png"], {}, True, "a.200.png")
    assert unknown["decoded"] is False
    assert unknown["args"] == [{"$": "path", "v": "a.png"}]
    assert known["state"] == "succeeded"
    assert known["finished_at"] >= known["started_at"] >= known["created_at"]
    assert known["error"] is None
    different = {"args", "result", "decoded", "why"}  # which says how long ago
    assert {key: known[key] for key in known.keys() - different} == {
        key: unknown[key] for key in unknown.keys() - different
    }
    assert main(["tasks", "show", URL, mixed["failed"], "--json"]) == 0
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["type"], error["message"]) == ("RuntimeError", "the cake")
    assert error["traceback"].startswith("Traceback")


def test_arguments_that_only_another_serializer_reads_are_left_alone(
    shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    order = NewTask(id=new_id(), queue="default", name="shop.add", body=body_of(b"\x80\x04.", serializer="pickled"))

    async def store() -> None:
        await (await store_of(shop)).enqueue([order])

    shop.run(store())
    for app in ("shop:queue", URL):
        assert main(["tasks", "show", app, order.id]) == 0
        assert details(capsys.readouterr().out)["arguments"] == "3 bytes of pickled, which cannot be read here"
        assert main(["tasks", "show", app, order.id, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["args"], shown["kwargs"], shown["decoded"]) == (None, None, False)


def test_arguments_of_an_older_version_of_the_function_are_shown_as_stored(
    store: TaskQueue, shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    def older(text: str) -> None: ...

    task_id = store.task(name="shop.add")(older).enqueue("one").id

    assert main(["tasks", "show", "shop:queue", task_id]) == 0
    assert details(capsys.readouterr().out)["arguments"] == '"one"  (as stored)'


# Cancel, retry, delete


def test_named_tasks_are_cancelled_and_the_rest_is_told(
    shop: TaskQueue, mixed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = [mixed["ready"], mixed["failed"], NOWHERE, mixed["running"], mixed["scheduled"], mixed["ready"]]

    assert main(["tasks", "cancel", "shop:queue", *named]) == 1

    captured = capsys.readouterr()
    assert captured.out == "cancelled 2 tasks (1 scheduled, 1 ready); asked 1 running task to stop\n"
    assert captured.err.splitlines() == [
        f"omniq: error: task {mixed['failed']} is failed, and cannot be cancelled",
        f"omniq: error: there is no task '{NOWHERE}'",
    ]
    assert states(shop, [mixed["ready"], mixed["scheduled"]]) == [TaskState.CANCELLED] * 2
    running = shop.get(mixed["running"])
    assert running is not None
    assert running.cancel_requested


def test_a_task_that_ended_in_vain_is_retried(
    shop: TaskQueue, mixed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "retry", URL, mixed["failed"], mixed["cancelled"]]) == 0
    assert capsys.readouterr().out == "retried 2 tasks (1 failed, 1 cancelled)\n"
    assert states(shop, [mixed["failed"], mixed["cancelled"]]) == [TaskState.READY] * 2


def test_a_task_is_deleted_unless_it_runs(
    shop: TaskQueue, mixed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "delete", URL, mixed["failed"]]) == 0
    assert capsys.readouterr().out == "deleted 1 task\n"
    assert main(["tasks", "delete", URL, mixed["running"]]) == 1
    captured = capsys.readouterr()
    assert captured.out == "deleted no tasks\n"
    assert captured.err == f"omniq: error: task {mixed['running']} is running, and cannot be deleted\n"
    assert states(shop, [mixed["failed"], mixed["running"]]) == [None, TaskState.RUNNING]


def test_a_retry_that_a_unique_key_forbids_says_so(shop: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    first = enqueue(shop, "talk", unique="one")
    shop.cancel(first)
    enqueue(shop, "talk", unique="one")

    assert main(["tasks", "retry", URL, first]) == 1
    assert capsys.readouterr().err == (
        f"omniq: error: task {first} was not retried: it changed meanwhile, or a live task has its unique key 'one'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "touched", "text"),
    [
        (["cancel", "--name", "add"], ["scheduled", "ready"], "cancel{led} 2 tasks (1 scheduled, 1 ready)"),
        (["cancel", "--tag", "order-17"], ["scheduled"], "cancel{led} 1 task"),
        (["cancel", "--queue", "slow"], [], "ask{ed} 1 running task to stop"),
        (["retry", "--queue", "default"], ["failed"], "retr{ied} 1 task"),
        (["retry", "--state", "cancelled"], ["cancelled"], "retr{ied} 1 task"),
        (["retry", "--name", "resize"], [], "retr{ied} no tasks"),
        (["delete", "--state", "succeeded"], ["succeeded"], "delete{d} 1 task"),
        (["delete", "--queue", "slow"], [], "delete{d} no tasks"),
        (
            ["delete", "--queue", "default"],
            ["scheduled", "ready", "succeeded", "failed", "cancelled"],
            "delete{d} 5 tasks (1 scheduled, 1 ready, 1 succeeded, 1 failed, 1 cancelled)",
        ),
    ],
)
def test_filters_choose_what_is_touched_and_a_dry_run_touches_nothing(
    arguments: list[str],
    touched: list[str],
    text: str,
    shop: TaskQueue,
    mixed: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    action, *filters = arguments
    before = dict(zip(mixed, states(shop, list(mixed.values())), strict=True))

    assert main(["tasks", action, "shop:queue", *filters, "--dry-run"]) == 0
    would = re.sub(r"^(retr)?(\w*)\{\w+\}", lambda found: "retry" if found[1] else found[2], text)
    assert capsys.readouterr().out == f"would {would}\n"
    assert dict(zip(mixed, states(shop, list(mixed.values())), strict=True)) == before

    assert main(["tasks", action, "shop:queue", *filters]) == 0
    assert capsys.readouterr().out == re.sub(r"[{}]", "", text) + "\n"
    after = dict(zip(mixed, states(shop, list(mixed.values())), strict=True))
    assert [state for state in mixed if after[state] != before[state]] == [state for state in mixed if state in touched]


def test_scheduled_tasks_are_run_now_by_filter_or_id(
    shop: TaskQueue, mixed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "run-now", URL, "--name", "shop.add", "--dry-run"]) == 0
    assert main(["tasks", "run-now", URL, "--name", "shop.add"]) == 0
    assert capsys.readouterr().out == "would run-now 1 task\nmade ready 1 task\n"
    assert states(shop, [mixed["scheduled"]]) == [TaskState.READY]
    assert main(["tasks", "run-now", URL, mixed["failed"]]) == 1
    assert f"task {mixed['failed']} is failed, and cannot be made ready" in capsys.readouterr().err


def test_a_dry_run_with_ids_tells_what_would_not_work(
    shop: TaskQueue, mixed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "retry", URL, mixed["failed"], mixed["ready"], NOWHERE, "--dry-run"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "would retry 1 task\n"
    assert captured.err.count("\n") == 2
    assert states(shop, [mixed["failed"]]) == [TaskState.FAILED]


def test_any_number_of_tasks_is_touched_in_steps(
    shop: TaskQueue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq._client.selection.STEP", 2)
    monkeypatch.setattr("omniq.cli.task_control.READ_AT_ONCE", 2)
    ids = [enqueue(shop, "talk", tags=["x"]) for _ in range(5)]

    assert main(["tasks", "cancel", URL, "--tag", "x"]) == 0
    assert main(["tasks", "retry", URL, "--tag", "x", "--state", "cancelled"]) == 0
    assert main(["tasks", "delete", URL, *ids]) == 0
    assert capsys.readouterr().out.splitlines() == ["cancelled 5 tasks", "retried 5 tasks", "deleted 5 tasks"]
    assert states(shop, ids) == [None] * 5


# Mistakes


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["show", URL, NOWHERE], 1, f"no task '{NOWHERE}' in this store: it was deleted, "),
        (["show", URL, "a\nb"], 1, r"no task 'a\nb' in this store"),
        (["show", URL, "ö\udcff"], 2, r"argument ID: '\xf6\udcff' is not text in UTF-8"),
        (["list", URL, "--cursor", "?"], 2, "'?' is not a cursor of "),
        (["list", URL, "--all", "--limit", "3"], 2, "--all and --limit exclude each other"),
        (["list", URL, "--state", "faild"], 2, "argument --state: 'faild' is not one or several of blocked,"),
        (["list", "memory://"], 2, "memory:// lives inside one process"),
        (["cancel", URL], 2, "which tasks? Name their ids, or choose with --queue, --state, --name, --tag"),
        (["cancel", URL, NOWHERE, "--queue", "a"], 2, "name tasks by id or choose them by filters, not both"),
        (["retry", URL, "--state", "ready"], 2, "argument --state: invalid choice: 'ready'"),
        (["lst"], 2, "argument ACTION: invalid choice: 'lst' (choose from 'list', 'show',"),
        ([], 2, "the following arguments are required: ACTION (see omniq tasks --help)"),
        (["list", URL, "--jsn"], 2, "there is no option --jsn (see omniq tasks list --help)"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", *arguments]) == code

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"omniq: error: {text}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["tasks", "-v", "list", "no:where"], ["tasks", "list", "no:where", "-v"]])
def test_a_traceback_can_be_asked_for_before_and_after_the_action(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("Traceback")


def test_it_works_as_a_program(shop: TaskQueue, folder: Path) -> None:
    task_id = enqueue(shop, "talk")

    listed = run_omniq("tasks", "list", "shop:queue", cwd=folder)
    unknown = run_omniq("tasks", "delete", "shop:queue", NOWHERE, cwd=folder)

    assert (listed.returncode, listed.stderr) == (0, "")
    assert task_id[-12:] in listed.stdout
    assert unknown.returncode == 1
    assert unknown.stderr.startswith(f"omniq: error: there is no task '{NOWHERE}'\nomniq: note: looked in namespace ")
