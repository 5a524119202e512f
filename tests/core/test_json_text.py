"""How JSON is read: a key that is twice in one object is found, whatever else stands in the text."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from omniq.serialization.codec import CodecError
from omniq.serialization.json_text import loads

TWICE = [
    '{"a":1,"a":2}',
    '{"a":1,"a":1}',
    '{"a" :1,"a":2}',
    '{"a":1,"a" :2}',
    '{"a"\t:1,"a"\r\n : 2}',
    '{"a":1,"a":":"}',
    '{"a":":","a":2}',
    r'{"a":"\":","a":2}',
    r'{"a" :1,"a":2,"b":"\":"}',
    r'{"a" :1,"a" :2,"b":"\":\":"}',
    r'{"a":1,"\u0061":2}',
    '{"a:":1,"a:":2}',
    '[{"a":1},{"b":[{"c":{"d":1,"d":2}}]}]',
    '[{},{"a":{},"a":{}}]',
    '{"":1,"":2}',
]
ONCE = [
    "{}",
    '{"a":1}',
    '{"a":"12:30:00","b":"http://localhost:80/"}',
    r'{"a":"\":","b":{"a":"\" :"}}',
    '{"a" : 1, "b"\n:\t2}',
    '[{"a":1},{"a":1}]',
    '{"a":{"a":{"a":":"}}}',
    '{":":1,"::":2}',
]


@pytest.mark.parametrize("text", TWICE)
def test_a_key_that_is_twice_in_one_object_is_refused(text: str) -> None:
    with pytest.raises(CodecError, match="twice in one object"):
        loads(text.encode())


@pytest.mark.parametrize("text", ONCE)
def test_keys_that_are_in_different_objects_are_not(text: str) -> None:
    assert loads(text.encode()) == json.loads(text)


def test_what_went_before_plays_no_part() -> None:
    for broken in ('{"a":{"b":1}', '{"a":{"b":1},"a":2}', '[{"a":1},'):
        with pytest.raises(CodecError):
            loads(broken.encode())
        with pytest.raises(CodecError, match="twice"):
            loads(b'{"a":1,"a":2}')
        assert loads(b'{"a":1}') == {"a": 1}


def _some_text(rng: random.Random, depth: int = 0) -> str:
    kind = rng.choice(["atom", "string", "array", "object", "object"] if depth < 4 else ["atom", "string"])
    space = rng.choice(["", "", "", " ", "\n", "\t ", "\r"])
    if kind == "atom":
        return rng.choice(["1", "null", "true", "-1.5"])
    if kind == "string":
        return _some_string(rng)
    items = [_some_text(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == "array":
        return "[" + ",".join(items) + "]"
    return "{" + ",".join(f"{_some_string(rng)}{space}:{space}{item}" for item in items) + "}"


def _some_string(rng: random.Random) -> str:
    return '"' + "".join(rng.choice(["a", "b", ":", r"\"", r"\":", " :", "é"]) for _ in range(rng.randrange(4))) + '"'


def _has_a_key_twice(text: str) -> bool:
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        twice = twice or len({key for key, _ in pairs}) != len(pairs)
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)
    return twice


def test_a_key_is_found_twice_if_and_only_if_it_is() -> None:
    rng = random.Random(4711)
    found = 0
    for _ in range(20_000):
        text = _some_text(rng)
        if _has_a_key_twice(text):
            found += 1
            with pytest.raises(CodecError, match="twice in one object"):
                loads(text.encode())
        else:
            assert loads(text.encode()) == json.loads(text), text
    assert 1_000 < found < 19_000
