"""Drawing for people: in place on a terminal, plain elsewhere."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios
from collections.abc import Iterator

import pytest

from omniq.cli.terminal import Screen, human_duration


class Terminal:
    """The other side of a pseudo terminal: what a person would see."""

    def __init__(self, columns: int = 40, lines: int = 10) -> None:
        self._reading, writing = pty.openpty()
        self.stream = os.fdopen(writing, "w", encoding="utf-8")
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def written(self) -> str:
        # A terminal hands out what it has, in pieces: the end is marked.
        self.stream.write("\0")
        self.stream.flush()
        seen = b""
        while not seen.endswith(b"\0"):
            seen += os.read(self._reading, 65536)
        return seen[:-1].decode().replace("\r\n", "\n")

    def close(self) -> None:
        self.stream.close()
        os.close(self._reading)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_what_is_drawn_again_replaces_what_was_drawn(terminal: Terminal) -> None:
    screen = Screen(terminal.stream)
    screen.draw(["one", "two"])
    screen.draw(["three"])
    assert terminal.written() == "one\ntwo\n\x1b[2F\x1b[Jthree\n"


def test_a_line_that_stays_goes_above_what_is_redrawn(terminal: Terminal) -> None:
    screen = Screen(terminal.stream)
    screen.draw(["one"])
    screen.say("news")
    screen.draw(["one"])
    assert terminal.written() == "one\n\x1b[1F\x1b[Jnews\none\n"


def test_what_is_kept_is_not_erased_again(terminal: Terminal) -> None:
    screen = Screen(terminal.stream)
    screen.draw(["one"])
    screen.keep()
    screen.draw(["two"])
    assert terminal.written() == "one\ntwo\n"


def test_lines_are_cut_to_the_width_without_harm_to_colours(terminal: Terminal) -> None:
    screen = Screen(terminal.stream)
    screen.draw(["x" * 41, screen.styled("y" * 50, "red"), "z" * 40])
    assert terminal.written().splitlines() == ["x" * 39 + "…", f"\x1b[31m{'y' * 39}\x1b[0m…", "z" * 40]


def test_so_are_lines_of_wide_characters(terminal: Terminal) -> None:
    screen = Screen(terminal.stream)
    screen.draw(["日" * 20, "日" * 21, "x" + screen.styled("本" * 20, "red") + "y"])
    assert terminal.written().splitlines() == ["日" * 20, "日" * 19 + "…", f"x\x1b[31m{'本' * 19}\x1b[0m…"]


def test_no_more_is_drawn_than_the_terminal_has_lines(terminal: Terminal) -> None:
    screen = Screen(terminal.stream)
    screen.draw([str(line) for line in range(30)])
    assert terminal.written().splitlines() == [str(line) for line in range(9)]


def test_the_cursor_comes_back_even_after_an_error(terminal: Terminal) -> None:
    screen = Screen(terminal.stream)
    with pytest.raises(KeyboardInterrupt), screen.redrawing():
        raise KeyboardInterrupt
    assert terminal.written() == "\x1b[?25l\x1b[?25h"


def test_no_color_is_heeded(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert Screen(terminal.stream).styled("text", "bold") == "text"


def test_a_dumb_terminal_gets_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = Screen(terminal.stream)
    with screen.redrawing():
        screen.draw(["one"])
        screen.draw(["two"])
    assert terminal.written() == "one\ntwo\n"


def test_elsewhere_there_are_no_escape_codes() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    with screen.redrawing():
        screen.draw([screen.styled("one", "red"), "x" * 200])
        screen.say("news")
        screen.draw(["two"])
        screen.erase()
    assert stream.getvalue() == f"one\n{'x' * 200}\nnews\ntwo\n"


def test_an_encoding_is_asked_before_ornaments_are_used() -> None:
    assert Screen(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")).can_show("━")
    assert not Screen(io.TextIOWrapper(io.BytesIO(), encoding="ascii")).can_show("━")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.1, "0.0 s"),
        (0.04, "0.0 s"),
        (3.21, "3.2 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3599.7, "1 h"),
        (18120, "5 h 2 min"),
        (86400, "1 d"),
        (1_051_200, "12 d 4 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text
