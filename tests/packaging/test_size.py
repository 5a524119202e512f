"""``make size`` counts what it says."""

from __future__ import annotations

from pathlib import Path

from tests.packaging.project import CORE
from tests.size import KIT, size_of, table

PYTHON = '''"""A docstring."""

# A comment.
import os

name: str = """Two
lines, of which none is a docstring."""
"""What describes an attribute is one."""


def function() -> str:
    """Another one."""
    return os.sep
'''


def test_lines_of_code_are_neither_blank_nor_comments_nor_docstrings(tmp_path: Path) -> None:
    files = {"omniq_x/a.py": PYTHON, "omniq_x/sql/a.sql": "-- One.\nSELECT 1\n\n  -- Two.\n", "omniq_x/py.typed": "x\n"}
    files |= {f"{part}x.py" if part.endswith("/") else part: PYTHON for part in KIT}
    for name, text in files.items():
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_text(text)

    size = size_of(tmp_path)

    assert size == {("Python", "lines"): 13, ("Python", "code"): 5, ("SQL", "lines"): 4, ("SQL", "code"): 1}
    assert " ".join(table({"omniq-x": size}).splitlines()[1].split()) == "omniq-x 13 (5) 4 (1) 0 (0) 17 (6)"


def test_the_kit_that_is_left_out_is_where_it_is_looked_for() -> None:
    assert [part for part in KIT if not (CORE.folder / "src" / part).exists()] == []
