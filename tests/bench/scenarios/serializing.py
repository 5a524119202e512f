"""What it costs to encode and decode a payload: an attrs class of ten fields, one of them a list of twenty objects."""

from __future__ import annotations

import json
import pickle
import secrets
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import attrs

from omniq.plugins import default_plugins
from omniq.serialization.hints import resolve_types
from omniq.serialization.signing import Signer
from omniq.storage.body import Header, dump_header, join_body, make_content
from omniq.storage.ids import new_id
from omniq.task import StoredTask
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


Way = tuple[Callable[[], bytes], Callable[[bytes], Any]]
"""What encodes the payload, and what decodes it."""


def _with_omniq() -> Way:
    serializer = default_plugins().serializer("json")
    types, _ = resolve_types(handle)
    return (
        lambda: serializer.dump_arguments((ORDER,), {"dry": True}, types),
        lambda data: serializer.load_arguments(data, types),
    )


def _with_json() -> Way:
    # What a user would write by hand, and less: it comes back as dicts and texts.
    return lambda: json.dumps([[attrs.asdict(ORDER)], {"dry": True}], default=str).encode(), json.loads


def _with_pickle() -> Way:
    return lambda: pickle.dumps(((ORDER,), {"dry": True}), protocol=5), pickle.loads


WAYS: dict[str, Callable[[], Way]] = {"omniq": _with_omniq, "json": _with_json, "pickle": _with_pickle}


def measure(job: Job) -> dict[str, float]:
    """Encode and decode the payload ``size`` times; OmniQ signs it and checks the signature, too."""
    dump, load = WAYS[job.contender]()
    data = dump()
    if job.contender != "json" and load(data) != ((ORDER,), {"dry": True}):
        raise RuntimeError(f"{job.contender} gives back something else than it was given")
    rounds = max(1, job.size // BLOCKS)
    figures = {
        "serializer": _microseconds(lambda: load(dump()), rounds),
        "serializer load": _microseconds(lambda: load(data), rounds),
    }
    if job.contender == "omniq":
        figures["serializer signing"] = _microseconds(_sign_and_check(data), rounds)
    return figures


def _microseconds(call: Callable[[], object], rounds: int) -> float:
    blocks: list[float] = []
    for _ in range(BLOCKS):
        began = time.perf_counter()
        for _ in range(rounds):
            call()
        blocks.append((time.perf_counter() - began) / rounds)
    return statistics.median(blocks) * 1e6


def _sign_and_check(data: bytes) -> Callable[[], None]:
    now = datetime.now(UTC)
    signer = Signer([secrets.token_bytes(32)])
    content = make_content(dump_header(Header()), data)
    task = StoredTask(
        id=new_id(), queue="default", name="shop.handle", body=join_body(content), created_at=now, run_at=now
    )
    signature = signer.task_signature(task, content)

    def call() -> None:
        signer.task_signature(task, content)
        signer.check_task(task, signature, content)

    return call
