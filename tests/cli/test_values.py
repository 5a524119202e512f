"""What a person types as JSON becomes what the annotations say."""

from __future__ import annotations

import enum
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from attrs import frozen

from omniq import SerializationError
from omniq.cli.values import plain_json, structure_arguments
from omniq.serialization import ArgumentTypes
from omniq.serialization.json import serializer


@frozen
class Order:
    number: int
    file: Path | None = None


@frozen
class Parcel:
    what: Any
    file: Path


class Colour(enum.Enum):
    RED = "red"


def structured(value: object, hint: Any) -> Any:
    (given,), _ = structure_arguments([value], {}, ArgumentTypes(positional=(hint,)), serializer)
    return given


@pytest.mark.parametrize(
    ("typed", "hint", "value"),
    [
        ("a.png", Path, Path("a.png")),
        ("a.png", Path | None, Path("a.png")),
        (None, Path | None, None),
        (["a"], list[Path], [Path("a")]),
        ({"a": "b"}, dict[str, Path], {"a": Path("b")}),
        ({"number": 1, "file": "a"}, Order, Order(1, Path("a"))),
        ("2025-01-01T10:00:00Z", datetime, datetime(2025, 1, 1, 10, tzinfo=UTC)),
        ("2025-01-01", date, date(2025, 1, 1)),
        (90, timedelta, timedelta(seconds=90)),
        ("1.10", Decimal, Decimal("1.10")),
        ("e725262b-8b10-4589-a782-fa9ac5130cd9", UUID, UUID("e725262b-8b10-4589-a782-fa9ac5130cd9")),
        ([1, 2], set[int], {1, 2}),
        ("grüß", bytes, "grüß".encode()),
        ("grüß", bytearray, bytearray("grüß".encode())),
        (["a", {"$": "bytes", "v": "/wA="}], list[bytes], [b"a", b"\xff\0"]),
        ({"$": "bytes", "v": "/wA="}, bytes | None, b"\xff\0"),
        ([1, "x"], tuple[int, str], (1, "x")),
        ("red", Colour, Colour.RED),
        (3, float, 3),
        (["a", {"b": "c"}], list[Any], ["a", {"b": "c"}]),
        ({"what": "ab", "file": "c"}, Parcel, Parcel("ab", Path("c"))),
        ({"$": "path", "v": "a.png"}, Path, Path("a.png")),
        ({"anything": [1, None]}, Any, {"anything": [1, None]}),
    ],
)
def test_a_value_becomes_what_the_annotation_says(typed: object, hint: Any, value: object) -> None:
    given = structured(typed, hint)
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (3, str),
        ("3", int),
        ("no", bool),
        (1, bool),
        (1.5, int),
        ("x", float),
        ([3], list[Path]),
        ("x", datetime),
        ("blue", Colour),
        ({"no": 1}, Order),
        ("ab", list[Path]),
        (["ab"], list[list[Path]]),
        (None, Path),
    ],
)
def test_what_does_not_fit_is_refused_and_never_bent(typed: object, hint: Any) -> None:
    with pytest.raises(SerializationError, match=r"^args\[0\]"):
        structured(typed, hint)


def test_an_error_names_the_argument() -> None:
    types = ArgumentTypes(positional=(int, Path), keyword={"file": Path})
    with pytest.raises(SerializationError, match=r"^args\[1\]: expected Path"):
        structure_arguments([1, 2], {}, types, serializer)
    with pytest.raises(SerializationError, match=r"^kwargs\['file'\]: expected Path"):
        structure_arguments([], {"file": 2}, types, serializer)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ({"ü": [1, 2.5, True]}, '{"ü": [1, 2.5, true]}'),
        (Path("a"), '"a"'),
        ("grüß".encode(), '"grüß"'),
        ([Order(1, Path("a"))], '[{"number": 1, "file": "a"}]'),
        (datetime(2025, 1, 1, 10, tzinfo=UTC), '"2025-01-01T10:00:00+00:00"'),
        (timedelta(minutes=1), "60.0"),
        (Decimal("1.10"), '"1.10"'),
        (Colour.RED, '"red"'),
        ((1, 2), "[1, 2]"),
        ({1}, "[1]"),
    ],
)
def test_a_result_is_shown_as_people_write_it(value: object, text: str) -> None:
    assert plain_json(value) == text


@pytest.mark.parametrize("value", [object(), float("nan"), {(1, 2): 3}, b"\xff"])
def test_what_has_no_plain_form_is_told(value: object) -> None:
    assert plain_json(value) is None
