"""Unions: which member a value belongs to is told by the payload, and looked up among the members only."""

from __future__ import annotations

import enum
import json
import types
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, Optional, TypedDict, TypeVar, Union

import attrs
import pytest

from omniq.errors import SerializationError
from omniq.serialization.json import JsonSerializer, serializer

T = TypeVar("T")


@attrs.frozen
class Cat:
    name: str
    lives: int = 9


@dataclass(frozen=True)
class Dog:
    name: str
    tricks: tuple[str, ...] = ()


class Bird(NamedTuple):
    name: str


class Fish(TypedDict):
    name: str


class Tame(enum.Enum):
    YES = 1


class Wild(enum.StrEnum):
    YES = "YES"


class Name(str):
    __slots__ = ()


@attrs.frozen
class Kitten(Cat):
    age: int = 0


@attrs.frozen
class Box(Generic[T]):
    content: T


@attrs.frozen
class set:  # noqa: A001, N801  # named as a form of ours is
    name: str


def other_cat() -> Any:
    @attrs.frozen
    class Cat:
        name: str
        lives: int = 9

    return Cat


OtherCat = other_cat()

OtherDecimal: Any = type("Decimal", (str,), {})

Constrained = TypeVar("Constrained", Cat, Dog)


@attrs.frozen
class Family:
    members: list[Cat | Dog | Family]
    pet: Cat | None = None


def round_trip(value: Any, hint: Any) -> Any:
    return serializer.load_result(serializer.dump_result(value, hint), hint)


@pytest.mark.parametrize(
    ("hint", "values"),
    [
        (Cat | None, [Cat("a"), None]),
        (Optional[Cat], [Cat("a"), None]),  # noqa: UP045  # the old form is to work too
        (Union[Cat, Dog], [Cat("a"), Dog("a"), Dog("b", ("c",))]),  # noqa: UP007  # the old form is to work too
        (Cat | Kitten, [Cat("a"), Kitten("a")]),
        (Cat | OtherCat, [Cat("a"), OtherCat("a")]),
        (Cat | set | date, [Cat("a"), set("a"), date(2024, 1, 1)]),
        (set | types.GenericAlias(frozenset, (int,)), [set("a"), frozenset({1})]),
        (Cat | Bird | Fish | None, [Cat("a"), Bird("a"), {"name": "a"}, None]),
        (Fish | dict[str, int], [{"name": "a"}, {"name": 1}, {}]),
        (Cat | dict[str, Any], [Cat("a"), {"name": "a"}, {"$": "Cat", "v": {"name": "a", "lives": 9}}]),
        (OtherDecimal | Decimal, [OtherDecimal("1.5"), Decimal("1.5")]),
        (Cat | Any, [Cat("a"), {"name": "a"}, [1], (1,), "Cat", {"$": "Cat"}]),
        (Cat | str | int, [Cat("a"), "a", 1, True]),
        (Tame | str, [Tame.YES, "YES"]),
        (Tame | Wild | None, [Tame.YES, Wild.YES, None]),
        (Name | str, [Name("a"), "a"]),
        (Name | None, [Name("a"), None]),
        (Literal["a", Tame.YES] | int, ["a", Tame.YES, 1]),
        (Literal["YES", Wild.YES], ["YES", Wild.YES]),
        (list[Cat] | list[Dog], [[Cat("a")], [Dog("a")]]),
        (list[Cat] | list[OtherCat], [[Cat("a")], [OtherCat("a")], []]),  # type: ignore[valid-type]  # made at run time
        (tuple[Cat, int] | tuple[OtherCat, int], [(Cat("a"), 1), (OtherCat("a"), 1)]),  # type: ignore[valid-type]  # made at run time
        (list[Cat] | list[int] | None, [[Cat("a")], [1, 2], None]),
        (list[Cat] | Cat, [[Cat("a")], Cat("a")]),
        (tuple[Cat, ...] | tuple[Dog, ...] | tuple[int, str], [(Cat("a"),), (Dog("a"),), (1, "a")]),
        (dict[str, Cat] | dict[str, Dog], [{"a": Cat("a")}, {"a": Dog("a")}]),
        (list[list[Cat] | list[Dog]], [[[Cat("a")], [Dog("a")], [Dog("a")]]]),
        (Box[int] | Box[str], [Box(1), Box("a")]),
        (Box[Cat | Dog], [Box(Cat("a")), Box(Dog("a"))]),
        (Constrained, [Cat("a"), Dog("a")]),
        (Family, [Family([Cat("a"), Family([Dog("b")]), Dog("c")], Cat("d"))]),
        ((Cat | Dog) | (Dog | None), [Cat("a"), None, Dog("b")]),
    ],
    ids=str,
)
def test_each_member_comes_back_as_what_it_was(hint: object, values: list[Any]) -> None:
    for value in values:
        back: Any = round_trip(value, hint)
        assert back == value
        assert type(back) is type(value)
        if isinstance(value, list | tuple):
            assert [type(item) for item in back] == [type(item) for item in value]
    if values != [values[0]]:
        assert [type(one) for one in round_trip(values, list[hint])] == [type(one) for one in values]  # type: ignore[valid-type]  # made at run time


def test_a_tag_appears_only_where_it_is_needed() -> None:
    assert json.loads(serializer.dump_result(Cat("a"), Cat | None)) == {"name": "a", "lives": 9}
    assert json.loads(serializer.dump_result(Cat("a"), Cat | Dog)) == {"$": "Cat", "v": {"name": "a", "lives": 9}}


def test_the_order_of_the_members_does_not_matter() -> None:
    for value in (Cat("a"), OtherCat("a")):
        data = JsonSerializer().dump_result(value, Cat | OtherCat)
        assert type(JsonSerializer().load_result(data, OtherCat | Cat)) is type(value)


@pytest.mark.parametrize(
    "tag", ["Bird", "test_json_unions.Cat", "os.system", "builtins.object", "set", "", "Cat'", "cat"]
)
def test_a_tag_that_names_no_member_is_refused_and_never_looked_up(tag: str) -> None:
    payload = json.dumps({"$": tag, "v": {"name": "a", "lives": 9}}).encode()
    with pytest.raises(SerializationError, match=r"^result: "):
        serializer.load_result(payload, Cat | Dog)
    with pytest.raises(SerializationError, match=r"^result: "):
        serializer.load_result(payload, Cat)


def test_a_member_that_was_alone_when_it_was_stored_is_known_by_its_fields() -> None:
    assert serializer.load_result(serializer.dump_result(Dog("a", ("b",)), Dog), Cat | Dog) == Dog("a", ("b",))
    assert serializer.load_result(serializer.dump_result(Tame.YES, Tame), Tame | int) == Tame.YES
    with pytest.raises(SerializationError, match="more than one class"):
        serializer.load_result(b'{"name":"a"}', Cat | Dog)
    with pytest.raises(SerializationError, match="no class"):
        serializer.load_result(b'{"nothing":"a"}', Cat | Dog)


def test_a_tagged_member_is_known_where_it_is_alone_now() -> None:
    stored = serializer.dump_result([Cat("a")], list[Cat | Dog])
    assert serializer.load_result(stored, list[Cat]) == [Cat("a")]
    with pytest.raises(
        SerializationError, match=r"^result\[0\]: expected Dog, but the payload has an object tagged 'Cat'"
    ):
        serializer.load_result(stored, list[Dog])


def test_a_subclass_that_is_no_member_is_refused() -> None:
    with pytest.raises(SerializationError, match=r"^result: expected Cat \| Dog, was given Kitten, a subclass of Cat"):
        serializer.dump_result(Kitten("a"), Cat | Dog)


def enum_of(module: str) -> Any:
    return enum.Enum("Color", ["RED"], module=module, qualname="Color")


def test_members_of_two_enums_of_one_name_are_kept_apart_in_a_literal() -> None:
    values = [enum_of(module).RED for module in ("paint", "light")]
    hint: Any = Literal.__getitem__(tuple(values))
    for value in values:
        assert round_trip(value, hint) is value
