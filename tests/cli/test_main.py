"""What all commands have in common: help, version, exit codes, and errors in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from omniq.cli import COMMANDS, main
from omniq.testing import wait_until
from tests.cli.program import Program, environment, run_omniq


def actions_of(command: str) -> list[str]:
    return list(import_module(COMMANDS[command][0]).ACTIONS)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0

    text = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert f"    {name} " in text
        assert summary in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0

    text = capsys.readouterr().out
    assert text.startswith(f"usage: omniq {command} ")
    assert f"examples:\n  omniq {command}" in text
    assert max(len(line) for line in text.splitlines()) <= 105


ACTIONS = [
    (command, action)
    for command in ("tasks", "queues", "flows", "limits", "schedules")
    for action in actions_of(command)
]


@pytest.mark.parametrize(("command", "action"), ACTIONS)
def test_every_action_explains_itself_with_an_example(
    command: str, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, action, "--help"]) == 0

    text = capsys.readouterr().out
    assert text.startswith(f"usage: omniq {command} {action} ")
    assert f"examples:\n  omniq {command} {action} " in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_help_imports_no_command(folder: Path) -> None:
    script = (
        "import sys; from omniq.cli import *; main(['--help']); print([m for m in sys.modules if 'cli.worker' in m])"
    )

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder)

    assert ended.stdout.splitlines()[-1] == "[]"


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"omniq {version('omniq-core')} ")


def test_the_script_omniq_is_this_command_line() -> None:
    (script,) = entry_points(group="console_scripts", name="omniq")
    assert script.load() is main


def test_nothing_to_do_shows_the_help_as_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: omniq" in capsys.readouterr().err


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("omniq: error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("omniq: error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["stat"], "there is no command 'stat'; did you mean stats? (see omniq --help)"),
        (["xyz"], "there is no command 'xyz' (see omniq --help)"),
        (["stats"], "the following arguments are required: APP|URL (see omniq stats --help)"),
        (
            ["stats", "a:b", "--jsn"],
            "there is no option --jsn (see omniq stats --help)",
        ),
        (
            ["enqueue", "a:b", "add", "1", "--queue", "q", "2"],
            "'2' is one argument too many; options go before or after all arguments (see omniq enqueue --help)",
        ),
        (
            ["worker", "a:b", "-c", "0"],
            "argument -c/--concurrency: '0' is not a whole number of 1 or more (see omniq worker --help)",
        ),
        (
            ["worker", "a:b", "--grace", "soon"],
            "argument --grace: 'soon' is not a number of seconds, zero or more (see omniq worker --help)",
        ),
        (
            ["worker", "a:b", "--grace", "nan"],
            "argument --grace: 'nan' is not a number of seconds, zero or more (see omniq worker --help)",
        ),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert error_of(capsys) == text


@pytest.mark.usefixtures("folder")
def test_a_traceback_is_shown_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "nowhere:queue"]) == 2
    assert "nowhere" in error_of(capsys)

    assert main(["stats", "nowhere:queue", "-v"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.splitlines()[-1].startswith("omniq: error: ")


def test_an_error_that_nobody_foresaw_is_one_line_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.py").write_text("def configure(parser): ...\ndef run(options): raise KeyError('why')\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(COMMANDS, "broken", ("broken", "fail"))
    monkeypatch.setattr("omniq.plugins._default", None)

    assert main(["broken"]) == 1
    assert error_of(capsys) == "KeyError: 'why' (type -v to see where)"


def test_ctrl_c_ends_quietly_with_130(start: Callable[..., Program]) -> None:
    program = start("stats", "shop:queue", "--watch", "--json", "--interval", "0.05")
    wait_until(lambda: program.stdout or program.process.poll() is not None)

    assert program.stop(signal.SIGINT) == 130
    assert program.stderr == ""


def test_a_reader_that_leaves_ends_the_command_quietly(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "omniq", "plugins"],
        cwd=folder,
        env=environment(PYTHONUNBUFFERED=""),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)

    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_name_that_the_terminal_cannot_show_does_not_end_the_command(folder: Path) -> None:
    asked = ("stats", "sqlite:///größe.db")

    ended = run_omniq(*asked, cwd=folder, PYTHONUTF8="0", PYTHONIOENCODING="ascii")

    assert ended.returncode == 0
    assert ended.stderr == "omniq: note: looked in namespace omniq of sqlite:///gr\\xf6\\xdfe.db\n"
    assert ended.stdout == "no queue has been used on sqlite:///gr\\xf6\\xdfe.db yet\n"
