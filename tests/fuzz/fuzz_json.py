"""Feeds the JSON serializer what a coverage-guided fuzzer comes up with. Not part of ``make test``: it never ends.

Whatever the bytes, decoding gives a value, or a SerializationError and no other error; and a value that was decoded can
be encoded, and then comes back the same. What it finds becomes a case of ``tests/core/test_json_hostile.py``.

Needs atheris, in an environment with omniq-core and its dependencies::

    pip install atheris ./omniq-core
    python tests/fuzz/fuzz_json.py -max_total_time=600
"""

from __future__ import annotations

import enum
import json
import random
import sys
import tempfile
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # installed for this alone
import attrs

with atheris.instrument_imports(include=["omniq.serialization", "json", "zoneinfo"]):
    from omniq.errors import SerializationError
    from omniq.serialization import ArgumentTypes
    from omniq.serialization.json import serializer


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Name(str):
    __slots__ = ()


class Pair(NamedTuple):
    left: int
    right: str = ""


class Options(TypedDict, total=False):
    size: int
    names: list[str]


@attrs.frozen
class Item:
    name: str
    color: Color = Color.RED
    inside: list[Item] = attrs.field(factory=list)


@dataclass(frozen=True)
class Picky:
    values: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        if 13 in self.values:
            raise LookupError("13 is out")


TYPES = [
    ArgumentTypes(),
    ArgumentTypes(var_positional=Item | Picky | None),
    ArgumentTypes(var_positional=dict[UUID | int, set[date | datetime]] | list[Pair] | tuple[int, Color, Access]),
    ArgumentTypes(var_positional=Literal["a", 1, Color.RED] | Name | float | Options),
    ArgumentTypes(var_positional=deque[Item] | OrderedDict[str, Decimal] | complex | timedelta | time | PurePath),
    ArgumentTypes(var_positional=frozenset[Picky] | range | bytes | bytearray, var_keyword=Options),
]
SEEDS: list[tuple[int, tuple[Any, ...]]] = [
    (0, (1, -1.5, None, True, "é", b"x", 10**5_000, [{"$": 1}], {1: {2}}, (3,), frozenset({4}), deque([5], 6))),
    (0, (datetime(2024, 1, 1, tzinfo=UTC), time(1), date(2024, 1, 1), timedelta(1, 2, 3), Decimal("1.5"), UUID(int=1))),
    (0, (complex(1, 2), range(1, 9, 2), Path("a/b"), OrderedDict(a=1), {"a": {"b": [[]]}}, float("nan"))),
    (1, (Item("a", Color.BLUE, [Item("b")]), Picky(frozenset({1})), None)),
    (
        2,
        (
            {UUID(int=1): {date(2024, 1, 1)}, 5: {datetime(2024, 1, 1, tzinfo=UTC)}},
            [Pair(1, "x")],
            (1, Color.RED, Access.READ),
        ),
    ),
    (3, ("a", 1, Color.RED, Name("n"), 1.5, Options(size=1, names=["x"]))),
    (4, (deque([Item("a")]), OrderedDict(a=Decimal(1)), 1j, timedelta(1), time(1, tzinfo=UTC), PurePath("a"))),
    (5, (frozenset({Picky(frozenset({1, 2}))}), range(3), b"a", bytearray(b"b"))),
]


def check(data: bytes) -> None:
    """Decode some bytes, the first of which says for which annotations."""
    if not data:
        return
    types = TYPES[data[0] % len(TYPES)]
    try:
        args, kwargs = serializer.load_arguments(data[1:], types)
    except SerializationError:
        return
    again = serializer.dump_arguments(args, kwargs, types)
    if serializer.dump_arguments(*serializer.load_arguments(again, types), types) != again:
        raise AssertionError("what was decoded does not come back as it was")


WORDS = sorted(
    {"$", "v", "zone", "name", "fold", "maxlen", "Europe/Berlin", "NaN", "0x1", "2024-01-01", "10:00", "a", "", "RED"}
    | {"datetime", "time", "date", "timedelta", "Decimal", "UUID", "complex", "bytes", "range", "path", "int", "é"}
    | {"tuple", "set", "frozenset", "deque", "dict", "OrderedDict", "Item", "Picky", "Color", "Pair", "Name", "values"}
)
ATOMS: list[Any] = [None, True, False, 0, 1, -1, 2**63, 10**20, 0.5, -0.0, float("nan"), float("inf"), [], {}, *WORDS]


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change some bytes; more often, where they are JSON, the tree that they say."""
    chance = random.Random(seed)
    if len(data) > 1 and chance.random() < 0.8:
        try:
            tree = json.loads(data[1:])
        except (ValueError, RecursionError):
            pass
        else:
            changed = changed_somewhere(tree, chance)
            made = data[:1] + json.dumps(changed, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
            if len(made) <= max_size:
                return made
    mutated: bytes = atheris.Mutate(data, max_size)
    return mutated


def changed_somewhere(tree: Any, chance: random.Random) -> Any:
    if isinstance(tree, list) and tree and chance.random() < 0.8:
        place = chance.randrange(len(tree))
        tree[place] = changed_somewhere(tree[place], chance)
        return tree
    if isinstance(tree, dict) and tree and chance.random() < 0.8:
        key = chance.choice(list(tree))
        tree[key] = changed_somewhere(tree[key], chance)
        return tree
    match chance.randrange(6):
        case 0 if isinstance(tree, dict):
            return {**tree, chance.choice(WORDS): chance.choice(ATOMS)}
        case 1 if isinstance(tree, list):
            return [*tree, chance.choice([*ATOMS, *tree])]
        case 2 if isinstance(tree, dict | list) and tree:
            return list(tree)[1:] if isinstance(tree, list) else dict(list(tree.items())[1:])
        case 3:
            return {"$": chance.choice(WORDS), "v": chance.choice([tree, [tree], [[tree, tree]], chance.choice(ATOMS)])}
        case 4:
            return [tree, tree]
    return chance.choice(ATOMS)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, (index, args) in enumerate(SEEDS):
            payload = serializer.dump_arguments(args, {}, TYPES[index])
            Path(folder, str(number)).write_bytes(bytes([index]) + payload)
        dictionary = Path(folder, "words")
        dictionary.write_text("".join(f"{json.dumps(word)}\n" for word in WORDS if word.isascii() and word))
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        options = [f"-dict={dictionary}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=2048"]
        atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(corpus), folder], check, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
