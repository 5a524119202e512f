"""The annotations of functions as types, whatever kind of callable they stand on."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypedDict, TypeVar, Unpack

import attrs
import pytest

from omniq.serialization import ArgumentTypes
from omniq.serialization.hints import field_hints, hint_name, resolve_types
from omniq.serialization.json import serializer

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]  # what is tested

T = TypeVar("T")


@attrs.frozen
class Item:
    name: str
    missing: Missing | None = None


class Options(TypedDict, total=False):
    width: int


def plain(a: int, /, b: list[Item], *rest: str, c: Item | None = None, **more: float) -> dict[str, Item]:
    return {}


async def coroutine(a: int) -> Item:
    return Item("")


def bare(a, b=1, *c, **d):  # type: ignore[no-untyped-def]  # what is tested
    return a


def partly(a: Missing, b: Item, c: list[Missing]) -> Missing:
    return a


def not_a_type(a: 1 + 1, b: undefined.name, c: int) -> int:  # type: ignore[valid-type,name-defined]  # noqa: F821  # what is tested
    return c


def unpacking(**options: Unpack[Options]) -> None: ...


def noted(a: Annotated[int, "note"]) -> None: ...


class Service:
    def method(self, a: Item) -> int:
        return 1

    @classmethod
    def of_class(cls, a: Item) -> int:
        return 1

    @staticmethod
    def static(a: Item) -> int:
        return 1

    def __call__(self, a: Item) -> int:
        return 1


def decorated() -> Callable[..., int]:
    @functools.wraps(Service.static)
    def wrapper(*args: object, **kwargs: object) -> int:
        return Service.static(*args, **kwargs)  # type: ignore[arg-type]  # as a decorator does

    return wrapper


def test_the_types_of_all_kinds_of_parameters_and_of_the_return_value() -> None:
    types, result = resolve_types(plain)
    assert types.positional == (int, list[Item])
    assert types.keyword == {"b": list[Item], "c": Item | None}
    assert types.of_position(7) is str
    assert types.of_keyword("anything") is float
    assert result == dict[str, Item]


def test_of_a_coroutine_function_the_return_type_is_what_awaiting_gives() -> None:
    assert resolve_types(coroutine) == (ArgumentTypes(positional=(int,), keyword={"a": int}), Item)


def test_a_parameter_without_an_annotation_may_be_anything() -> None:
    types, result = resolve_types(bare)
    assert types == ArgumentTypes(positional=(Any, Any), keyword={"a": Any, "b": Any})
    assert result is Any


def test_an_annotation_that_cannot_be_resolved_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "omniq.serialization.hints"):
        types, result = resolve_types(partly)
    assert types.positional == (Any, Item, Any)
    assert result is Any
    assert "Missing" in caplog.text
    types, result = resolve_types(not_a_type)
    assert types.positional[1:] == (Any, int)
    assert result is int


@pytest.mark.parametrize(
    "function",
    [
        Service().method,
        Service.of_class,
        Service.static,
        Service(),
        decorated(),
        functools.partial(Service.static),
        functools.partial(functools.partial(Service.method, Service())),
    ],
    ids=["method", "classmethod", "staticmethod", "callable", "wrapped", "partial", "nested partial"],
)
def test_every_kind_of_callable_shows_its_annotations(function: Callable[..., int]) -> None:
    types, result = resolve_types(function)
    assert types.positional == (Item,)
    assert types.keyword == {"a": Item}
    assert result is int


def test_arguments_that_a_partial_has_bound_are_no_parameters() -> None:
    types, _ = resolve_types(functools.partial(plain, 1, c=None))
    assert types.positional == (list[Item],)
    assert "c" in types.keyword


@pytest.mark.parametrize("function", [print, dict, max, iter, "".join, type], ids=lambda function: function.__name__)
def test_a_callable_that_tells_nothing_takes_anything(function: Callable[..., object]) -> None:
    types, _ = resolve_types(function)
    assert set(types.positional) <= {Any}
    data = serializer.dump_arguments((1,), {}, types)
    assert serializer.load_arguments(data, types) == ((1,), {})


def test_keywords_unpacked_from_a_typed_dict_are_parameters() -> None:
    types, result = resolve_types(unpacking)
    assert types.of_keyword("width") is int
    assert result is type(None)


def test_a_name_of_the_enclosing_function_is_found_where_the_function_uses_it() -> None:
    @attrs.frozen
    class Local:
        value: int

    def function(a: Local) -> Local:
        return Local(a.value)

    types, result = resolve_types(function)
    assert types.positional == (Local,)
    assert result is Local


def test_metadata_of_annotations_stays() -> None:
    assert resolve_types(noted)[0].positional == (Annotated[int, "note"],)


def test_a_field_that_cannot_be_resolved_takes_what_needs_no_annotation() -> None:
    assert field_hints(Item) == {"name": str, "missing": Any}
    value = Item("a", (1, 2))
    assert serializer.load_result(serializer.dump_result(value, Item), Item) == value


def test_type_variables_are_bound_class_by_class() -> None:
    class Base(Generic[T]):
        held: list[T]

    class Between(Base[dict[str, T]], Generic[T]):
        own: T

    class Last(Between[int]):
        pass

    assert field_hints(Last) == {"held": list[dict[str, int]], "own": int}
    assert field_hints(Between[str]) == {"held": list[dict[str, str]], "own": str}


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (None, "None"),
        (int, "int"),
        (Any, "Any"),
        (Item | None, "Item | None"),
        (dict[str, list[Item]], "dict[str, list[Item]]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (T, "~T"),
    ],
    ids=str,
)
def test_an_annotation_is_named_as_it_was_written(hint: object, name: str) -> None:
    assert hint_name(hint) == name
