"""The example of a Flask application, docs/examples/flask-shop."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

import pytest

from tests.docs.shops import KINDS, TIME, Shop, environment, opened
from tests.fork_server import run

FLASK = ("flask", "--app", "shop.web")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    worker = (*FLASK, "omniq", "worker", "--process-slots", "1")
    server = (*FLASK, "run", "--port", "0")
    with opened("flask-shop", tmp_path_factory.mktemp("shop"), worker=worker, server=server) as shop:
        yield shop


def orders(shop: Shop) -> list[list[str]]:
    found: list[list[str]] = shop.client.get("/orders/").raise_for_status().json()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_is_carried_out_in_the_applications_context(shop: Shop, kind: str) -> None:
    order = shop.order(kind, "book")
    assert (order["state"], order["error"]) == ("succeeded", None)
    said, process = order["result"].rsplit(" ", 1)
    assert said == f"book by {kind} in shop, process"
    assert (int(process) == shop.worker) is (kind != "process")
    assert orders(shop).count(["book", kind]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_rolled_back_at_the_end_of_its_context(shop: Shop, kind: str) -> None:
    order = shop.order(kind, "unicorn")
    assert (order["state"], order["error"]) == ("failed", "shop.tasks.OutOfStockError")
    assert ["unicorn", kind] not in orders(shop)


def test_the_commands_of_omniq_are_flasks(shop: Shop) -> None:
    def flask(*words: str) -> str:
        done = run(
            [sys.executable, "-m", *FLASK, "omniq", *words],
            cwd=shop.folder,
            env=environment("flask-shop"),
            capture_output=True,
            text=True,
            timeout=TIME,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed: str = done.stdout
        return printed

    task_id = re.search(r"[0-9a-f-]{36}", flask("enqueue", "shop.tasks.order_on_thread", '"by hand"'))
    assert task_id is not None
    assert shop.ended(task_id[0])["result"].startswith("by hand by thread")
    listed = json.loads(flask("tasks", "list", "--name", "shop.tasks.order_on_thread", "--json"))["tasks"]
    assert task_id[0] in [task["id"] for task in listed]
