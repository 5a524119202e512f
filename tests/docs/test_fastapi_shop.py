"""The example of a FastAPI application, docs/examples/fastapi-shop."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from omniq.testing import wait_until
from tests.docs.shops import KINDS, TIME, Shop, opened


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    worker = ("omniq", "worker", "shop.tasks:queue", "--no-log-setup", "--process-slots", "1")
    server = ("uvicorn", "shop.web:app", "--port", "0")
    reports = str(folder / "reports")
    with opened("fastapi-shop", folder, worker=worker, server=server, SHOP_REPORTS=reports) as shop:
        yield shop
    assert "the pool is closed" in shop.log


def orders(shop: Shop) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(shop.folder / "shop.db")) as connection:
        return connection.execute("SELECT article, kind FROM orders").fetchall()


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_is_carried_out_with_an_injected_connection_and_logged_under_the_requests_id(
    shop: Shop, kind: str
) -> None:
    order = shop.order(kind, "book", **{"x-request-id": f"request-{kind}"})
    assert order == {"state": "succeeded", "result": f"book by {kind}", "error": None}
    assert orders(shop).count(("book", kind)) == 1
    wait_until(lambda: f"INFO shop [request-{kind}] ordering a book" in shop.log, TIME, "the record of the task")


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_rolled_back_and_reported_with_its_exception(shop: Shop, kind: str) -> None:
    order = shop.order(kind, "unicorn", **{"x-request-id": f"failing-{kind}"})
    assert order["error"] == "shop.tasks.OutOfStockError"
    assert ("unicorn", kind) not in orders(shop)

    lines = (shop.folder / "reports").read_text(encoding="utf-8").splitlines()
    (report,) = [one for one in map(json.loads, lines) if one["tags"]["request_id"] == f"failing-{kind}"]
    (raised,) = report["exception"]["values"]
    assert (raised["module"], raised["type"], raised["value"]) == ("shop.tasks", "OutOfStockError", "unicorn")
    frame = raised["stacktrace"]["frames"][-1]
    assert (frame["function"], frame["vars"]["article"], frame["vars"]["kind"]) == ("insert", "'unicorn'", f"'{kind}'")
