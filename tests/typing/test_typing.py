from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.project import ROOT

HERE = Path(__file__).parent
MISTAKES = ("mistakes.py", "injected_mistakes.py")
# One process checks all, and leaves what it has found out about the code for the next run. `make types` sees each day
# that the files are as they must be: an ignore that no mistake needs is an error there.
pytestmark = [pytest.mark.xdist_group("typing"), pytest.mark.long]
IGNORE = re.compile(r"  # type: ignore\[([a-z-]+)\]  # \S.*$", re.MULTILINE)


def pyright(*files: Path) -> list[dict[str, Any]]:
    """Return what pyright finds wrong; it comes with its own Node, and loads nothing from anywhere."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["generalDiagnostics"]
    return found


def mistakes_of(file: Path) -> tuple[str, set[tuple[int, str]]]:
    """Return a file without its ignores, and the lines that had one, with its code."""
    text = file.read_text(encoding="utf-8")
    lines = enumerate(text.splitlines(), 1)
    return IGNORE.sub("", text), {(number, code[1]) for number, line in lines if (code := IGNORE.search(line))}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what mypy says of all files, and of the mistakes without their ignores."""
    folder = tmp_path_factory.mktemp("typing")
    for name in MISTAKES:
        (folder / name).write_text(mistakes_of(HERE / name)[0])
    command = [sys.executable, "-m", "mypy", "--no-pretty", "--no-error-summary", "--show-absolute-path"]
    done = subprocess.run(
        [*command, *sorted(HERE.glob("*.py")), *sorted(folder.iterdir())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")  # some lines are wrong, and nothing else is
    return done.stdout.splitlines()


def test_a_type_checker_sees_the_functions_own_parameters_and_results(checked: list[str]) -> None:
    assert [line for line in checked if f"{ROOT}/" in line] == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_type_checker_refuses_every_mistake(name: str, checked: list[str]) -> None:
    _, mistakes = mistakes_of(HERE / name)
    errors = re.compile(rf".*/{name}:(\d+):\d+: error: .*\[([a-z-]+)\]$")
    found = [error for line in checked if (error := errors.match(line))]
    assert {(int(error[1]), error[2]) for error in found} == mistakes


def test_pyright_sees_what_mypy_does(tmp_path: Path) -> None:
    wanted = {}
    for name in MISTAKES:
        text, mistakes = mistakes_of(HERE / name)
        (tmp_path / name).write_text(text)
        wanted[str(tmp_path / name)] = {number for number, _ in mistakes}

    found = pyright(HERE / "usage.py", HERE / "injected.py", *map(Path, wanted))

    assert [one for one in found if one["file"] not in wanted] == []
    refused = {file: {one["range"]["start"]["line"] + 1 for one in found if one["file"] == file} for file in wanted}
    assert refused == wanted
