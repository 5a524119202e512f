"""Tables that fit a terminal: too narrow for all, it is shown the columns that matter most, and shorter cells.

Where the output is no terminal nothing is left out or shortened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from attrs import frozen

from omniq.cli.terminal import Screen, display_width, fitting, padded
from omniq.storage.escaping import printable

__all__ = ["Column", "Table", "shortened"]

T = TypeVar("T")

GAP = 2


def _plain(_: object) -> Sequence[str]:
    return ()


@frozen(kw_only=True)
class Column(Generic[T]):
    """One column of a table whose rows are made of values of one type."""

    title: str
    cell: Callable[[T], str]
    """Gives the text for a row. It is escaped."""
    styles: Callable[[T], Sequence[str]] = _plain
    """Gives the colours of the cell, as for :meth:`Screen.styled`."""
    right: bool = False
    """Aligned to the right, as numbers are."""
    least: int | None = None
    """May be shortened to so many columns of the terminal; None: never shortened."""
    keep_end: bool = False
    """Shortened at its beginning, not at its end."""
    rank: int = 0
    """0: always shown. The larger, the sooner it is left out."""
    dull: str = "-"
    """A cell that says nothing: a column of nothing else is left out before any other."""


def shortened(text: str, width: int, *, keep_end: bool = False) -> str:
    """Return a text that is cut to a width, with an ellipsis where something is missing."""
    if display_width(text) <= width:
        return text
    return f"…{fitting(text[::-1], width - 1)[::-1]}" if keep_end else f"{fitting(text, width - 1)}…"


class Table(Generic[T]):
    """A table that may come in pieces, as pages of rows do. The header comes again where the columns change.

    :param columns: from left to right.
    """

    def __init__(self, columns: Sequence[Column[T]], screen: Screen) -> None:
        self._columns = columns
        self._screen = screen
        self._room = screen.width if screen.is_terminal else None
        self._natural = [len(column.title) for column in columns]
        self._dull = [True] * len(columns)
        self._shown: dict[int, int] = {}

    def lines(self, rows: Sequence[T]) -> list[str]:
        """Return the lines of these rows, the header before them where it is needed; none of no rows."""
        if not rows:
            return []
        cells = [[printable(column.cell(row)) for column in self._columns] for row in rows]
        for index, (column, texts) in enumerate(zip(self._columns, zip(*cells, strict=True), strict=True)):
            self._natural[index] = max(self._natural[index], *map(display_width, texts))
            self._dull[index] &= all(text == column.dull for text in texts)
        shown = self._fitted()
        lines = [] if shown == self._shown else [self._screen.styled(self._header(shown), "bold")]
        self._shown = shown
        return lines + ["".join(self._cells(row, texts)).rstrip() for row, texts in zip(rows, cells, strict=True)]

    def _fitted(self) -> dict[int, int]:
        """Return the width of each column that is shown."""
        shown = dict(enumerate(self._natural))
        if self._room is None:
            return shown
        room = self._room
        while _total(self._least(index, width) for index, width in shown.items()) > room:
            droppable = [index for index in shown if self._columns[index].rank]
            if not droppable:
                break
            del shown[max(droppable, key=lambda index: (self._dull[index], self._columns[index].rank))]
        while _total(shown.values()) > room:
            long = [index for index, width in shown.items() if width > self._least(index, width)]
            if not long:
                break
            shown[max(long, key=lambda index: shown[index])] -= 1
        return shown

    def _least(self, index: int, width: int) -> int:
        least = self._columns[index].least
        return width if least is None else min(width, least)

    def _header(self, shown: dict[int, int]) -> str:
        cells = [
            padded(shortened(self._columns[index].title, width), width, right=self._columns[index].right)
            for index, width in shown.items()
        ]
        return (" " * GAP).join(cells).rstrip()

    def _cells(self, row: T, texts: Sequence[str]) -> Iterator[str]:
        gap = ""
        for index, width in self._shown.items():
            column = self._columns[index]
            text = shortened(texts[index], width, keep_end=column.keep_end)
            styled = self._screen.styled(text, *column.styles(row))
            # Aligned without the escape codes of colours, which take no room.
            yield gap + padded(text, width, right=column.right).replace(text, styled, 1)
            gap = " " * GAP


def _total(widths: Iterable[int]) -> int:
    cells = list(widths)
    return sum(cells) + GAP * (len(cells) - 1)
