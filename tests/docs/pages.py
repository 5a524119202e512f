"""The pages of the documentation as the tests see them: their blocks, commands and links, and each as a program."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from attrs import field, frozen

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STANDALONE = sorted(ROOT.glob("omniq-*/README.md"))
"""Shown on a package index, away from everything else here."""
PAGES = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "CHANGELOG.md",
    *STANDALONE,
    *sorted(DOCS.rglob("*.md")),
]

_FENCE = re.compile(r"```(.*)")
_FILE = re.compile(r"# ([\w/]+\.py)")
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_VARIABLE = re.compile(r"[A-Z_]+=.*")


def page_name(page: Path) -> str:
    """Return the name of a page, for the ids of tests."""
    return page.relative_to(ROOT).as_posix()


@frozen
class Block:
    """A fenced block. Its lines are counted from 0, the fence being ``start``."""

    language: str
    marks: frozenset[str]
    """What else the opening fence says."""
    start: int
    lines: tuple[str, ...]

    @property
    def end(self) -> int:
        """The line of the closing fence."""
        return self.start + len(self.lines) + 1

    @property
    def file(self) -> str | None:
        """The name of the file that the block is the content of: its first line is ``# shop/tasks.py``."""
        found = _FILE.fullmatch(self.lines[0]) if self.language == "python" and self.lines else None
        return found[1] if found else None


@frozen
class Command:
    """A command that a page tells the reader to type, and what it shows as the answer."""

    words: tuple[str, ...]
    """Without a prompt, environment variables or comment."""
    environment: tuple[str, ...] = ()
    output: tuple[str, ...] = field(default=(), repr=False)


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    opening: tuple[int, list[str]] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines()):
        fence = _FENCE.fullmatch(line.strip())
        if fence is None:
            lines.append(line)
        elif opening is None:
            opening, lines = (number, fence[1].split()), []
        else:
            start, words = opening
            found.append(Block(words[0] if words else "", frozenset(words[1:]), start, tuple(lines)))
            opening = None
    assert opening is None, f"{page_name(page)}: a block is not closed"
    return found


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block: the lines that begin with ``$``, each with the lines that follow it.

    Where none does, every line is a command.
    """
    prompt = "$ " if any(line.startswith("$ ") for line in block.lines) else ""
    found: list[Command] = []
    for line in filter(None, block.lines):
        if line.startswith(prompt):
            words = shlex.split(line.removeprefix(prompt), comments=True)
            variables = [word for word in words if _VARIABLE.fullmatch(word)] if _VARIABLE.fullmatch(words[0]) else []
            found.append(Command(tuple(words[len(variables) :]), tuple(variables)))
        else:
            last = found.pop()
            found.append(Command(last.words, last.environment, (*last.output, line)))
    return found


def prose(page: Path) -> Iterator[str]:
    """Yield the lines of a page that stand in no block."""
    inside = {number for block in blocks(page) for number in range(block.start, block.end + 1)}
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines()):
        if number not in inside:
            yield line


def links(page: Path) -> list[str]:
    """Return the targets of a page's links."""
    return _LINK.findall("\n".join(prose(page)))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are made where Markdown is shown."""
    titles = [line.lstrip("#").strip() for line in prose(page) if re.match(r"#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def write_program(page: Path, folder: Path) -> Path | None:
    """Write a page as a program: its Python blocks in order, each on the lines that it has in the page.

    A block that is the content of a file is written to that file, and imported where it stands in the page. While a
    block marked ``worker`` runs, a worker serves the page's queue.

    :param folder: where to write.
    :return: the program's file; None if the page has no Python.
    """
    python = [block for block in blocks(page) if block.language == "python"]
    if not python:
        return None
    lines = [""] * len(page.read_text(encoding="utf-8").splitlines())
    lines[0] = "from tests.docs.page_worker import running_worker"
    for block in python:
        if block.file is None:
            lines[block.start + 1 : block.end] = block.lines
        else:
            file = folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(block.lines) + "\n", encoding="utf-8")
            lines[block.start] = f"import {block.file.removesuffix('.py').replace('/', '.')}"
        if "worker" in block.marks:
            lines[block.start] = "_worker = running_worker(globals()); _worker.__enter__()"
            lines[block.end] = "_worker.__exit__(None, None, None)"
    program = folder / page.name
    program.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return program
