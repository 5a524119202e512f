"""What cannot be held is refused when it is dumped, with the path to it and what to do."""

from __future__ import annotations

import dataclasses
import enum
import fractions
import ipaddress
import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from pathlib import PureWindowsPath
from typing import Any, Literal, NamedTuple, TypedDict

import attrs
import pytest

from omniq.errors import SerializationError
from omniq.serialization import ArgumentTypes
from omniq.serialization.json import JsonSerializer, serializer


@attrs.frozen
class Line:
    sku: str
    when: datetime


@attrs.frozen
class SpecialLine(Line):
    discount: int = 0


@attrs.frozen
class Order:
    id: int
    items: list[Line]
    notes: dict[str, Any] = attrs.field(factory=dict)


@attrs.define
class Node:
    next: Node | None = None
    children: list[Node] = attrs.field(factory=list)


class Options(TypedDict):
    width: int


class Point(NamedTuple):
    x: int
    y: int


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    __slots__ = ()


class OddZone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> None:
        return None

    dst = utcoffset

    def tzname(self, moment: datetime | None) -> None:
        return None


Loose = namedtuple("Loose", "a")

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def refusal(value: object, hint: Any = Any) -> str:
    with pytest.raises(SerializationError) as caught:
        serializer.dump_result(value, hint)
    return str(caught.value)


WITHOUT_ANNOTATION = [
    Line("a", NOW),
    Color.RED,
    Level.LOW,
    Name("a"),
    Point(1, 2),
    Loose(1),
    defaultdict(list),
    Counter("aab"),
    fractions.Fraction(1, 3),
    ipaddress.ip_address("127.0.0.1"),
    object(),
    lambda: None,
    int,
    threading.Lock(),
    ValueError("no"),
    iter([1]),
    memoryview(b"a"),
    NotImplemented,
    datetime(2024, 1, 1, tzinfo=OddZone()),
]


@pytest.mark.parametrize("value", WITHOUT_ANNOTATION, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda value: value, "result: "),
        (lambda value: [1, value], "result[1]: "),
        (lambda value: {"a": (1, {"b": value})}, "result['a'][1]['b']: "),
        (lambda value: {1: value}, "result[1]: "),
        (lambda value: OrderedDict(a=value), "result['a']: "),
    ],
    ids=["alone", "list", "nested", "pairs", "ordered"],
)
def test_a_value_whose_type_would_be_lost_is_refused_with_its_path(
    value: object, wrap: Callable[[object], object], path: str
) -> None:
    assert refusal(wrap(value)).startswith(path)


@pytest.mark.parametrize(
    ("hint", "value", "expected", "given"),
    [
        (int, "1", "int", "str"),
        (int, 1.0, "int", "float"),
        (bool, 1, "bool", "int"),
        (str, None, "str", "NoneType"),
        (str, b"a", "str", "bytes"),
        (bytes, "a", "bytes", "str"),
        (float, "1", "float", "str"),
        (datetime, date(2024, 1, 1), "datetime", "date"),
        (Decimal, 1, "Decimal", "int"),
        (list, (1,), "list", "tuple"),
        (tuple, [1], "tuple", "list"),
        (dict, [1], "dict", "list"),
        (Line, {"sku": "a"}, "Line", "dict"),
        (Line, None, "Line", "NoneType"),
        (Line | None, 3, "Line | None", "int"),
        (Color, 1, "Color", "int"),
        (Color, "RED", "Color", "str"),
        (Options, [1], "Options", "list"),
        (Point, (1, 2), "Point", "tuple"),
        (int | bytes, 1.5, "int | bytes", "float"),
        (Literal["a", 1], "b", "Literal['a', 1]", "str"),
        (Literal[1], True, "Literal[1]", "bool"),
        (ipaddress.IPv4Address, "127.0.0.1", "IPv4Address", "str"),
    ],
    ids=str,
)
def test_a_value_that_does_not_match_its_annotation_is_refused_with_both_types(
    hint: object, value: object, expected: str, given: str
) -> None:
    text = refusal(value, hint)
    assert text.startswith(f"result: expected {expected}, ")
    assert given in text.split(";")[0]


@pytest.mark.parametrize(
    ("value", "hint", "path"),
    [
        (Order(1, [Line("a", NOW), Line("b", "now")]), Order, "result.items[1].when: expected datetime, was given str"),  # type: ignore[arg-type]  # what is tested
        (Order(1, [], {"a": [Color.RED]}), Order, "result.notes['a'][0]: "),
        ([Point(1, 2), Point(1, "2")], list[Point], "result[1].y: expected int, was given str"),  # type: ignore[arg-type]  # what is tested
        ({"width": "a"}, Options, "result['width']: expected int, was given str"),
        ({}, Options, "result: Options needs the key 'width'"),
        ({"width": 1, "height": 2}, Options, "result: Options has no key 'height'"),
        ((1, 2), tuple[int, str], "result[1]: expected str, was given int"),
        ((1,), tuple[int, str], "result: expected tuple[int, str], was given a tuple of 1"),
        ({1: "a", "b": "c"}, dict[int, str], "result: its key 'b': expected int"),
        ({"a": {1: Line(1, NOW)}}, dict[str, dict[int, Line]], "result['a'][1].sku: "),  # type: ignore[arg-type]  # what is tested
        ([Line("a", None)], list[Line | Order], "result[0].when: "),  # type: ignore[arg-type]  # what is tested
        ({"k" * 100: Color.RED}, Any, f"result['{'k' * 39}...]: "),
    ],
    ids=lambda part: str(part)[:30],
)
def test_the_path_leads_through_fields_sequences_and_mappings(value: object, hint: object, path: str) -> None:
    assert refusal(value, hint).startswith(path)


def test_the_path_of_an_argument_begins_with_its_position_or_its_name() -> None:
    types = ArgumentTypes(positional=(Order,), var_positional=int, keyword={"user": Line}, var_keyword=str)
    order = Order(1, [])
    calls: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((3,), {}, "args[0]: "),
        ((order, 1, 2, "3"), {}, "args[3]: expected int"),
        ((order,), {"user": Line("a", 5)}, "kwargs['user'].when: "),  # type: ignore[arg-type]  # what is tested
        ((order,), {"user": Line("a", NOW), "more": 1}, "kwargs['more']: expected str"),
    ]
    for args, kwargs, path in calls:
        with pytest.raises(SerializationError) as caught:
            serializer.dump_arguments(args, kwargs, types)
        assert str(caught.value).startswith(path)
        assert caught.value.path == path.split(": ")[0]


def test_an_instance_of_a_subclass_is_refused_where_only_the_base_is_annotated() -> None:
    text = refusal([SpecialLine("a", NOW)], list[Line])
    assert text.startswith("result[0]: expected Line, was given SpecialLine, a subclass of Line")
    assert "annotate" in text
    assert refusal(Level.LOW, int).startswith("result: expected int, was given Level, a subclass of int")
    assert refusal(Name("a"), str).startswith("result: expected str, was given Name, a subclass of str")


def test_a_refusal_says_what_to_do() -> None:
    assert "annotate it with the class, convert the value, or use another serializer" in refusal(Line("a", NOW))
    assert "register cattrs hooks" in refusal(fractions.Fraction(1, 3), fractions.Fraction)
    assert "astimezone" in refusal(datetime(2024, 1, 1, tzinfo=OddZone()))


def test_a_path_whose_text_is_that_of_another_is_refused() -> None:
    path = PureWindowsPath("//a/")
    if PureWindowsPath(str(path)) == path:  # as of Python 3.12
        assert serializer.load_result(serializer.dump_result(path, Any), Any) == path
    else:
        assert "text is that of another path" in refusal(path)


def test_a_refusal_does_not_show_the_value() -> None:
    assert "hunter2" not in refusal("hunter2", int)
    assert "hunter2" not in refusal("hunter2", Literal["a"])
    assert "hunter2" not in refusal(Line("hunter2", NOW))


def test_a_field_that_is_not_set_is_refused() -> None:
    @attrs.define
    class Late:
        value: int = attrs.field(init=False)

    assert refusal(Late(), Late).startswith("result: this Late has a field that is not set")


def test_a_field_that_cannot_be_read_is_not_taken_for_one_that_is_not_set() -> None:
    def load(row: object) -> int:
        raise ConnectionError("the database is away")

    @dataclasses.dataclass
    class Row:
        value: int

    row = Row(1)
    Row.value = property(load)  # type: ignore[assignment]  # as an object mapper does
    text = refusal(row, Row)
    assert text.startswith("result: the fields of this Row cannot be read")
    assert "the database is away" in text


def cyclic_list() -> object:
    made: list[Any] = []
    made.append({"again": [made]})
    return made


def cyclic_node() -> object:
    node = Node()
    node.next = node
    return node


def cyclic_children() -> object:
    node = Node()
    node.children.append(Node(children=[node]))
    return node


def nested_lists(levels: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


def nested_nodes(levels: int) -> Node:
    made = Node()
    for _ in range(levels):
        made = Node(next=made)
    return made


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (cyclic_list, Any),
        (cyclic_list, list[Any]),
        (cyclic_node, Node),
        (cyclic_children, Node),
        (lambda: nested_lists(150), Any),
        (lambda: nested_lists(100_000), Any),
        (lambda: nested_nodes(150), Node),
        (lambda: nested_nodes(20_000), Node),
    ],
    ids=["list", "typed list", "node", "children", "deep list", "very deep list", "deep node", "very deep node"],
)
def test_what_contains_itself_or_is_nested_deeply_is_refused_with_a_short_path(
    make: Callable[[], object], hint: object
) -> None:
    text = refusal(make(), hint)
    assert "contains itself" in text
    assert text.startswith("result")
    assert len(text) < 400


@pytest.mark.parametrize(("value", "hint"), [(nested_lists(99), Any), (nested_nodes(98), Node)], ids=["list", "node"])
def test_what_is_nested_less_deeply_comes_back(value: object, hint: object) -> None:
    assert serializer.load_result(serializer.dump_result(value, hint), hint) == value


def test_a_refusal_leaves_no_depth_behind() -> None:
    for _ in range(3):
        refusal(nested_lists(150))
    value = nested_lists(99)
    assert serializer.load_result(serializer.dump_result(value, Any), Any) == value


def test_threads_do_not_share_their_depth() -> None:
    value = nested_lists(90)
    wrong: list[object] = []

    def work() -> None:
        for _ in range(50):
            back = serializer.load_result(serializer.dump_result(value, Any), Any)
            if back != value:
                wrong.append(back)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_class_that_only_cattrs_hooks_know_can_be_sent_with_them() -> None:
    own = JsonSerializer()
    address = ipaddress.IPv4Address("10.0.0.1")
    with pytest.raises(SerializationError, match="register cattrs hooks for IPv4Address"):
        own.dump_result(address, ipaddress.IPv4Address)
    own.converter.register_unstructure_hook(ipaddress.IPv4Address, str)
    own.converter.register_structure_hook(ipaddress.IPv4Address, lambda text, _: ipaddress.IPv4Address(text))
    for hint, value in [
        (ipaddress.IPv4Address, address),
        (list[ipaddress.IPv4Address | None], [address, None]),
        (ipaddress.IPv4Address | str, address),
        (ipaddress.IPv4Address | str, "10.0.0.1"),
    ]:
        back = own.load_result(own.dump_result(value, hint), hint)
        assert back == value
        assert type(back) is type(value)


def test_hooks_that_do_not_give_the_value_back_are_refused() -> None:
    own = JsonSerializer()
    own.converter.register_unstructure_hook(fractions.Fraction, float)
    own.converter.register_structure_hook(fractions.Fraction, lambda number, _: fractions.Fraction(round(number, 1)))
    with pytest.raises(SerializationError, match="does not come back"):
        own.dump_result(fractions.Fraction(1, 3), fractions.Fraction)
    own.converter.register_structure_hook(fractions.Fraction, lambda number, _: number)
    with pytest.raises(SerializationError, match="made a float"):
        own.dump_result(fractions.Fraction(1, 2), fractions.Fraction)
