"""Instances of classes, by the annotations: every kind, nested, generic, recursive, changed since they were stored."""

from __future__ import annotations

import enum
import json
import sys
from collections import namedtuple
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    Self,
    TypedDict,
    TypeVar,
)
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq.errors import SerializationError
from omniq.serialization import ArgumentTypes
from omniq.serialization.json import serializer

T = TypeVar("T")
K = TypeVar("K")
Bounded = TypeVar("Bounded", bound="Item")
UserId = NewType("UserId", UUID)
JsonTree = dict[str, "JsonTree"] | list["JsonTree"] | str | int | None


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"
    CRIMSON = 1  # noqa: PIE796  # an alias


class Status(enum.StrEnum):
    OPEN = "is open"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Ejecting(enum.Flag, boundary=enum.EJECT):
    READ = 1


class Rights(enum.IntFlag):
    READ = 1
    WRITE = 2


class Name(str):
    __slots__ = ()


class Count(int):
    pass


class Ratio(float):
    pass


class Digest(bytes):
    pass


@attrs.frozen
class Item:
    name: str
    size: int = 0
    made: datetime | None = None


@attrs.define(kw_only=True)
class Private:
    _secret: str
    weight: float = attrs.field(default=1.0, alias="mass")
    limit: Final[int] = 3


@dataclass
class Point:
    x: float
    y: float = 0.0
    kind: ClassVar[str] = "point"


@dataclass(slots=True, kw_only=True)
class Labelled(Point):
    label: str


class Pair(NamedTuple):
    left: Item
    right: int = 0


class Options(TypedDict, total=False):
    width: Required[int]
    height: int


class MoreOptions(Options):
    title: str
    note: NotRequired[str]


DollarOptions = TypedDict("DollarOptions", {"$": int, "v": int})


@attrs.frozen
class Page(Generic[T]):
    items: list[T]
    first: T | None = None


@dataclass
class Keyed(Generic[K, T]):
    entries: dict[K, T]


@dataclass
class Renamed(Keyed[T, K], Generic[K, T]):
    extra: T


@attrs.frozen
class Dates(Page[date]):
    title: str = ""


class Box(NamedTuple, Generic[T]):
    content: T


@attrs.define
class Tree:
    value: int
    children: list[Tree] = attrs.field(factory=list)
    parent: Optional[Tree] = None  # noqa: UP045  # the old form is to work too


@dataclass
class Chain:
    next: Self | None = None


@dataclass
class Ping:
    pong: Pong | None = None


@dataclass
class Pong:
    ping: Ping | None = None


@attrs.frozen
class Everything:
    item: Item
    point: Point
    pair: Pair
    options: MoreOptions
    color: Color
    status: Status
    level: Level
    access: Access
    rights: Rights
    user: UserId
    literal: Literal["a", 1, True, None, Color.RED]
    annotated: Annotated[int, "metadata", []]
    pages: dict[UUID, Page[Item]]
    fixed: tuple[Item, int, str]
    many: tuple[Point, ...]
    unique: frozenset[Item]
    path: Path
    anything: Any
    plain: object
    name: Name
    count: Count
    ratio: Ratio
    digest: Digest


items = st.builds(Item, st.text(), st.integers(), st.none() | st.datetimes(timezones=st.none() | st.just(UTC)))
points = st.builds(Point, st.floats(allow_nan=False), st.floats(allow_nan=False))
everythings = st.builds(
    Everything,
    items,
    points,
    st.builds(Pair, items, st.integers()),
    st.fixed_dictionaries({"width": st.integers(), "title": st.text()}, optional={"height": st.integers()}),
    st.sampled_from(Color),
    st.sampled_from(Status),
    st.sampled_from(Level),
    st.sampled_from([Access(0), Access.READ, Access.READ | Access.WRITE]),
    st.sampled_from([Rights(0), Rights.READ, Rights.READ | Rights.WRITE, Rights(9)]),
    st.uuids().map(UserId),
    st.sampled_from(["a", 1, True, None, Color.RED]),
    st.integers(),
    st.dictionaries(st.uuids(), st.builds(Page, st.lists(items, max_size=2), st.none() | items), max_size=2),
    st.tuples(items, st.integers(), st.text()),
    st.lists(points, max_size=2).map(tuple),
    st.frozensets(items, max_size=2),
    st.builds(Path, st.text("ab/")),
    st.dates() | st.lists(st.integers()) | st.dictionaries(st.text(), st.binary()),
    st.text() | st.tuples(st.integers()),
    st.text().map(Name),
    st.integers().map(Count),
    st.floats(allow_nan=False).map(Ratio),
    st.binary().map(Digest),
)


def round_trip(value: Any, hint: Any) -> Any:
    return serializer.load_result(serializer.dump_result(value, hint), hint)


def check(value: Any, hint: Any) -> None:
    back = round_trip(value, hint)
    assert back == value
    assert types_of(back) == types_of(value)


def types_of(value: Any) -> object:
    """The types of a value and of all that it holds."""
    if isinstance(value, dict):
        return (type(value), [(types_of(key), types_of(item)) for key, item in value.items()])
    if isinstance(value, set | frozenset):
        return (type(value), sorted(map(repr, map(types_of, value))))
    if isinstance(value, list | tuple):
        return (type(value), list(map(types_of, value)))
    if attrs.has(type(value)):
        return (type(value), [types_of(getattr(value, one.name)) for one in attrs.fields(type(value))])
    if hasattr(value, "__dataclass_fields__"):
        return (type(value), [types_of(getattr(value, name)) for name in value.__dataclass_fields__ if name != "kind"])
    return type(value)


@given(everythings)
def test_an_instance_comes_back_with_all_that_it_holds(value: Everything) -> None:
    check(value, Everything)
    check([value], list[Everything])
    check((value, None), tuple[Everything | None, ...])


ITEM = Item("a", 1, datetime(2024, 1, 1))  # noqa: DTZ001  # naive ones come back naive
TREE = Tree(1, [Tree(2), Tree(3, [Tree(4)])], Tree(0))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Private(secret="s", mass=2.5), Private),
        (Labelled(x=1.0, label="l"), Labelled),
        (Pair(ITEM), Pair),
        ({"width": 1, "title": "t"}, MoreOptions),
        ({"width": 1, "title": "t", "note": "n"}, MoreOptions),
        ({"$": 1, "v": 2}, DollarOptions),
        ([{"$": 1, "v": 2}], list[DollarOptions]),
        (Page([1, 2], 3), Page[int]),
        (Page([ITEM]), Page[Item]),
        (Page([1, "a", date(2024, 1, 1)]), Page),
        (Keyed({UUID(int=1): ITEM}), Keyed[UUID, Item]),
        (Renamed({1: "a"}, 2), Renamed[str, int]),
        (Dates([date(2024, 1, 1)], None, "t"), Dates),
        (Box(ITEM), Box[Item]),
        (Box(Box(1)), Box[Box[int]]),
        (TREE, Tree),
        (Chain(Chain(None)), Chain),
        (Ping(Pong(Ping(None))), Ping),
        ({ITEM: [Color.RED]}, dict[Item, list[Color]]),
        ({Color.RED: 1, Color.BLUE: 2}, dict[Color, int]),
        ({Status.OPEN: 1}, dict[Status, int]),
        ({"a": 1}, dict[Literal["a", "b"], int]),
        (Color.CRIMSON, Color),
        (Name("x"), Name),
        ([Count(2**100)], list[Count]),
        ("x", Literal["x"]),
        (b"x", Literal[b"x"]),
        (UserId(UUID(int=5)), UserId),
        (5, Annotated[int, {"unhashable": []}]),
        ([5], list[Annotated[int, {"unhashable": []}]]),
        (ITEM, Bounded),
        (ITEM, Annotated[Item | None, "x"]),
        ({"a": [{"b": None}, 1]}, JsonTree),
    ],
    ids=str,
)
def test_a_value_of_an_annotated_class_comes_back(value: object, hint: object) -> None:
    check(value, hint)


@pytest.mark.parametrize(
    ("payload", "hint"),
    [
        (b"true", Literal[1]),
        (b"1.0", Literal[1]),
        (b'"b"', Literal["a"]),
        (b'"GREEN"', Color),
        (b"1", Color),
        (b"8", Ejecting),
        (b'"READ"', Access),
        (b"8", Access),
    ],
)
def test_what_is_no_member_of_an_enum_or_a_literal_is_refused(payload: bytes, hint: object) -> None:
    with pytest.raises(SerializationError, match=r"^result: "):
        serializer.load_result(payload, hint)


if sys.version_info >= (3, 12):

    def test_a_recursive_alias_holds_classes_at_every_level() -> None:
        names: dict[str, Any] = {"Item": Item}
        exec("type Tree = dict[str, Tree] | list[Tree] | tuple[Tree, int] | Item | None", names)
        check({"a": [ITEM, None, {"b": (ITEM, 1)}, [[[{"c": ITEM}]]]]}, names["Tree"])
        check([[ITEM]], list[names["Tree"]])  # type: ignore[misc]  # made at run time

    def test_a_recursive_alias_may_have_type_parameters() -> None:
        names: dict[str, Any] = {}
        exec("type Tree[T] = T | list[Tree[T]]", names)
        check([ITEM, [ITEM, [ITEM]]], names["Tree"][Item])


def test_a_class_derived_from_int_holds_integers_of_any_size() -> None:
    check(Count(10**5_000), Count)


def test_flags_hold_bits_that_have_no_name_however_many() -> None:
    check(Rights(2**20_000), Rights)
    check([Rights(2**20_000), "a"], list[Rights | str])


def test_the_form_on_the_wire_is_a_plain_object_of_the_fields() -> None:
    types = ArgumentTypes(positional=(Item, Pair, Color, Status, Access, MoreOptions))
    args = (Item("a"), Pair(Item("b")), Color.RED, Status.OPEN, Access.READ | Access.WRITE, {"width": 1, "title": "t"})
    assert json.loads(serializer.dump_arguments(args, {}, types))[0] == [
        {"name": "a", "size": 0, "made": None},
        {"left": {"name": "b", "size": 0, "made": None}, "right": 0},
        "RED",
        "OPEN",
        3,
        {"width": 1, "title": "t"},
    ]


def test_a_class_defined_in_a_function_comes_back() -> None:
    @attrs.frozen
    class Local:
        value: int
        again: Local | None = None

    check(Local(1, Local(2)), Local)


# ------------------------------------------------------------------------------------------------------ constructors


@attrs.frozen
class Converting:
    path: Path = attrs.field(converter=Path)
    tags: tuple[str, ...] = attrs.field(converter=tuple[str, ...], factory=tuple)


def doubled(value: int) -> int:
    return value * 2


def split(text: str) -> list[str]:
    return text.split()


def listed(values: list[Any]) -> list[Any]:
    return list(values)


@attrs.define
class Doubling:
    value: int = attrs.field(converter=doubled)


@attrs.define
class Splitting:
    words: list[str] = attrs.field(converter=split)


@dataclass
class Computing:
    width: int
    area: int = field(init=False)
    cache: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.area = self.width**2


@attrs.frozen
class FrozenComputing:
    width: int
    area: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "area", self.width**2)


@dataclass
class Appending:
    tags: list[str]

    def __post_init__(self) -> None:
        self.tags.append("made")


@dataclass
class Needing:
    width: int
    scale: InitVar[int]

    def __post_init__(self, scale: int) -> None:
        self.width *= scale


@dataclass
class NeedingOnly:
    width: int
    scale: InitVar[int]


@dataclass
class Deriving:
    names: list[str]

    def __post_init__(self) -> None:
        self.lookup = {name: index for index, name in enumerate(self.names)}


@attrs.define(init=False)
class OwnConstructor:
    value: int

    def __init__(self, value: int, factor: int = 1) -> None:
        self.value = value * factor


@attrs.frozen
class Checked:
    size: int = attrs.field(validator=attrs.validators.gt(0))


class LoosePair(namedtuple("LoosePair", "a b")):
    def __new__(cls, a: Any, b: Any = 2) -> LoosePair:
        return super().__new__(cls, a, b)


@attrs.define
class Nest:
    inner: Converting
    more: list[Nest] = attrs.field(factory=list, converter=listed)


def changed(instance: Any, **values: object) -> Any:
    for name, value in values.items():
        object.__setattr__(instance, name, value)
    return instance


@pytest.mark.parametrize(
    "value",
    [
        Converting("a/b", ["x"]),
        Computing(3),
        changed(Computing(3), area=5, cache={"a": 1}),
        FrozenComputing(3),
        changed(FrozenComputing(3), area=5),
        OwnConstructor(3),
        Checked(1),
        LoosePair(1),
        Nest(Converting("a"), [Nest(Converting("b"), [Nest(Converting("c"))])]),
    ],
    ids=repr,
)
def test_a_class_with_a_constructor_that_does_more_comes_back(value: object) -> None:
    check(value, type(value))


def test_what_a_constructor_derives_is_there_again() -> None:
    assert round_trip(Deriving(["a", "b"]), Deriving).lookup == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    "value",
    [
        Doubling(2),
        Splitting("a b"),
        Appending(["a"]),
        Needing(2, 3),
        NeedingOnly(2, 3),
        changed(LoosePair(1), note="lost"),
    ],
    ids=repr,
)
def test_an_instance_that_its_constructor_does_not_give_back_is_refused_when_it_is_dumped(value: Any) -> None:
    before = repr(value)
    with pytest.raises(SerializationError, match=r"^result\[0\]: .*convert the value"):
        serializer.dump_result([value], list[type(value)])  # type: ignore[misc]  # mypy wants no value in a type
    assert repr(value) == before


def test_a_deep_nest_of_classes_that_are_tried_takes_no_exponential_time() -> None:
    value = Nest(Converting("a"))
    for _ in range(40):
        value = Nest(Converting("b"), [value])
    check(value, Nest)


def test_validators_run_on_what_is_loaded() -> None:
    with pytest.raises(SerializationError, match=r"^result: Checked does not take its stored fields: ValueError"):
        serializer.load_result(b'{"size":0}', Checked)


# --------------------------------------------------------------------------------------------------------- evolution


@attrs.frozen
class ItemBefore:
    name: str
    size: int = 0


@attrs.frozen
class ItemWithMore:
    name: str
    size: int = 0
    color: Color = Color.RED
    tags: list[str] = attrs.field(factory=list)


@attrs.frozen
class ItemWithRequired:
    name: str
    size: int
    weight: int


@attrs.frozen
class ItemWithLess:
    name: str


STORED = serializer.dump_result([ItemBefore("a", 2)], list[ItemBefore])


def test_a_field_added_with_a_default_does_not_break_what_is_stored() -> None:
    first, second = serializer.load_result(STORED, list[ItemWithMore]) + serializer.load_result(
        STORED, list[ItemWithMore]
    )
    assert first == ItemWithMore("a", 2, Color.RED, [])
    assert first.tags is not second.tags


def test_a_field_added_without_a_default_is_an_error_that_names_class_and_field() -> None:
    with pytest.raises(
        SerializationError, match=r"^result\[0\]: ItemWithRequired has no default for its field 'weight'"
    ):
        serializer.load_result(STORED, list[ItemWithRequired])


def test_a_removed_field_is_an_error_that_names_class_and_field() -> None:
    with pytest.raises(SerializationError, match=r"^result\[0\]: ItemWithLess has no field 'size'"):
        serializer.load_result(STORED, list[ItemWithLess])


def test_a_removed_member_of_an_enum_is_an_error_that_names_both() -> None:
    with pytest.raises(SerializationError, match="Color has no member 'GREEN'"):
        serializer.load_result(b'"GREEN"', Color)


@dataclass
class Older:
    when: Any


@dataclass
class Newer:
    when: datetime


def test_an_annotation_may_be_added_to_what_tells_itself_what_it_is() -> None:
    when = datetime(2024, 1, 1, tzinfo=UTC)
    assert serializer.load_result(serializer.dump_result(Older(when), Older), Newer) == Newer(when)


def test_the_same_payload_does_for_another_class_with_the_same_fields() -> None:
    assert serializer.load_result(STORED, list[Item]) == [Item("a", 2)]
