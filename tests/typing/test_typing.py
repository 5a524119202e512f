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
IGNORE = re.compile(r"  # type: ignore\[([a-z-]+)\]  # \S.*$", re.MULTILINE)


def mypy(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mypy", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


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


def test_a_type_checker_sees_the_functions_own_parameters_and_results() -> None:
    checked = mypy(*sorted(HERE.glob("*.py")))

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", ["mistakes.py", "injected_mistakes.py"])
def test_a_type_checker_refuses_every_mistake(name: str, tmp_path: Path) -> None:
    bare = tmp_path / name
    text, mistakes = mistakes_of(HERE / name)
    bare.write_text(text)

    checked = mypy("--no-pretty", bare)

    found = re.findall(r"mistakes\.py:(\d+):\d+: error: .*\[([a-z-]+)\]$", checked.stdout, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == mistakes


def test_pyright_sees_what_mypy_does(tmp_path: Path) -> None:
    wanted = {}
    for name in ("mistakes.py", "injected_mistakes.py"):
        text, mistakes = mistakes_of(HERE / name)
        (tmp_path / name).write_text(text)
        wanted[str(tmp_path / name)] = {number for number, _ in mistakes}

    found = pyright(HERE / "usage.py", HERE / "injected.py", *map(Path, wanted))

    assert [one for one in found if one["file"] not in wanted] == []
    refused = {file: {one["range"]["start"]["line"] + 1 for one in found if one["file"] == file} for file in wanted}
    assert refused == wanted
