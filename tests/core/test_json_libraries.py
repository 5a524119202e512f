"""Models of pydantic and structs of msgspec, for applications that have those libraries; OmniQ never imports them."""

from __future__ import annotations

import enum
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Generic, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from omniq.errors import SerializationError
from omniq.serialization.json import serializer

T = TypeVar("T")


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Item(pydantic.BaseModel):
    name: str
    when: datetime
    price: Decimal = Decimal("1.50")
    color: Color = Color.RED
    tags: set[str] = pydantic.Field(default_factory=set)
    data: bytes = b""
    inside: list[Item] = pydantic.Field(default_factory=list)


class SpecialItem(Item):
    more: int = 0


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Aliased(pydantic.BaseModel):
    total: int = pydantic.Field(alias="Total", gt=0)
    other: int = pydantic.Field(1, validation_alias="in", serialization_alias="out")


class Loose(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    anything: Any = None


class Hidden(pydantic.BaseModel):
    name: str
    _note: str = "a"


class Secret(pydantic.BaseModel):
    key: pydantic.SecretStr


class Root(pydantic.RootModel[list[int]]):
    pass


@pydantic.dataclasses.dataclass
class Row:
    id: int
    when: date


class Struct(msgspec.Struct):
    name: str
    when: datetime
    size: int = 0
    inside: list[Struct] = msgspec.field(default_factory=list)


class StructWithMore(Struct, kw_only=True):
    id: UUID


class Doubling(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        self.value *= 2


class Box(msgspec.Struct, Generic[T]):
    content: T


@attrs.frozen
class Holder:
    item: Item
    struct: Struct
    either: Item | Struct | None = None


NOW = datetime(2024, 1, 1, tzinfo=UTC)
ITEM = Item(name="a", when=NOW, tags={"x"}, inside=[Item(name="b", when=NOW)])
STRUCT = Struct("a", NOW, 1, [Struct("b", NOW)])


def round_trip(value: Any, hint: Any) -> Any:
    return serializer.load_result(serializer.dump_result(value, hint), hint)


def changed(value: Any, **attributes: object) -> Any:
    for name, attribute in attributes.items():
        setattr(value, name, attribute)
    return value


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (ITEM, Item),
        ([ITEM, None], list[Item | None]),
        (ITEM, Item | SpecialItem),
        (SpecialItem(name="s", when=NOW), Item | SpecialItem),
        (Page[int](items=[1]), Page[int]),
        (Page[Item](items=[ITEM]), Page[Item]),
        (Aliased(Total=3, **{"in": 4}), Aliased),
        (Loose.model_validate({"anything": [1, "a"], "extra": 1.5}), Loose),
        (Hidden(name="n"), Hidden),
        (Root([1, 2]), Root),
        (Root([1, 2]), Root | None),
        (Row(1, date(2024, 1, 1)), Row),
        (STRUCT, Struct),
        (StructWithMore(name="a", when=NOW, id=UUID(int=1)), StructWithMore),
        (Box(STRUCT), Box[Struct]),
        (Holder(ITEM, STRUCT, STRUCT), Holder),
        (Holder(ITEM, STRUCT, ITEM), Holder),
    ],
    ids=lambda part: str(part)[:60],
)
def test_a_model_or_struct_comes_back_equal_and_of_the_same_type(value: object, hint: object) -> None:
    back = round_trip(value, hint)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (ITEM, Any, "cannot hold an instance of Item"),
        (STRUCT, Any, "cannot hold an instance of Struct"),
        (SpecialItem(name="s", when=NOW), Item, "was given SpecialItem, a subclass of Item"),
        (Page[Any](items=[(1, 2)]), Page[Any], r"at Page\[Any\].items\[0\]"),
        (Loose(anything=Level.LOW), Loose, "at Loose.anything"),
        (Loose.model_validate({"anything": 1, "extra": {1: 2}}), Loose, "at Loose.extra"),
        (changed(Hidden(name="n"), _note="b"), Hidden, "at Hidden._note"),
        (Secret(key=pydantic.SecretStr("hunter2")), Secret, "at Secret.key"),
        (Doubling(2), Doubling, r"does not come back .* \(different: value\)"),
        ({"name": "a"}, Item, "expected Item, was given dict"),
        (Struct("a", "now"), Struct, "expected datetime, was given str"),  # type: ignore[arg-type]  # what is tested
    ],
    ids=lambda part: str(part)[:60],
)
def test_what_would_not_come_back_is_refused(value: object, hint: object, message: str) -> None:
    with pytest.raises(SerializationError, match=rf"^result[.\w]*: .*{message}") as caught:
        serializer.dump_result(value, hint)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "hint", "message"),
    [
        (b'{"name":"a"}', Item, "Item does not take its stored fields: ValidationError"),
        (b'{"total":0,"other":1}', Aliased, "Aliased does not take its stored fields: ValidationError"),
        (b'{"total":1,"gone":1}', Aliased, "Aliased has no field 'gone'"),
        (b'{"name":"a"}', Struct, "Struct has no default for its field 'when'"),
        (b'[1,"a"]', Root, "expected Root"),
        (b'{"$":"Root","v":["a"]}', Root, "Root does not take its stored fields"),
        (b'{"name":1,"when":2}', Item | Struct, "more than one class"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused(payload: bytes, hint: object, message: str) -> None:
    with pytest.raises(SerializationError, match=message):
        serializer.load_result(payload, hint)


def test_a_field_added_with_a_default_does_not_break_what_is_stored() -> None:
    stored = b'{"name":"a","when":"2024-01-01T00:00:00Z"}'
    assert serializer.load_result(stored, Item) == Item(name="a", when=NOW)


def test_the_serializer_imports_neither() -> None:
    script = """
import sys
from dataclasses import dataclass
from omniq.serialization.json import serializer
@dataclass
class Item:
    name: str
assert serializer.load_result(serializer.dump_result(Item("a"), Item), Item) == Item("a")
print([name for name in ("pydantic", "msgspec") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
