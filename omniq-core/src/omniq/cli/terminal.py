"""Writing for people: colours and redrawing on a terminal, plain lines everywhere else.

What is written may come from anyone. Nothing of it reaches the terminal that the terminal would obey, but our colours.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, TextIO

from attrs import asdict

from omniq.storage.escaping import printable, printable_lines

__all__ = ["Screen", "display_width", "fitting", "human_duration", "padded", "picked", "to_json"]

_STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36}
_CODE = f"(?:{'|'.join(map(str, _STYLES.values()))})"
_COLOUR = re.compile(rf"(\x1b\[(?:0|{_CODE}(?:;{_CODE})*)m)")


class Screen:
    """An output that may be a terminal: then the last lines can be redrawn in place, and text can have a colour.

    :param stream: where to write; None: stdout.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.is_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self.is_terminal and not os.environ.get("NO_COLOR")
        self._drawn = 0

    @property
    def width(self) -> int:
        """How many characters fit into a line."""
        return self._size().columns if self.is_terminal else 100

    @property
    def height(self) -> int | None:
        """How many lines can be redrawn; None where there is no terminal, and lines simply follow each other."""
        return self._size().lines - 1 if self.is_terminal else None

    def _size(self) -> os.terminal_size:
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return os.terminal_size((80, 24))
        # Some terminals, such as serial lines, say that they have no size.
        return size if size.columns and size.lines else os.terminal_size((80, 24))

    def can_show(self, text: str) -> bool:
        """Whether the output's encoding has these characters."""
        try:
            text.encode(self._stream.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def styled(self, text: str, *styles: str) -> str:
        """Return the text, escaped, with colours where there are any."""
        text = printable(text)
        if not self._colours or not styles or not text:
            return text
        codes = ";".join(str(_STYLES[style]) for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m"

    def say(self, line: str = "") -> None:
        """Write a line that stays, above what is redrawn. Whatever it holds, it is one line."""
        self._write(self._erase() + self._escaped(line) + "\n")

    def say_lines(self, text: str) -> None:
        """Write a text of several lines, such as JSON."""
        self._write(self._erase() + printable_lines(text) + "\n")

    def answer(self, as_json: bool, data: Callable[[], Any], lines: Callable[[], Iterable[str]]) -> None:
        """Write what a command was asked for.

        :param as_json: whether it is to be JSON: what ``data`` returns.
        :param lines: returns it as lines for people.
        """
        if as_json:
            self.say_lines(to_json(data(), indent=2))
            return
        for line in lines():
            self.say(line)

    def details(self, labelled: Iterable[Sequence[str]]) -> Iterator[str]:
        """Yield a line for each label and text, which the styles of the text may follow."""
        for label, text, *styles in labelled:
            yield f"{self.styled(f'{label:<9}', 'dim')}  {self.styled(text, *styles)}"

    def draw(self, lines: Sequence[str]) -> None:
        """Write lines in the place of those drawn before. Where there is no terminal they simply follow."""
        if not self.is_terminal:
            self._write("".join(f"{self._escaped(line)}\n" for line in lines))
            return
        size = self._size()
        # A line that wraps, or one that scrolls away, could not be erased again.
        shown = [_clip(self._escaped(line), size.columns) for line in lines[: size.lines - 1]]
        erase = self._erase()
        self._drawn = len(shown)
        self._write(erase + "".join(f"{line}\n" for line in shown))

    def erase(self) -> None:
        """Remove what was drawn."""
        self._write(self._erase())

    def keep(self) -> None:
        """Leave what was drawn where it is."""
        self._drawn = 0

    @contextlib.contextmanager
    def redrawing(self) -> Iterator[None]:
        """Hide the cursor meanwhile: it would flicker through what is redrawn."""
        if not self.is_terminal:
            yield
            return
        self._write("\x1b[?25l")
        try:
            yield
        finally:
            self.keep()
            self._write("\x1b[?25h")

    def _erase(self) -> str:
        drawn, self._drawn = self._drawn, 0
        return f"\x1b[{drawn}F\x1b[J" if drawn else ""

    def _escaped(self, line: str) -> str:
        if line.isprintable() or not self._colours:
            return printable(line)
        return "".join(part if index % 2 else printable(part) for index, part in enumerate(_COLOUR.split(line)))

    def _write(self, text: str) -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()


def to_json(data: Any, indent: int | None = None) -> str:
    """Return what ``--json`` prints of data: points in time in ISO 8601, values as objects of their fields.

    :param indent: by how many spaces a level is indented; None: all of it is one line.
    """
    return json.dumps(data, indent=indent, default=_plain)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else asdict(value, recurse=False)


def picked(value: Any, *names: str) -> dict[str, Any]:
    """Return some attributes of a value, by name."""
    return {name: getattr(value, name) for name in names}


def display_width(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese characters and their like two each, accents none."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def _columns_of(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def fitting(text: str, width: int) -> str:
    """Return the longest beginning of a text that takes no more than so many columns."""
    if text.isascii():
        return text[: max(width, 0)]
    for index, char in enumerate(text):
        width -= _columns_of(char)
        if width < 0:
            return text[:index]
    return text


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return a text with spaces, so that it takes so many columns.

    :param right: whether they stand before it.
    """
    spaces = " " * (width - display_width(text))
    return spaces + text if right else text + spaces


def _clip(line: str, width: int) -> str:
    if display_width(_COLOUR.sub("", line)) <= width:
        return line
    kept: list[str] = []
    left = width - 1
    position = 0
    for escape in [*_COLOUR.finditer(line), None]:
        text = line[position : escape.start() if escape else len(line)]
        kept.append(fitting(text, left))
        left = left - display_width(text) if kept[-1] == text else 0
        if escape is not None:
            kept.append(escape.group())
            position = escape.end()
    return "".join(kept) + "…"


def human_duration(seconds: float) -> str:
    """Return a duration as people say it: ``0.3 s``, ``42 s``, ``3 min 20 s``, ``5 h 2 min``, ``12 d 4 h``."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"
