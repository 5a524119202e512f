"""What commands and a worker's log show of a store that somebody else has written to acts on no terminal."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from omniq import Every, TaskQueue
from omniq.cli import main
from omniq.cli.logs import LineFormatter, logging_to_stderr
from omniq.cli.terminal import Screen
from omniq.storage.records import dump_error
from omniq.task import TaskError
from omniq.testing import wait_until
from tests.core.running import working
from tests.security.conftest import Shop
from tests.security.test_attacks import SCHEDULE, TASK

HOSTILE = "x\r\n2026-01-01 INFO    omniq.task: all is well\x1b[2J\x1b]0;title\x07\x9b31m\u202e"
IN_A_LINE = HOSTILE.replace("\n", "")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def is_fit(text: str) -> bool:
    """Tell whether a text has lines of printable characters and nothing else, and no line that HOSTILE begins."""
    return all(line.isprintable() and not line.startswith("2026-01-01 INFO ") for line in text.split("\n"))


def poison(shop: Shop) -> list[str]:
    """Let the attacker write hostile texts wherever the store holds one; return the tasks' ids."""
    handles = [shop.enqueue(f"page{number}") for number in range(3)]
    shop.queue.schedule(shop.queue.functions["write"].call("page", "hello"), Every(3600), id="hourly")
    error = dump_error(TaskError(type=HOSTILE, message=HOSTILE, traceback=f"first\n{IN_A_LINE}"))
    shop.attack(f"UPDATE {TASK} SET id = id || ?, queue = queue || ?, name = name || ?", HOSTILE, HOSTILE, HOSTILE)
    shop.attack(f"UPDATE {TASK} SET state = 5, finished_at = created_at, error = ?", error)
    shop.attack(
        f"UPDATE {SCHEDULE} SET id = id || ?, body = json_patch(body, ?)",
        HOSTILE,
        json.dumps({"trigger": HOSTILE, "apps": [HOSTILE], "last_task": HOSTILE, "declared": True}),
    )
    shop.attack(
        f"INSERT INTO {SCHEDULE} SELECT 'other' || id, 1, 1, 0, json_patch(body, ?) FROM {SCHEDULE}",
        json.dumps({HOSTILE: 1}),
    )
    return [handle.id + HOSTILE for handle in handles]


def commands(store: Path, task_id: str) -> list[list[str]]:
    url = f"sqlite:///{store}"
    return [
        ["tasks", "list", url],
        ["tasks", "show", url, task_id],
        ["tasks", "why", url, task_id],
        ["tasks", "retry", url, task_id, "--dry-run"],
        ["queues", "list", url],
        ["queues", "pause", url, "default" + HOSTILE],
        ["schedules", "list", url],
        ["schedules", "show", url, "hourly" + HOSTILE],
        ["schedules", "delete", url, HOSTILE],
        ["stats", url],
        ["stats", url, "--watch", "--count", "1"],
        ["workers", url],
        ["doctor", url],
    ]


def test_no_command_shows_what_a_terminal_would_obey(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    task_id, *_ = poison(shop)
    shown = {}
    for command in commands(shop.store, task_id):
        for more in ([], ["-v"]):
            main([*command, *more])
            shown[" ".join(command[:2])] = "".join(capsys.readouterr())
    assert {name for name, text in shown.items() if not is_fit(text)} == set()
    assert "all is well" in shown["tasks show"]


def test_a_terminal_is_shown_our_colours_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    screen = Screen(stream)
    screen.say(f"{screen.styled(HOSTILE, 'red')} {HOSTILE}")
    screen.say_lines(f"first\n{IN_A_LINE}")
    text = stream.getvalue()
    assert text.startswith("\x1b[31mx\\r\\n")
    assert is_fit(text.replace("\x1b[31m", "").replace("\x1b[0m", ""))


def test_a_line_of_the_workers_log_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr(logging.INFO):
        about = {"task_id": HOSTILE, "task_name": HOSTILE}
        logging.getLogger("shop").warning("hello", extra=about)
        logging.getLogger("shop").warning("hello %s", IN_A_LINE, extra=about)
    first, *_ = capsys.readouterr().err.split("\n")
    assert first.isprintable()
    assert first.endswith("]")


def test_a_line_of_the_workers_log_has_the_short_id_that_the_commands_take() -> None:
    whole = "0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e"
    record = logging.makeLogRecord({"name": "omniq.task", "msg": f"task {whole} (f) failed", "task_id": whole})
    assert LineFormatter().format(record).endswith("omniq.task: task 6d1a2b3c4d5e (f) failed")
    record = logging.makeLogRecord({"name": "shop", "msg": "hello", "task_id": whole, "task_name": "f"})
    assert LineFormatter().format(record).endswith("shop: hello [task 6d1a2b3c4d5e f]")


def test_what_upkeep_takes_back_cannot_forge_a_line_of_the_log(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    handle = shop.enqueue()
    shop.attack(
        f"UPDATE {TASK} SET state = 3, id = id || ?, name = ?, worker = ?, lease_until = 1, lease = 1, attempt = 1",
        HOSTILE,
        HOSTILE,
        HOSTILE,
    )
    queue = TaskQueue(f"sqlite:///{shop.store}", signing_key=shop.key)
    with working(queue, recover_every=0.05):
        wait_until(lambda: "was lost by worker" in caplog.text, what="the recovery")
    queue.close()
    said = [record.getMessage() for record in caplog.records]
    assert all(map(str.isprintable, said))
    assert any(handle.id in text and "was lost by worker" in text for text in said)


def test_a_huge_payload_is_not_read_to_be_shown(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    handle = shop.enqueue()
    shop.attack(
        f"UPDATE {TASK} SET name = 'unknown', state = 4, finished_at = created_at, result = ?",
        b'"' + b"\x7f" * 20_000_000,
    )
    shop.forge(payload=b'[["' + b"\x7f" * 20_000_000 + b'"], {}]')
    assert main(["tasks", "show", f"sqlite:///{shop.store}", handle.id]) == 0
    text = capsys.readouterr().out
    assert "arguments  20,000,010 bytes of json, over the limit here of 1,048,576 (max_payload): not read" in text
    assert "result     20,000,001 bytes of json, over the limit" in text
    assert main(["tasks", "show", f"sqlite:///{shop.store}", handle.id, "--json"]) == 0
    task = json.loads(capsys.readouterr().out)
    assert (task["args"], task["result"], task["decoded"]) == (None, None, False)


def test_a_huge_error_is_shown_in_part(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    handle = shop.enqueue()
    error = dump_error(TaskError(type="ValueError", message="\x7f" * 5_000_000, traceback="\x7f" * 5_000_000))
    shop.attack(f"UPDATE {TASK} SET state = 5, finished_at = created_at, error = ?", error)
    assert main(["tasks", "show", f"sqlite:///{shop.store}", handle.id]) == 0
    assert len(capsys.readouterr().out) < 1_000_000
