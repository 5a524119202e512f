"""The SQL of this backend: read once from ``sql/*.sql``, and made out for a schema and namespace.

A file holds the statements of one verb, each after a line ``-- name: NAME``. What several of any file have in common
stands after a line ``-- part: NAME`` in one of them, and ``{NAME}`` in its place. A part may hold others, which hold
none. In them ``{task}``, ``{live}`` and so on stand for the tables, and ``{record}`` for the columns of which
:func:`omniq_postgres.encoding.task_of` makes a task.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from importlib import resources

from omniq_postgres.encoding import BARE, CLAIMED, KEPT_OF_KEY, LIGHT, LONGEST_KEY, RECORD
from omniq_postgres.settings import IDLE_IN_TRANSACTION, Names

__all__ = ["Statements", "migration_files"]

_SECTION = re.compile(r"^-- (name|part): (\w+)\n", re.MULTILINE)
_PLACE = re.compile(r"\{(\w+)\}")
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)


@functools.cache
def _templates() -> Mapping[str, str]:
    found: dict[str, dict[str, str]] = {"part": {}, "name": {}}
    for file in resources.files("omniq_postgres").joinpath("sql").iterdir():
        verb, _, extension = file.name.rpartition(".")
        if extension != "sql":
            continue
        _, *sections = _SECTION.split(file.read_text(encoding="utf-8"))
        for kind, name, section in zip(sections[::3], sections[1::3], sections[2::3], strict=True):
            found[kind][name if kind == "part" else f"{verb}.{name}"] = _COMMENT.sub("", section).strip()
    for texts in found.values():  # the parts first: one may hold others
        for name, text in texts.items():
            texts[name] = _PLACE.sub(lambda place: found["part"].get(place[1], place[0]), text)
    return found["name"]


@functools.cache
def migration_files() -> Mapping[int, tuple[str, str]]:
    """Return the migrations by their number: what each brings, and its SQL with placeholders for names."""
    found = {}
    for file in resources.files("omniq_postgres").joinpath("schema").iterdir():
        number, _, extension = file.name.rpartition(".")
        if extension == "sql":
            title, _, sql = file.read_text(encoding="utf-8").partition("\n")
            sql = _expanded(sql).replace("{guarded}", _templates()["enqueue.guarded"])
            found[int(number)] = (title.removeprefix("-- ").strip(), sql.strip())
    return dict(sorted(found.items()))


def fill(template: str, names: Names) -> str:
    """Put names in the place of what stands for them."""
    for word, name in names.of_all().items():
        template = template.replace("{" + word + "}", name)
    return template


_COMMON = {
    "record": RECORD,
    "light": LIGHT,
    "claimed": CLAIMED,
    "kept_until": (
        "CASE WHEN flow IS NULL THEN now + least(greatest(result_ttl, 0), 3e9) * interval '1 second' "
        "ELSE 'infinity' END"
    ),
    "agenda": (
        "(coalesce((SELECT due FROM {flow} WHERE due IS NOT NULL AND NOT ended ORDER BY due LIMIT 1) "
        "<= (SELECT clock_timestamp()), false) OR EXISTS (SELECT FROM {ended} WHERE uncounted "
        "AND flow IS NOT NULL AND finished_at < (SELECT clock_timestamp() - interval '1 second')))"
    ),
    "idle_in_transaction": str(IDLE_IN_TRANSACTION),
    "longest_key": str(LONGEST_KEY),
    "kept_of_key": str(KEPT_OF_KEY),
}
"""What several verbs have in common.

``kept_until``: how long a task is kept that ends ``now``; one of a flow, as long as that. ``agenda``: whether there is
something to do about a flow, be it that the client that ended one of its tasks died before it was counted.
"""


def _expanded(text: str) -> str:
    for word, part in _COMMON.items():
        text = text.replace("{" + word + "}", part)
    return text


LISTS = ("reading.latest", "reading.list", "reading.list_live", "reading.list_running", "reading.list_ended")
"""There is another of each, with ``_bare`` behind its name, that reads sizes in place of bodies and results."""


class Statements(Mapping[str, bytes]):
    """The statements of one namespace, by ``verb.name``; the very same object each time."""

    def __init__(self, names: Names) -> None:
        self.names = names
        texts = _templates()
        bare = {f"{name}_bare": texts[name].replace("{record}", BARE) for name in LISTS}
        # To look for it takes a fifth of a claim, so most claims do not.
        claims = {
            "claim.claim": texts["claim.claim"].replace("{agenda}", "false"),
            "claim.settling": texts["claim.claim"],
        }
        self._texts = {
            name: fill(_expanded(text), names).encode() for name, text in {**texts, **bare, **claims}.items()
        }

    def __getitem__(self, name: str) -> bytes:
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)
