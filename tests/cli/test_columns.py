"""Tables that fit the terminal, and values in words."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from omniq.cli.columns import Column, Table, shortened
from omniq.cli.terminal import Screen
from omniq.cli.wording import ago, plural, relative, rough_duration
from omniq.storage.escaping import printable
from tests.cli.test_terminal import Terminal

Row = tuple[str, str, str, str]

ROWS: list[Row] = [("first-id", "shop.tasks.resize", "12", "-"), ("second-id", "add", "3", "-")]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def columns() -> list[Column[Row]]:
    return [
        Column(title="id", cell=lambda row: row[0]),
        Column(title="name", cell=lambda row: row[1], least=6, keep_end=True),
        Column(title="number", cell=lambda row: row[2], right=True, rank=2),
        Column(title="error", cell=lambda row: row[3], rank=1),
    ]


@pytest.fixture
def at_a_terminal(environment: None) -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def lines(width: int, columns: list[Column[Row]], opened: list[Terminal], rows: list[Row] = ROWS) -> list[str]:
    opened.append(Terminal(columns=width))
    return Table(columns, Screen(opened[-1].stream)).lines(rows)


def test_where_there_is_room_everything_is_shown(columns: list[Column[Row]], at_a_terminal: list[Terminal]) -> None:
    wide = [
        "id         name               number  error",
        "first-id   shop.tasks.resize      12  -",
        "second-id  add                     3  -",
    ]
    assert lines(43, columns, at_a_terminal) == wide
    assert Table(columns, Screen(io.StringIO())).lines(ROWS) == wide


def test_cells_are_shortened_before_a_column_is_left_out(
    columns: list[Column[Row]], at_a_terminal: list[Terminal]
) -> None:
    assert lines(36, columns, at_a_terminal) == [
        "id         name        number  error",
        "first-id   …ks.resize      12  -",
        "second-id  add              3  -",
    ]


def test_what_says_nothing_is_left_out_first_and_then_by_rank(
    columns: list[Column[Row]], at_a_terminal: list[Terminal]
) -> None:
    assert lines(31, columns, at_a_terminal)[:2] == [
        "id         name          number",
        "first-id   …asks.resize      12",
    ]
    failed: list[Row] = [("first-id", "shop.tasks.resize", "12", "Error")]
    assert lines(25, columns, at_a_terminal, failed) == [
        "id        name      error",
        "first-id  ….resize  Error",
    ]
    assert lines(18, columns, at_a_terminal)[1:] == ["first-id   …resize", "second-id  add"]


def test_what_is_always_shown_is_shown_even_where_it_does_not_fit(
    columns: list[Column[Row]], at_a_terminal: list[Terminal]
) -> None:
    assert lines(5, columns, at_a_terminal)[1:] == ["first-id   …esize", "second-id  add"]


def test_a_later_page_repeats_the_header_only_where_the_columns_changed(columns: list[Column[Row]]) -> None:
    table = Table(columns, Screen(io.StringIO()))
    table.lines(ROWS)
    assert table.lines([("third", "add", "1", "-")]) == ["third      add                     1  -"]
    header, row = table.lines([("fourth", "add", "1", "RuntimeError")])
    assert header.startswith("id ")
    assert row.endswith("1  RuntimeError")


def test_colours_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal(columns=40)
    coloured = [
        Column[str](title="state", cell=str, styles=lambda _: ("red",)),
        Column[str](title="n", cell=lambda row: row[:1]),
    ]
    shown = Table(coloured, Screen(terminal.stream)).lines(["ready", "failed"])
    terminal.close()
    assert shown[1:] == ["\x1b[31mready\x1b[0m   r", "\x1b[31mfailed\x1b[0m  f"]


@pytest.mark.parametrize(
    ("text", "width", "keep_end", "short"),
    [
        ("resize", 6, False, "resize"),
        ("resize", 4, False, "res…"),
        ("resize", 4, True, "…ize"),
        ("画像を縮小", 10, False, "画像を縮小"),
        ("画像を縮小", 9, False, "画像を縮…"),
        ("画像を縮小", 8, False, "画像を…"),
        ("画像を縮小", 4, True, "…小"),
        ("e\u0301te\u0301", 3, False, "e\u0301te\u0301"),
    ],
)
def test_an_ellipsis_stands_where_something_is_missing(text: str, width: int, keep_end: bool, short: str) -> None:
    assert shortened(text, width, keep_end=keep_end) == short


def test_wide_characters_take_two_columns(columns: list[Column[Row]], at_a_terminal: list[Terminal]) -> None:
    rows: list[Row] = [("一", "画像を縮小する", "12", "-"), ("second", "add", "3", "-")]
    assert lines(43, columns, at_a_terminal, rows) == [
        "id      name            number  error",
        "一      画像を縮小する      12  -",
        "second  add                  3  -",
    ]
    assert lines(31, columns, at_a_terminal, rows)[1] == "一      …小する       12  -"


def test_nothing_in_a_text_commands_the_terminal() -> None:
    assert printable("naïve – 日本") == "naïve – 日本"
    assert printable("a\x1b[2J\r\n\x9b\u202e\ud800") == r"a\x1b[2J\r\n\x9b\u202e\ud800"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172_799, "47 h"),
        (172_800, "2 d"),
        (63_072_000, "2 y"),
    ],
)
def test_a_rough_duration_has_one_unit(seconds: float, text: str) -> None:
    assert rough_duration(seconds) == text


def test_times_are_told_from_now_on() -> None:
    now = datetime(2025, 3, 1, 12, tzinfo=UTC)
    assert relative(now + timedelta(minutes=3), now) == "in 3 min"
    assert relative(now - timedelta(minutes=3), now) == "3 min ago"
    assert ago(None, now) == "-"


@pytest.mark.parametrize(("number", "text"), [(0, "no tasks"), (1, "1 task"), (1204, "1,204 tasks")])
def test_numbers_take_the_right_form(number: int, text: str) -> None:
    assert plural(number, "task") == text
