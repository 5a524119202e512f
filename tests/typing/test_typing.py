from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.packaging.project import ROOT

HERE = Path(__file__).parent
IGNORE = re.compile(r"  # type: ignore\[([a-z-]+)\]  # \S.*$", re.MULTILINE)


def mypy(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mypy", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_type_checker_sees_the_functions_own_parameters_and_results() -> None:
    checked = mypy(HERE / "usage.py", HERE / "mistakes.py")

    assert checked.returncode == 0, checked.stdout


def test_a_type_checker_refuses_every_mistake(tmp_path: Path) -> None:
    text = (HERE / "mistakes.py").read_text(encoding="utf-8")
    mistakes = {
        (number, code[1])
        for number, line in enumerate(text.splitlines(), 1)
        if (code := IGNORE.search(line)) is not None
    }
    bare = tmp_path / "mistakes.py"
    bare.write_text(IGNORE.sub("", text), encoding="utf-8")

    checked = mypy("--no-pretty", bare)

    found = re.findall(r"mistakes\.py:(\d+):\d+: error: .*\[([a-z-]+)\]$", checked.stdout, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == mistakes
