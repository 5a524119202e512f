"""The wire format as its page describes it, held against files that no change of OmniQ may change."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import struct
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

from attrs import evolve

from omniq import Fixed, TaskQueue
from omniq.storage.ids import new_id
from omniq.task import NewTask
from omniq.testing import trial
from tests.docs.pages import DOCS

WIRE = DOCS / "reference" / "wire"
KEY = "a key of sixteen bytes or more"
TASK_ID = "0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e"


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: float


VALUES: dict[str, Any] = {
    "moment": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "day": date(2026, 1, 2),
    "clock": time(3, 4, 5),
    "wait": timedelta(seconds=1.5),
    "id": UUID(int=7),
    "price": Decimal("1.10"),
    "path": Path("/x"),
    "raw": b"\x00a",
    "seen": {1, 2},
    "frozen": frozenset({3}),
    "pair": (1, "ä"),
    "names": {1: "a"},
    "colour": Colour.RED,
    "point": Point(1, 2.0),
    "huge": 1 << 70,
    "nothing": None,
}


def ordered(**options: Any) -> dict[str, NewTask]:
    """Return the three tasks of the files, by name."""
    queue = TaskQueue("memory://wire", **options)

    @queue.task(name="shop.charge", queue="money")
    def charge(amount: int, currency: str = "USD") -> None: ...

    @queue.task(name="shop.values", timeout=30, retry=Fixed(delay=5))
    def values(
        moment: datetime,
        day: date,
        clock: time,
        wait: timedelta,
        id: UUID,  # noqa: A002  # an argument's name as any other
        price: Decimal,
        path: Path,
        raw: bytes,
        seen: set[int],
        frozen: frozenset[int],
        pair: tuple[int, str],
        names: dict[int, str],
        colour: Colour,
        point: Point,
        huge: int,
        nothing: int | None,
    ) -> None: ...

    return {
        "plain": queue.order(charge.call(7, currency="EUR")),
        "values": queue.order(values.using(headers={"request": "r-1"}).call(**VALUES)),
        "signed": queue.order(charge.call(7, currency="EUR"), id=TASK_ID),
    }


def test_omniq_writes_what_the_files_hold() -> None:
    orders = ordered()
    assert orders["values"].body == (WIRE / "values.body").read_bytes()
    assert ordered(signing_key=KEY)["signed"].body == (WIRE / "signed.body").read_bytes()
    # Written by hand: what OmniQ writes beside it is a header.
    assert orders["plain"].body.splitlines()[2] == (WIRE / "plain.body").read_bytes().splitlines()[2]


def test_a_worker_runs_what_the_files_hold() -> None:
    ran: list[Any] = []
    queue = TaskQueue("memory://", signing_key=None)

    @queue.task(name="shop.charge")
    def charge(amount: int, currency: str = "USD") -> None:
        ran.append((amount, currency))

    async def enqueue(body: bytes) -> None:
        order = evolve(queue.order(charge.call(0)), id=new_id(), body=body)
        await (await queue.connections.current()).storage.enqueue([order])

    with trial(queue) as running:
        queue.connections.run(enqueue((WIRE / "plain.body").read_bytes()))
        assert running.drain() == 1
    assert ran == [(7, "EUR")]


def test_a_signature_can_be_made_from_the_page_alone() -> None:
    first, _, content = (WIRE / "signed.body").read_bytes().partition(b"\n")
    parts = [TASK_ID.encode(), b"money", b"shop.charge", b"3", content]
    message = b"omniq task 1\0" + struct.pack(">5Q", *map(len, parts)) + b"".join(parts)
    assert first == b"1 01" + hmac.new(KEY.encode(), message, hashlib.sha256).hexdigest().encode()
