"""Payloads of about the largest size that is taken, each made to cost as much as it can; run as a program, it pays.

Prints the name of each before it decodes it, under limits of the operating system for each: 8 seconds of CPU, 1 GiB.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

from omniq.errors import SerializationError
from omniq.serialization.json import serializer

SIZE = 1 << 20
"""The default limit of a payload."""
COLLIDING = 2**61 - 1
"""Every multiple of it has the hash 0."""
SECONDS = 8
BYTES = 1 << 30
ZONES = [
    "Europe/Berlin",
    "Asia/Tokyo",
    "America/New_York",
    "Africa/Cairo",
    "Asia/Kolkata",
    "Europe/Paris",
    "Asia/Dubai",
]


def tagged(tag: str, inside: str, more: str = "") -> str:
    return '{"$":"' + tag + '","v":' + inside + more + "}"


def array(items: list[str]) -> str:
    return "[" + ",".join(items) + "]"


def as_many(*items: str) -> str:
    """Return an array with as many of them as fit."""
    return array(list(items) * (SIZE // sum(len(item) + 1 for item in items)))


def text(characters: str, count: int = SIZE) -> str:
    return '"' + characters * (count // len(characters)) + '"'


def payloads() -> Iterator[tuple[str, str]]:
    colliding = [str(number * COLLIDING) for number in range(1, 45_000)]
    pairs = [f"[{number},0]" for number in colliding]
    yield "integers that collide in a set", tagged("set", array(colliding))
    yield "integers that collide in a frozenset", tagged("frozenset", array(colliding))
    yield "integers that collide in a dict", tagged("dict", array(pairs))
    yield "integers that collide in an ordered dict", tagged("OrderedDict", array(pairs))
    yield "decimals that collide", tagged("set", array([tagged("Decimal", f'"{one}"') for one in colliding]))
    for empty in ("[]", "{}", *(tagged(tag, "[]") for tag in ("set", "tuple", "deque", "dict", "OrderedDict"))):
        yield f"many of {empty}", as_many(empty)
    yield "deques that could be long", as_many(tagged("deque", "[]", ',"maxlen":9000000000000000000'))
    yield "time zones", as_many(*(tagged("time", '"10:00:00"', f',"zone":"{zone}"') for zone in ZONES))
    yield "names of zones", as_many(tagged("time", '"10:00:00+01:00"', ',"name":"x"'))
    digits = tagged("Decimal", text("9"))
    yield "a decimal of many digits", digits
    yield "a set with a decimal of many digits", tagged("set", array([digits]))
    exponents = [tagged("Decimal", f'"1E{sign}999999999999999999"') for sign in "+-"]
    yield "huge exponents in a set", tagged("set", array([*exponents, "1", "0.5"]))
    yield "exponents in a set", tagged("set", array([tagged("Decimal", f'"1E+{900_000 + n}"') for n in range(30_000)]))
    yield "a float of many digits", "0." + "1" * SIZE
    yield "a float of many digits and an exponent", "1" * SIZE + "e-1048576"
    yield "a float that is none", "1e999999999"
    yield "an integer of many digits", "9" * SIZE
    yield "integers of many digits", as_many("9" * 4_300)
    integer = tagged("int", text("f").replace('"', '"0x', 1))
    yield "a large integer", integer
    yield "a set with a large integer", tagged("set", array([integer]))
    yield "a set with a range without end", tagged("set", array([tagged("range", array(["0", integer, "3"]))]))
    yield "a timedelta without end", tagged("timedelta", array([integer, "0", "0"]))
    yield "a fraction of a second", tagged("time", text("1").replace('"', '"10:00:00.', 1))
    for opening in ("[", '{"a":', '{"$":"tuple","v":[', '{"$":"Decimal","v":', '{"$":"dict","v":[['):
        yield f"nested {opening}", opening * (SIZE // len(opening))
    yield "nested frozensets", '{"$":"frozenset","v":[' * 100 + "]}" * 100
    yield "a path of many steps", tagged("path", text("/a"))
    yield "base64", tagged("bytes", text("AAAA"))
    yield "one key many times", "{" + ",".join(['"a":0'] * (SIZE // 6)) + "}"
    yield "many keys", "{" + ",".join(f'"{number}":0' for number in range(100_000)) + "}"
    yield "a long tag", tagged("x" * SIZE, "1")
    yield "escapes", text("\\u0041")
    yield "lone surrogates", text("\\ud800")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for name, payload in payloads():
        print(name, flush=True)
        data = payload.encode()
        for hint in (Any, dict[int, Any] | set[int] | frozenset[int] | int):
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, resource.RLIM_INFINITY))
            said = ""
            try:
                serializer.load_result(data, hint)
            except SerializationError as error:
                said = str(error)
            assert len(said) < 1_000, f"{name}: {said}"
    print("the end")


if __name__ == "__main__":
    main()
