"""The SQL of this backend: read once from ``sql/*.sql``, and made out for a schema and namespace.

A file holds the statements of one verb, each after a line ``-- name: NAME``. What several of them have in common stands
before them, after a line ``-- part: NAME``, and ``{NAME}`` in its place. In them ``{task}``, ``{live}`` and so on
stand for the tables, and ``{record}`` for the columns of which :func:`omniq_postgres.encoding.task_of` makes a task.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from importlib import resources

from omniq_postgres.encoding import BARE, CLAIMED, RECORD
from omniq_postgres.settings import Names

__all__ = ["Statements", "migration_files"]

_SECTION = re.compile(r"^-- (name|part): (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)


@functools.cache
def _templates() -> Mapping[str, str]:
    found = {}
    for file in resources.files("omniq_postgres").joinpath("sql").iterdir():
        verb, _, extension = file.name.rpartition(".")
        if extension != "sql":
            continue
        _, *sections = _SECTION.split(file.read_text(encoding="utf-8"))
        parts: dict[str, str] = {}
        for kind, name, section in zip(sections[::3], sections[1::3], sections[2::3], strict=True):
            text = _COMMENT.sub("", section).strip()
            for part, inside in parts.items():
                text = text.replace("{" + part + "}", inside)
            if kind == "part":
                parts[name] = text
            else:
                found[f"{verb}.{name}"] = text
    return found


@functools.cache
def migration_files() -> Mapping[int, tuple[str, str]]:
    """Return the migrations by their number: what each brings, and its SQL with placeholders for names."""
    found = {}
    for file in resources.files("omniq_postgres").joinpath("schema").iterdir():
        number, _, extension = file.name.rpartition(".")
        if extension == "sql":
            title, _, sql = file.read_text(encoding="utf-8").partition("\n")
            found[int(number)] = (title.removeprefix("-- ").strip(), sql.strip())
    return dict(sorted(found.items()))


def fill(template: str, names: Names) -> str:
    """Put names in the place of what stands for them."""
    for word, name in names.of_all().items():
        template = template.replace("{" + word + "}", name)
    return template


LISTS = ("reading.latest", "reading.list", "reading.list_live", "reading.list_running", "reading.list_ended")
"""There is another of each, with ``_bare`` behind its name, that reads sizes in place of bodies and results."""


class Statements(Mapping[str, bytes]):
    """The statements of one namespace, by ``verb.name``; the very same object each time."""

    def __init__(self, names: Names) -> None:
        self.names = names
        texts = _templates()
        bare = {f"{name}_bare": texts[name].replace("{record}", BARE) for name in LISTS}
        self._texts = {
            name: fill(text.replace("{record}", RECORD).replace("{claimed}", CLAIMED), names).encode()
            for name, text in {**texts, **bare}.items()
        }

    def __getitem__(self, name: str) -> bytes:
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)
