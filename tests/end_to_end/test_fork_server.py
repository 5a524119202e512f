"""What the tests start programs with: a forked program does what a started one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fork_server

PROGRAM = """
import os, signal, sys, warnings

facts = [__name__, globals().get("__file__"), sys.argv[1:], os.getcwd(), sys.path[0], sys.warnoptions]
print(*facts, os.environ["COLOUR"], os.getppid(), os.getsid(0) == os.getpid(), sys.stdin.read())
print("heard", file=sys.stderr)
"""
ENDS = {
    "by itself": "",
    "with a code": "sys.exit(3)",
    "with a text": "sys.exit('a text')",
    "with an error": "raise LookupError('where')",
    "with a warning": "warnings.warn('soft')",
    "interrupted": "signal.raise_signal(signal.SIGINT)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("kind", ["module", "code", "script"])
@pytest.mark.parametrize("end", ENDS)
def test_a_forked_program_does_what_a_started_one_does(kind: str, end: str, tmp_path: Path) -> None:
    program = PROGRAM + ENDS[end]
    (tmp_path / "program.py").write_text(program)
    words = {"module": ["-m", "program"], "code": ["-c", program], "script": ["program.py"]}[kind]
    strict = ["-W", "error"] if end == "with a warning" else []
    ended = []
    for popen in (subprocess.Popen, fork_server.Popen):
        with popen(
            [sys.executable, *strict, *words, "first", "second"],
            cwd=tmp_path,
            env={**os.environ, "COLOUR": "grün", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1" if end == "killed" else ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=end == "killed",
        ) as process:
            out, errors = process.communicate("given", timeout=60)
        ended.append((process.returncode, out, errors.splitlines()[0], errors.splitlines()[-1]))
    started, forked = ended

    assert forked == started
    assert "grün" in started[1]


def test_a_forked_program_can_be_stopped_and_watched_as_a_child() -> None:
    with fork_server.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        told = os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        process.send_signal(signal.SIGCONT)
        process.communicate(b"\n", timeout=60)

    assert told is not None
    assert told.si_status == signal.SIGSTOP
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked there")  # which CI is
def test_a_setting_of_the_interpreter_starts_one() -> None:
    def interpreter(**more: str) -> str:
        say = "import os; print(open(f'/proc/{os.getpid()}/cmdline').read())"
        command, environ = [sys.executable, "-c", say], {**os.environ, **more}
        return str(fork_server.run(command, env=environ, capture_output=True, text=True, check=True).stdout)

    assert "fork_server" in interpreter()
    assert "fork_server" not in interpreter(PYTHONHASHSEED="7")
