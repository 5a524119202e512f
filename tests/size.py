"""Counts the lines of product code, by distribution and language; the kit that checks storages is not product code.

``make size`` prints both all lines and, of these, the lines of code: those that are neither blank nor a comment nor a
docstring.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
KIT = ("omniq/testing/contract/", "omniq/testing/model.py", "omniq/testing/actor.py")
LANGUAGES = {".py": "Python", ".sql": "SQL", ".lua": "Lua"}
BLANK = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines_of_python(text: str) -> int:
    """Return how many lines hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in BLANK:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # Docstrings, and the strings below an attribute that describe it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def code_lines_of_scripts(text: str) -> int:
    """Return how many lines of SQL or Lua hold code; in both a comment begins with two hyphens."""
    return sum(not line.lstrip().startswith("--") for line in text.splitlines() if line.strip())


def size_of(folder: Path) -> Counter[tuple[str, str]]:
    """Return the size of a distribution.

    :return: how many, by language and ``lines`` or ``code``.
    """
    source = folder / "src"
    size: Counter[tuple[str, str]] = Counter()
    for path in source.rglob("*"):
        language = LANGUAGES.get(path.suffix)
        if language is None or path.relative_to(source).as_posix().startswith(KIT):
            continue
        text = path.read_text(encoding="utf-8")
        size[language, "lines"] += len(text.splitlines())
        size[language, "code"] += code_lines_of_python(text) if language == "Python" else code_lines_of_scripts(text)
    return size


def table(sizes: dict[str, Counter[tuple[str, str]]]) -> str:
    """Return the sizes as a table with a line for each distribution, and their sums."""
    sizes = {**sizes, "all": sum(sizes.values(), Counter())}
    rows = [["lines (of code)", *LANGUAGES.values(), "all"]]
    for name, size in sizes.items():
        columns = [tuple(size[language, kind] for kind in ("lines", "code")) for language in LANGUAGES.values()]
        columns.append(tuple(map(sum, zip(*columns, strict=True))))
        rows.append([name, *(f"{lines:,} ({code:,})" for lines, code in columns)])
    return "\n".join(f"{name:16}" + "".join(f"{cell:>18}" for cell in cells) for name, *cells in rows)


if __name__ == "__main__":
    print(table({path.parent.name: size_of(path.parent) for path in sorted(ROOT.glob("omniq-*/pyproject.toml"))}))
