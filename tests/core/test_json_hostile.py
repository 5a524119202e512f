"""Whatever bytes a store hands out are decoded to values of the annotations, or refused with one kind of error."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from omniq.errors import SerializationError
from omniq.serialization import ArgumentTypes
from omniq.serialization.json import serializer
from tests.core import hostile_payloads


class Color(enum.Enum):
    RED = 1


class Access(enum.Flag):
    READ = 1


class Name(str):
    __slots__ = ()


@attrs.frozen
class Item:
    name: str
    color: Color = Color.RED
    inside: list[Item] = attrs.field(factory=list)


@dataclass(frozen=True)
class Picky:
    values: frozenset[int]

    def __post_init__(self) -> None:
        if 13 in self.values:
            raise LookupError("13 is out")

    def __hash__(self) -> int:
        return 1 // len(self.values)


TYPES = ArgumentTypes(
    positional=(
        int,
        list[Item],
        Item | Picky | None,
        dict[UUID, set[date]],
        tuple[int, Color, Access],
        Literal["a", 1, Color.RED],
        frozenset[Picky],
        Name | float,
    ),
    keyword={"any": Any, "zoned": datetime},
)
ARGS = (
    1,
    [Item("a", inside=[Item("b")])],
    Picky(frozenset({1})),
    {UUID(int=1): {date(2024, 1, 1)}},
    (1, Color.RED, Access.READ),
    Color.RED,
    frozenset({Picky(frozenset({1, 2}))}),
    Name("n"),
)
KWARGS = {
    "zoned": datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    "any": [
        {"$": "x"},
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "X")),
        time(1, tzinfo=UTC),
        timedelta(1),
        Decimal("1.5"),
        b"abc",
        bytearray(b"abc"),
        complex(1, 2),
        PurePosixPath("a"),
        range(3),
        {1: (2, {3})},
        10**5_000,
        "é",
        1.5e300,
        None,
        True,
    ],
}
VALID = serializer.dump_arguments(ARGS, KWARGS, TYPES)
TREE = json.loads(VALID)


def loads_or_refuses(data: bytes, types: ArgumentTypes = TYPES) -> None:
    try:
        args, kwargs = serializer.load_arguments(data, types)
    except SerializationError:
        return
    # What was taken fits the annotations, so it can be dumped again.
    serializer.dump_arguments(args, kwargs, types)


def test_the_payload_that_is_mutated_below_is_valid() -> None:
    assert serializer.load_arguments(VALID, TYPES) == (ARGS, KWARGS)


@given(st.integers(0, len(VALID) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_harmless(position: int, bit: int) -> None:
    data = bytearray(VALID)
    data[position] ^= 1 << bit
    loads_or_refuses(bytes(data))
    loads_or_refuses(bytes(data), ArgumentTypes())


@given(st.integers(0, len(VALID) - 1))
def test_a_truncated_payload_is_refused(length: int) -> None:
    with pytest.raises(SerializationError):
        serializer.load_arguments(VALID[:length], TYPES)


@given(st.integers(0, len(VALID) - 1), st.integers(1, 40))
def test_a_payload_with_a_part_deleted_is_refused_or_harmless(start: int, count: int) -> None:
    loads_or_refuses(VALID[:start] + VALID[start + count :])


@given(st.integers(0, len(VALID) - 1), st.integers(0, len(VALID) - 1), st.integers(1, 60))
def test_a_payload_with_a_part_repeated_elsewhere_is_refused_or_harmless(start: int, place: int, count: int) -> None:
    loads_or_refuses(VALID[:place] + VALID[start : start + count] + VALID[place:])


@given(st.integers(0, len(VALID)), st.integers(0, len(VALID)), st.binary(max_size=20))
def test_a_payload_with_a_part_replaced_is_refused_or_harmless(start: int, end: int, part: bytes) -> None:
    loads_or_refuses(VALID[:start] + part + VALID[end:])


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["$", "v", "zone", "name", "a"]), inner)
    ),
    max_leaves=8,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


def replaced(tree: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = tree.copy()
    copy[path[0]] = replaced(tree[path[0]], path[1:], new)
    return copy


@given(st.sampled_from(places(TREE)), json_trees)
def test_json_of_another_shape_anywhere_is_refused_or_harmless(path: tuple[Any, ...], new: object) -> None:
    data = json.dumps(replaced(TREE, path, new)).encode()
    loads_or_refuses(data)
    loads_or_refuses(data, ArgumentTypes())


TAGS = [
    "int",
    "datetime",
    "date",
    "time",
    "timedelta",
    "Decimal",
    "UUID",
    "bytes",
    "bytearray",
    "complex",
    "range",
    "path",
]
TAGS += [
    "PureWindowsPath",
    "tuple",
    "set",
    "frozenset",
    "dict",
    "OrderedDict",
    "deque",
    "Item",
    "Color",
    "Name",
    "os.system",
]


@given(
    st.sampled_from(TAGS),
    json_trees,
    st.dictionaries(st.sampled_from(["zone", "name", "fold", "maxlen", "x"]), json_trees, max_size=2),
)
@example("deque", [], {"maxlen": 2**70})
@example("datetime", "2024-01-01T00:00:00", {"zone": "../../etc/passwd"})
@example("datetime", "2024-01-01T00:00:00", {"zone": "/etc/localtime"})
@example("datetime", "2024-01-01T00:00:00", {"zone": "Europe"})
@example("datetime", "2024-01-01T00:00:00", {"zone": "os.path"})
@example("datetime", "2024-01-01T00:00:00", {"zone": "x" * 5_000})
@example("datetime", "0001-01-01T00:00:00+23:59", {})
@example("timedelta", [2**70, 0, 0], {})
@example("timedelta", [1.5, 0, 0], {})
@example("range", [0, 1, 0], {})
@example("int", "0xg", {})
@example("Decimal", "sNaN", {})
@example("Decimal", "1E+99999999999999999999999", {})
@example("set", [[1]], {})
@example("set", [1, 1.0], {})
@example("set", [{"$": "Decimal", "v": "sNaN"}], {})
@example("dict", [[[1], 2]], {})
@example("dict", [[1, 2], [True, 3]], {})
@example("path", "\x00", {})
def test_a_tag_with_anything_in_it_is_refused_or_harmless(tag: str, inside: object, more: dict[str, Any]) -> None:
    for hint in (Any, datetime | timedelta | set[int] | Item, Color, Name, dict[int, int], complex):
        data = json.dumps({"$": tag, "v": inside, **more}).encode()
        try:
            value = serializer.load_result(data, hint)
        except SerializationError:
            continue
        serializer.dump_result(value, hint)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"\x00",
        b"\xff\xfe",
        b"\xc3",
        b"{",
        b"[[],{}",
        b"[[],{}]x",
        b"[[],{}] ",
        b"[[],{}][[],{}]",
        b"\xef\xbb\xbf[[],{}]",
        b"nul",
        b"[[1,],{}]",
        b"[[01],{}]",
        b"['a']",
        b'[["\x01"],{}]',
        b'[["\\ud83"],{}]',
        b"[[],{},[]]",
        b"[{},[]]",
        b"[[]]",
        b"{}",
        b"1",
        b"null",
        b'[[],{"a":1,"a":2}]',
        b'[[{"a":{"b":1,"b":1}}],{}]',
        b'[[{"$":"set","v":[],"v":[]}],{}]',
        b'[[{"$":"set"}],{}]',
        b'[[{"$":["set"],"v":[]}],{}]',
        b'[[{"$":null,"v":[]}],{}]',
        b'[[{"\\u0024":"nothing","v":[]}],{}]',
        b'[[{"$":"set","v":[1,1]}],{}]',
        b'[[{"$":"set","v":[1,true]}],{}]',
        b'[[{"$":"dict","v":[[1,"a"],[1,"a"]]}],{}]',
        b'[[{"$":"dict","v":[[1]]}],{}]',
        b'[[{"$":"OrderedDict","v":[["a",1],["a",2]]}],{}]',
        b"[" * 100_000,
        b"[" * 5_000 + b"]" * 5_000,
        b"[[" + b"[" * 300 + b"]" * 300 + b"],{}]",
        b"[[" + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"],{}]",
        b"[[" + b'{"$":"tuple","v":[' * 300 + b"]}" * 300 + b"],{}]",
        b"[[" + b"9" * 10_000 + b"],{}]",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_bytes_that_are_not_its_own_are_refused_as_such(data: bytes) -> None:
    with pytest.raises(SerializationError) as caught:
        serializer.load_arguments(data, ArgumentTypes())
    assert len(str(caught.value)) < 400


def test_levels_that_no_annotation_counts_are_bounded_too() -> None:
    payload = b'{"name":"a","color":"RED","inside":[' * 300 + b"]}" * 300
    with pytest.raises(SerializationError, match="nested"):
        serializer.load_result(payload, Item)


def test_a_deep_payload_is_refused_however_little_stack_is_left() -> None:
    def below(levels: int, function: Callable[[], object]) -> object:
        return function() if levels == 0 else below(levels - 1, function)

    payload = b"[[" + b"[1,2,[" * 45 + b"]]" * 45 + b"],{}]"
    serializer.load_arguments(payload, ArgumentTypes())
    refused = 0
    for levels in range(sys.getrecursionlimit() - 500, sys.getrecursionlimit() - 60, 20):
        try:
            below(levels, lambda: serializer.load_arguments(payload, ArgumentTypes()))
        except SerializationError:
            refused += 1
        except RecursionError:
            break  # no stack for the test itself
    assert refused
    serializer.load_arguments(payload, ArgumentTypes())


def test_what_the_constructor_of_a_class_raises_is_an_error_of_ours() -> None:
    payload = b'{"values":{"$":"frozenset","v":[13]}}'
    with pytest.raises(
        SerializationError, match=r"^result: Picky does not take its stored fields: LookupError: '?13 is out"
    ):
        serializer.load_result(payload, Picky)
    with pytest.raises(SerializationError, match="ZeroDivisionError"):
        serializer.load_result(b'{"$":"set","v":[{"values":{"$":"frozenset","v":[]}}]}', set[Picky])


def test_untagged_objects_for_recursive_unions_take_no_exponential_time() -> None:
    @attrs.frozen
    class Leaf:
        kids: list[Any]

    payload = b'{"kids":[' * 90 + b"1" + b"]}" * 90
    with pytest.raises(SerializationError):
        serializer.load_result(payload, list[Leaf] | list[Item] | Leaf | Item)


def test_no_payload_takes_minutes_or_gigabytes() -> None:
    # The program limits itself: one that takes too long is killed, and the last name that it printed says of what.
    done = subprocess.run([sys.executable, hostile_payloads.__file__], capture_output=True, text=True, check=False)

    assert done.stdout.splitlines()[-1] == "the end", f"{done.stdout}{done.stderr}"


COLLIDING = [number * (2**61 - 1) for number in range(1, 5_000)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: set(COLLIDING),
        lambda: frozenset(COLLIDING),
        lambda: dict.fromkeys(COLLIDING),
        lambda: {0: set(COLLIDING)},
    ],
    ids=["set", "frozenset", "dict", "set in a dict"],
)
def test_numbers_chosen_to_have_one_hash_are_refused_where_they_come_from_too(make: Callable[[], object]) -> None:
    value = make()
    for hint in (Any, type(value)):
        with pytest.raises(SerializationError, match="have the hash of another"):
            serializer.dump_result(value, hint)


@pytest.mark.parametrize(
    "make",
    [lambda: set(range(-5_000, 5_000)), lambda: dict.fromkeys(range(5_000)), lambda: set(COLLIDING[:1_000])],
    ids=["set", "dict", "a thousand of one hash"],
)
def test_numbers_that_are_not_pass_however_many(make: Callable[[], object]) -> None:
    value = make()
    assert serializer.load_result(serializer.dump_result(value, Any), Any) == value


def test_nothing_that_a_payload_names_is_imported() -> None:
    script = """
import sys
from typing import Any
from omniq.errors import SerializationError
from omniq.serialization.json import serializer
before = set(sys.modules)
for tag in ["antigravity", "this.s", "wave.Error", "antigravity:fly", "path", "datetime"]:
    for inside in ['"antigravity"', '["wave"]', '{"__class__":"wave.Error"}']:
        for more in ["", ',"zone":"antigravity"', ',"zone":"wave/Error"']:
            try:
                serializer.load_result(f'{{"$":"{tag}","v":{inside}{more}}}'.encode(), Any)
            except SerializationError:
                pass
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] in {"antigravity", "this", "wave"}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_call_with_plain_arguments_imports_no_cattrs() -> None:
    script = """
import sys
from omniq.serialization import ArgumentTypes
from omniq.serialization.json import serializer
types = ArgumentTypes(positional=(int, list[str]), keyword={"a": float | None})
assert serializer.load_arguments(serializer.dump_arguments((1, ["b"]), {"a": None}, types), types)
print("cattrs" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
