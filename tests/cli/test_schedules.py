"""``omniq schedules``: what is planned, in words, and changing it."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from attrs import frozen

from omniq import At, Cron, Every, TaskQueue, Trigger
from omniq.cli import main
from omniq.cli.app import load_queue, store_of
from omniq.cli.trigger_words import in_words
from omniq.schedule import Schedule
from tests.cli.program import Program

URL = "sqlite:///jobs.db"
NEW_YEAR = datetime(2090, 1, 1, tzinfo=UTC)


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the clocks here be those of Berlin."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def shop(folder: Path, in_berlin: None) -> Iterator[TaskQueue]:
    """The application, with two schedules: one made at run time, and one declared in code that was paused."""
    with (folder / "shop.py").open("a") as file:
        file.write("\nfrom omniq import Every\n\n@queue.task(schedule=Every(3600))\ndef tidy() -> None: ...\n")
    with load_queue("shop:queue") as queue:
        queue.schedule(
            queue.functions["shop.resize"].call(Path("a.png"), width=3),
            At(NEW_YEAR),
            id="fireworks",
            overlap="skip",
            jitter=90,
        )
        queue.run(queue.stored_schedules.reconcile())
        queue.pause_schedule("shop.tidy")
        yield queue


def find(shop: TaskQueue, schedule_id: str) -> Schedule | None:
    return next((schedule for schedule in shop.schedules() if schedule.id == schedule_id), None)


# Looking


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("app", ["shop:queue", URL])
def test_a_list_has_a_row_for_each_schedule(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedules", "list", app]) == 0

    header, *rows = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert header == ["id", "task", "trigger", "next run", "due", "last run", "paused", "declared"]
    (fireworks, tidy) = rows
    assert fireworks[:4] == ["fireworks", "shop.resize", "once, at 2090-01-01 01:00:00", "2090-01-01 01:00:00"]
    assert re.fullmatch(r"in \d+ y", fireworks[4])
    assert fireworks[5:] == ["-", "no", "no"]
    assert tidy == ["shop.tidy", "shop.tidy", "every hour", "-", "paused", "-", "yes", "yes"]


@pytest.mark.usefixtures("store")
def test_a_store_without_schedules_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedules", "list", URL]) == 0
    assert capsys.readouterr().out == "there are no schedules\n"
    assert main(["schedules", "list", URL, "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_json_shows_everything(shop: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    task_id = shop.trigger_schedule("fireworks").id
    assert main(["schedules", "list", "shop:queue", "--json"]) == 0
    fireworks, tidy = json.loads(capsys.readouterr().out)
    assert main(["schedules", "show", "shop:queue", "fireworks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == fireworks

    revision = fireworks.pop("revision")
    assert revision > 0
    assert fireworks.pop("trigger")["kind"] == "at"
    assert fireworks == {
        "id": "fireworks",
        "task": "shop.resize",
        "queue": "default",
        "args": ["a.png"],
        "kwargs": {"width": 3},
        "decoded": True,
        "trigger_text": "once, at 2090-01-01 01:00:00",
        "next_run": "2090-01-01T00:00:00+00:00",
        "last_run": None,
        "last_task": task_id,
        "paused": False,
        "declared": False,
        "apps": [],
        "misfire": "latest",
        "overlap": "skip",
        "jitter": 90.0,
        "start": None,
        "end": None,
    }
    assert (tidy["trigger"]["kind"], tidy["trigger"]["seconds"], tidy["paused"], tidy["declared"]) == (
        "every", 3600, True, True,
    )  # fmt: skip


@pytest.mark.parametrize(("app", "arguments"), [("shop:queue", "PosixPath('a.png'), width=3"), (URL, "as stored")])
def test_one_is_shown_with_its_arguments(
    app: str, arguments: str, shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedules", "show", app, "fireworks"]) == 0

    text = capsys.readouterr().out
    pairs = [re.split("  +", line, maxsplit=1) for line in text.splitlines()]
    shown = {pair[0]: pair[1] for pair in pairs}
    assert arguments in shown["arguments"]
    assert (shown["task"], shown["jitter"], shown["overlap"]) == ("shop.resize", "up to 1 min 30 s", "skip")
    assert re.fullmatch(r"2090-01-01 01:00:00 CET \(in \d+ y\)", shown["next runs"])


def test_the_next_runs_are_shown_up_to_the_end(shop: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(UTC)
    talk = shop.functions["shop.talk"].call()
    shop.schedule(talk, Every(86400), id="daily")
    shop.schedule(talk, Every(86400), id="brief", end=now + timedelta(days=3))

    def runs(schedule_id: str) -> list[datetime]:
        assert main(["schedules", "show", URL, schedule_id]) == 0
        found = re.findall(r"^(?:next runs|         )  (\S+ \S+) \S+ \(in .*\)$", capsys.readouterr().out, re.MULTILINE)
        return [datetime.fromisoformat(text).astimezone(UTC) for text in found]

    daily = runs("daily")
    assert len(daily) == 5
    assert all(later - earlier == timedelta(days=1) for earlier, later in itertools.pairwise(daily))
    assert runs("brief") == daily[:3]


def test_a_trigger_of_a_plugin_that_is_not_here_is_shown_as_stored(
    shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    async def store() -> None:
        storage = await store_of(shop)
        (known,) = await storage.get_schedules(["fireworks"])
        foreign = Schedule(id="tide", task=known.task, trigger='{"kind":"tide","harbour":"Wick"}', next_run=NEW_YEAR)
        await storage.put_schedule(foreign)

    shop.run(store())

    assert main(["schedules", "list", URL]) == 0
    assert '{"kind":"tide","harbour":"Wick"}  2090-01-01 01:00:00' in capsys.readouterr().out
    assert main(["schedules", "show", URL, "tide"]) == 0
    assert capsys.readouterr().out.count("2090-01-01 01:00:00 CET") == 1


# Changing


def test_schedules_are_paused_and_resumed(shop: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    def paused() -> list[bool]:
        return [schedule.paused for schedule in shop.schedules()]

    assert main(["schedules", "pause", URL, "fireworks", "shop.tidy"]) == 0
    assert paused() == [True, True]
    assert main(["schedules", "resume", "shop:queue", "fireworks"]) == 0
    assert main(["schedules", "resume", "shop:queue", "fireworks"]) == 0
    assert paused() == [False, True]
    assert capsys.readouterr().out.splitlines() == [
        "schedule fireworks is paused",
        "schedule shop.tidy was paused already",
        "schedule fireworks goes on",
        "schedule fireworks was not paused",
    ]


@pytest.mark.parametrize("app", ["shop:queue", URL])
def test_a_schedule_is_triggered_and_the_id_of_its_task_printed(
    app: str, shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedules", "trigger", app, "fireworks"]) == 0

    task = shop.get(capsys.readouterr().out.strip())
    assert task is not None
    assert (task.name, task.args, task.kwargs) == ("shop.resize", (Path("a.png"),), {"width": 3})
    fireworks = find(shop, "fireworks")
    assert fireworks is not None
    assert fireworks.next_run == NEW_YEAR


def test_a_schedule_is_deleted(shop: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedules", "delete", URL, "fireworks"]) == 0
    assert find(shop, "fireworks") is None
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("schedule fireworks is deleted\n", "")

    assert main(["schedules", "delete", URL, "shop.tidy"]) == 0
    assert find(shop, "shop.tidy") is None
    assert "shop.tidy is declared in code: the next worker that starts makes it anew" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["pause", "resume", "trigger", "delete"])
def test_one_that_is_not_there_is_told_and_the_others_are_done(
    action: str, shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedules", action, URL, "firework", "fireworks"]) == 1

    captured = capsys.readouterr()
    assert captured.err == "omniq: error: no schedule 'firework' in this store; did you mean fireworks?\n"
    assert captured.out != ""


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["show", URL, "firework"], 1, "no schedule 'firework' in this store; did you mean fireworks?"),
        (["pause", URL], 2, "the following arguments are required: ID (see omniq schedules pause --help)"),
        (["list", "memory://"], 2, "memory:// lives inside one process"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedules", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"omniq: error: {text}")
    assert captured.err.count("\n") == 1


# Words


@frozen
class Tide(Trigger):
    kind: ClassVar[str] = "tide"

    harbour: str

    def next_after(self, moment: datetime) -> datetime | None:
        return None


@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        (Every(0.5), "every 0.5 s"),
        (Every(1), "every second"),
        (Every(30), "every 30 s"),
        (Every(60), "every minute"),
        (Every(90), "every 1 min 30 s"),
        (Every(90.5), "every 90.5 s"),
        (Every(3600), "every hour"),
        (Every(3601), "every 3,601 s"),
        (Every(86400), "every day"),
        (Every(timedelta(days=7)), "every 7 d"),
        (Every(3600, anchor=datetime(2025, 1, 1, 0, 30, tzinfo=UTC)), "every hour from 2025-01-01 01:30:00"),
        (At(NEW_YEAR), "once, at 2090-01-01 01:00:00"),
        (Cron("* * * * *"), "every minute UTC"),
        (Cron("*/15 * * * *"), "every 15 min UTC"),
        (Cron("*/25 * * * *"), "cron */25 * * * * UTC"),
        (Cron("5 * * * *"), "every hour at :05 UTC"),
        (Cron("0 9 * * *", tz="Europe/Berlin"), "every day at 09:00 Europe/Berlin"),
        (Cron("30 9 * * mon"), "Monday at 09:30 UTC"),
        (Cron("30 9 * * MON-fri"), "Monday to Friday at 09:30 UTC"),
        (Cron("30 9 * * 0,3,7"), "Sunday, Wednesday at 09:30 UTC"),
        (Cron("0 0 1 * *"), "day 1 of every month at 00:00 UTC"),
        (Cron("@daily"), "every day at 00:00 UTC"),
        (Cron("@hourly"), "every hour at :00 UTC"),
        (Cron("@weekly"), "Sunday at 00:00 UTC"),
        (Cron("@yearly"), "cron @yearly UTC"),
        (Cron("0 9 * * fri#2"), "cron 0 9 * * fri#2 UTC"),
        (Cron("0 9 1 * mon"), "cron 0 9 1 * mon UTC"),
        (Cron("0 9 L * *"), "cron 0 9 L * * UTC"),
        (Cron("0 9,17 * * *"), "cron 0 9,17 * * * UTC"),
        (Cron("0 9 * 6 *"), "cron 0 9 * 6 * UTC"),
        (Cron("* * * * * */10"), "cron * * * * * */10 UTC"),
        (Tide("Wick"), "Tide(harbour='Wick')"),
    ],
)
def test_triggers_read_as_people_say_them(trigger: Trigger, words: str) -> None:
    assert in_words(trigger) == words


WORKER = """
from gallery.mail import queue

@queue.task(schedule=Every(3600))
def nightly() -> None: ...
"""
MAIL = """
from omniq import Every, TaskQueue

queue = TaskQueue("sqlite:///gallery.db")

@queue.task
def send() -> None: ...
"""


def test_a_worker_of_another_app_leaves_declared_schedules_alone_and_one_of_their_own_says_what_it_changes(
    folder: Path, start: Callable[..., Program]
) -> None:
    gallery = folder / "gallery"
    gallery.mkdir()
    (gallery / "mail.py").write_text(MAIL)
    (gallery / "worker.py").write_text(f"from omniq import Every\n{WORKER}")

    def told(app: str) -> str:
        program = start("worker", app)
        with TaskQueue("sqlite:///gallery.db") as store:
            handle = store.task(name="gallery.mail.send")(lambda: None).enqueue()
            handle.result(timeout=30)
        assert program.stop() == 0
        return program.stderr

    def ids() -> list[str]:
        with TaskQueue("sqlite:///gallery.db") as store:
            return [schedule.id for schedule in store.schedules()]

    assert "schedules declared by gallery.worker:queue: added: gallery.worker.nightly" in told("gallery.worker:queue")
    assert "schedules declared by" not in told("gallery.mail:queue")
    assert ids() == ["gallery.worker.nightly"]
    (gallery / "worker.py").write_text("from gallery.mail import queue")
    assert "schedules declared by gallery.worker:queue: removed: gallery.worker.nightly" in told("gallery.worker:queue")
    assert ids() == []
