"""What needs no annotation: it comes back equal and of the same type, whether an annotation says what it is or not."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq.errors import SerializationError
from omniq.serialization import ArgumentTypes, Serializer
from omniq.serialization.json import serializer

ZONES = [ZoneInfo("Europe/Berlin"), ZoneInfo("UTC"), ZoneInfo("America/St_Johns"), UTC, timezone(timedelta(hours=-3))]
ZONES += [timezone(timedelta(hours=1), "CET"), timezone(timedelta(0), "Zulu")]
LARGE = 10**5_000


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same type, all the way down; NaN is the same as NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        if math.isnan(one):
            return math.isnan(other)
        return bool(one == other) and math.copysign(1, one) == math.copysign(1, other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return bool(one.as_tuple() == other.as_tuple())
    if isinstance(one, datetime | time):
        return (
            one.replace(tzinfo=None) == other.replace(tzinfo=None) and one.fold == other.fold and same_zone(one, other)
        )
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        unmatched = list(other)
        for item in one:
            match = next((there for there in unmatched if same(item, there)), unmatched)
            if match is unmatched:
                return False
            unmatched.remove(match)
        return not unmatched
    if isinstance(one, list | tuple | deque):
        maxlens = [getattr(values, "maxlen", None) for values in (one, other)]
        return len(one) == len(other) and maxlens[0] == maxlens[1] and all(map(same, one, other))
    return bool(one == other)


def same_zone(one: datetime | time, other: datetime | time) -> bool:
    if isinstance(one.tzinfo, ZoneInfo):
        return isinstance(other.tzinfo, ZoneInfo) and one.tzinfo.key == other.tzinfo.key
    return type(one.tzinfo) is type(other.tzinfo) and one.tzinfo == other.tzinfo and one.tzname() == other.tzname()


def round_trip(value: Any, hint: Any = Any) -> Any:
    return serializer.load_result(serializer.dump_result(value, hint), hint)


zones = st.sampled_from(ZONES)
texts = st.text(st.characters(exclude_categories=()))  # lone surrogates too
windows_paths = st.builds(PureWindowsPath, st.text("ab\\/:.")).filter(lambda path: PureWindowsPath(str(path)) == path)
hashable_atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.datetimes(timezones=st.none() | zones, allow_imaginary=True)
    | st.dates()
    | st.times(timezones=st.none() | st.just(UTC) | st.just(ZONES[0]))
    | st.timedeltas()
    | st.decimals(allow_nan=True).filter(lambda number: not number.is_snan())
    | st.uuids()
    | st.binary()
    | st.complex_numbers()
    | st.builds(Path, st.text("ab/.~é"))
    | st.builds(PurePosixPath, st.text("ab/."))
    | windows_paths
    | st.builds(range, st.integers(), st.integers(), st.integers(1))
)
hashables = st.recursive(
    hashable_atoms,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values: st.SearchStrategy[Any] = st.recursive(
    hashable_atoms | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.builds(deque, st.lists(inner, max_size=3), st.none() | st.just(9))
        | st.sets(hashables, max_size=4)
        | st.dictionaries(texts | st.just("$"), inner, max_size=4)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.dictionaries(hashables, inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=12,
)


@given(values)
def test_a_value_comes_back_equal_and_of_the_same_type_without_annotation(value: object) -> None:
    back = round_trip(value)
    assert same(back, value), (back, value)


@given(st.lists(values, max_size=3), st.dictionaries(texts, values, max_size=3))
def test_arguments_come_back_by_position_and_by_name(args: list[Any], kwargs: dict[str, Any]) -> None:
    types = ArgumentTypes()
    back = serializer.load_arguments(serializer.dump_arguments(tuple(args), kwargs, types), types)
    assert same(back, (tuple(args), kwargs))


ANNOTATED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (None, st.none()),
    (bool, st.booleans()),
    (int, st.integers()),
    (float, st.floats() | st.integers()),
    (complex, st.complex_numbers() | st.floats() | st.integers()),
    (str, texts),
    (bytes, st.binary()),
    (bytearray, st.binary().map(bytearray)),
    (datetime, st.datetimes(timezones=st.none() | zones)),
    (date, st.dates() | st.datetimes()),
    (time, st.times()),
    (timedelta, st.timedeltas()),
    (Decimal, st.decimals()),
    (UUID, st.uuids()),
    (Path, st.builds(Path, st.text("ab/"))),
    (PurePath, st.builds(Path, st.text("ab/")) | windows_paths),
    (range, st.builds(range, st.integers())),
    (list, st.lists(values, max_size=2)),
    (list[int], st.lists(st.integers())),
    (list[list[str]], st.lists(st.lists(texts, max_size=3), max_size=3)),
    (tuple, st.lists(values, max_size=2).map(tuple)),
    (tuple[()], st.just(())),
    (tuple[int, ...], st.lists(st.integers()).map(tuple)),
    (tuple[int, str, datetime], st.tuples(st.integers(), texts, st.datetimes())),
    (set[UUID], st.sets(st.uuids())),
    (frozenset[bytes], st.frozensets(st.binary())),
    (deque[date], st.lists(st.dates()).map(deque)),
    (dict, st.dictionaries(hashables, values, max_size=2)),
    (dict[str, int], st.dictionaries(texts | st.just("$"), st.integers())),
    (dict[UUID, list[date]], st.dictionaries(st.uuids(), st.lists(st.dates(), max_size=2), max_size=3)),
    (OrderedDict[int, str], st.dictionaries(st.integers(), texts).map(OrderedDict)),
    (Sequence[date], st.lists(st.dates()) | st.lists(st.dates()).map(tuple)),
    (Iterable[int], st.lists(st.integers()) | st.sets(st.integers())),
    (Collection[int], st.lists(st.integers()).map(tuple) | st.frozensets(st.integers())),
    (AbstractSet[str], st.sets(texts) | st.frozensets(texts)),
    (Mapping[str, date], st.dictionaries(texts, st.dates(), max_size=3)),
    (MutableMapping[int, date], st.dictionaries(st.integers(), st.dates(), max_size=3)),
    (int | None, st.integers() | st.none()),
    (int | str | list[int], st.integers() | texts | st.lists(st.integers())),
    (list[int] | list[str], st.lists(st.integers()) | st.lists(texts)),
    (date | timedelta | bytes, st.dates() | st.timedeltas() | st.binary()),
    (object, values),
]


@pytest.mark.parametrize(("hint", "strategy"), ANNOTATED, ids=[str(hint) for hint, _ in ANNOTATED])
@given(data=st.data())
def test_a_value_comes_back_equal_and_of_the_same_type_with_annotation(
    hint: object, strategy: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    value = data.draw(strategy)
    payload = serializer.dump_result(value, hint)
    assert same(serializer.load_result(payload, hint), value)
    assert same(serializer.load_result(payload, Any), value), "it means something else without the annotation"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (math.inf, "Infinity"),
        ("Grüße", '"Grüße"'),
        ([1, "a", None], '[1,"a",null]'),
        ({"a": {"b": 2.5}}, '{"a":{"b":2.5}}'),
        ((1, 2), '{"$":"tuple","v":[1,2]}'),
        ({3, 1, 2}, '{"$":"set","v":[1,2,3]}'),
        ({1: "a"}, '{"$":"dict","v":[[1,"a"]]}'),
        ({"$": "set"}, '{"$":"dict","v":[["$","set"]]}'),
        (date(2024, 5, 17), '{"$":"date","v":"2024-05-17"}'),
        (datetime(2024, 5, 17, 9, tzinfo=UTC), '{"$":"datetime","v":"2024-05-17T09:00:00+00:00"}'),
        (
            datetime(2024, 10, 27, 2, 30, tzinfo=ZONES[0], fold=1),
            '{"$":"datetime","v":"2024-10-27T02:30:00","zone":"Europe/Berlin","fold":1}',
        ),
        (timedelta(days=1, seconds=2), '{"$":"timedelta","v":[1,2,0]}'),
        (Decimal("1.50"), '{"$":"Decimal","v":"1.50"}'),
        (b"\x00\xff", '{"$":"bytes","v":"AP8="}'),
        (Path("a/b"), '{"$":"path","v":"a/b"}'),
    ],
    ids=repr,
)
def test_the_form_on_the_wire_is_what_is_documented_and_stays(value: object, text: str) -> None:
    data = serializer.dump_result(value, Any)
    assert data.decode() == text
    assert same(serializer.load_result(data, Any), value)


def test_a_call_is_an_array_of_positional_arguments_and_an_object_of_keywords() -> None:
    data = serializer.dump_arguments(
        (1, "x"), {"width": 200}, ArgumentTypes(positional=(int, str), keyword={"width": int})
    )
    assert data == b'[[1,"x"],{"width":200}]'


@pytest.mark.parametrize("value", [LARGE, -LARGE, [LARGE], {"a": LARGE}, range(LARGE), {LARGE: 1}], ids=type)
def test_an_integer_of_any_size_is_exact(value: object) -> None:
    with pytest.raises(ValueError, match="digits"):
        str(LARGE)
    assert same(round_trip(value), value)


@pytest.mark.parametrize("hint", [int, float, int | None, list[int]])
def test_a_large_integer_fits_the_annotations_that_an_integer_fits(hint: object) -> None:
    value: Any = [LARGE] if hint == list[int] else LARGE
    assert same(round_trip(value, hint), value)


def test_a_large_integer_can_be_read_where_the_limit_is_as_low_as_can_be() -> None:
    data = serializer.dump_result([LARGE, 7**200], Any)
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert serializer.load_result(data, Any) == [LARGE, 7**200]
    finally:
        sys.set_int_max_str_digits(limit)


def test_digits_beyond_the_limit_in_a_payload_are_an_error_of_ours() -> None:
    with pytest.raises(SerializationError, match="digits"):
        serializer.load_result(b"9" * 5_000, int)


def test_equal_sets_make_equal_bytes() -> None:
    # 0 and 8 fall on one place of the table, so the order of insertion is the order of iteration.
    pairs: list[tuple[list[Any], list[Any]]] = [
        ([0, 8], [8, 0]),
        ([0, 8, 1.5], [8, 0, 1.5]),
        ([(0,), 8, 0], [0, 8, (0,)]),
    ]
    for first, second in pairs:
        one, other = set(first), set(second)
        assert list(one) != list(other)
        assert serializer.dump_result(one, Any) == serializer.dump_result(other, Any)


def test_what_comes_back_is_a_copy() -> None:
    value = {"tags": ["a"]}
    back = round_trip(value)
    back["tags"].append("b")
    assert value == {"tags": ["a"]}


def test_the_serializer_is_found_by_its_name_and_keeps_the_protocol() -> None:
    from omniq.plugins import Plugins

    assert Plugins(discover=False).serializer("json") is serializer
    assert isinstance(serializer, Serializer)
    assert serializer.name == "json"
