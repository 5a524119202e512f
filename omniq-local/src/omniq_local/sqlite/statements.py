"""The SQL of this backend: read once from ``sql/*.sql``, and made out for a namespace.

A file holds the statements of one verb, each after a line ``-- name: NAME``. In them ``{ns}`` stands for the prefix
of the tables, ``{columns}``, ``{bare}``, ``{slim}``, ``{claimable}`` and ``{claimed}`` for columns of a task, see
encoding.py, and ``{(?, ?)}`` for as many rows of values as are given: a whole batch is one statement and so one step of
SQLite. That matters beyond its speed: Python lets go of its lock at each step, and where other threads are busy it
comes back only after some milliseconds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from omniq_local.sqlite.encoding import BARE, CLAIMABLE, CLAIMED, COLUMNS, SLIM

__all__ = ["Statements", "schema"]

LARGEST_GROUP = 128
"""The most rows in one statement of a batch."""

_SECTION = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)
_ROWS = re.compile(r"\{(\([?, ]+\))\}")


@functools.cache
def _templates() -> Mapping[str, str]:
    found = {}
    for file in resources.files("omniq_local.sqlite").joinpath("sql").iterdir():
        verb, _, extension = file.name.rpartition(".")
        if extension != "sql" or verb == "schema":
            continue
        _, *sections = _SECTION.split(file.read_text(encoding="utf-8"))
        for name, text in zip(sections[::2], sections[1::2], strict=True):
            found[f"{verb}.{name}"] = _COMMENT.sub("", text).strip()
    return found


def schema(prefix: str) -> str:
    """Return the script that creates the tables of a namespace."""
    file = resources.files("omniq_local.sqlite").joinpath("sql").joinpath("schema.sql")
    return file.read_text(encoding="utf-8").replace("{ns}", prefix)


class Statements:
    """The statements of one namespace, by ``verb.name``.

    :param prefix: what the names of its tables begin with.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._texts = {
            name: text.replace("{columns}", COLUMNS)
            .replace("{bare}", BARE)
            .replace("{slim}", SLIM)
            .replace("{claimable}", CLAIMABLE)
            .replace("{claimed}", CLAIMED)
            .replace("{ns}", prefix)
            for name, text in _templates().items()
        }
        # The very same string each time: SQLite's wrapper finds a prepared statement by it.
        self._sized: dict[tuple[str, int], str] = {}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def table(self, name: str) -> str:
        """Return the name of a table as it stands in a statement."""
        return f'"{self.prefix}.{name}"'

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def sized(self, name: str, rows: int) -> str:
        """Return the statement for a number of rows."""
        text = self._sized.get((name, rows))
        if text is None:
            text = _ROWS.sub(lambda match: ", ".join([match[1]] * rows), self._texts[name])
            self._sized[name, rows] = text
        return text

    def in_groups(self, name: str, rows: Sequence[tuple[Any, ...]], *first: Any) -> Iterator[tuple[str, list[Any]]]:
        """Cut a batch into groups of a few sizes (powers of two), so that the statements stay prepared.

        :param name: a statement with ``{(?, …)}`` in it.
        :param rows: the values of each row.
        :param first: the values of the parameters that come before the rows.
        :return: for each group its statement and parameters.
        """
        start, total = 0, len(rows)
        while start < total:
            size = min(LARGEST_GROUP, 1 << (total - start).bit_length() - 1)
            parameters = list(first)
            for row in rows[start : start + size]:
                parameters += row
            yield self.sized(name, size), parameters
            start += size
