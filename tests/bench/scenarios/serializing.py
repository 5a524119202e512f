"""What it costs to encode and decode a payload: an attrs class of ten fields, one of them a list of twenty objects."""

from __future__ import annotations

import json
import pickle
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import attrs

from omniq.plugins import default_plugins
from omniq.serialization.hints import resolve_types
from tests.bench.job import Job

__all__ = ["measure"]

BLOCKS = 10


@attrs.frozen
class Item:
    """A line of an order."""

    article: str
    count: int
    price: float


@attrs.frozen
class Order:
    """What a shop's tasks are about."""

    number: int
    customer: str
    address: str
    paid: bool
    weight: float
    at: datetime
    total: Decimal
    note: str | None
    tags: tuple[str, ...]
    items: list[Item]


def handle(order: Order, dry: bool = False) -> None:
    """The task whose arguments are encoded."""


ORDER = Order(
    number=4711,
    customer="Ada Lovelace",
    address="12 St James’s Square, London",
    paid=True,
    weight=1.75,
    at=datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
    total=Decimal("1234.50"),
    note=None,
    tags=("new", "gift"),
    items=[Item(f"article-{number}", number, number * 1.25) for number in range(20)],
)


def _with_omniq() -> Any:
    serializer = default_plugins().serializer("json")
    types, _ = resolve_types(handle)
    return serializer.load_arguments(serializer.dump_arguments((ORDER,), {"dry": True}, types), types)


def _with_json() -> Any:
    # What a user would write by hand, and less: it comes back as dicts and texts.
    return json.loads(json.dumps([[attrs.asdict(ORDER)], {"dry": True}], default=str))


def _with_pickle() -> Any:
    return pickle.loads(pickle.dumps(((ORDER,), {"dry": True}), protocol=5))


WAYS: dict[str, Callable[[], Any]] = {"omniq": _with_omniq, "json": _with_json, "pickle": _with_pickle}


def measure(job: Job) -> dict[str, float]:
    """Encode and decode the payload ``size`` times."""
    way = WAYS[job.contender]
    if job.contender != "json" and way() != ((ORDER,), {"dry": True}):
        raise RuntimeError(f"{job.contender} gives back something else than it was given")
    rounds = max(1, job.size // BLOCKS)
    blocks: list[float] = []
    for _ in range(BLOCKS):
        began = time.perf_counter()
        for _ in range(rounds):
            way()
        blocks.append((time.perf_counter() - began) / rounds)
    return {"serializer": statistics.median(blocks) * 1e6}
