"""The example of a Flask application, docs/examples/flask-shop: a real web server, a real worker, one store between."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import frozen

from omniq.testing import wait_until
from tests.docs.pages import DOCS

EXAMPLE = DOCS / "examples" / "flask-shop"
TIME = 100.0
"""Seconds after which something hangs: the child process imports everything anew, on a machine that may be busy."""
KINDS = ["loop", "thread", "process"]


@frozen
class Shop:
    """The shop that is open."""

    folder: Path
    client: httpx.Client
    worker: int
    """The process of the worker."""

    def ended(self, task_id: str) -> dict[str, Any]:
        """Return how a task has ended."""

        def look() -> dict[str, Any] | None:
            order: dict[str, Any] = self.client.get(f"/orders/{task_id}").raise_for_status().json()
            return order if order["state"] in ("succeeded", "failed") else None

        order = wait_until(look, TIME, "the end of the order")
        assert order is not None
        return order

    def order(self, kind: str, article: str) -> dict[str, Any]:
        answer = self.client.post(f"/orders/{kind}", params={"article": article})
        assert answer.status_code == 202
        return self.ended(answer.json()["id"])

    @property
    def orders(self) -> list[list[str]]:
        orders: list[list[str]] = self.client.get("/orders/").raise_for_status().json()
        return orders


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "flask", "--app", "shop.web", *words]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMNIQ", "SHOP", "FLASK"))}
    return kept | {"PYTHONPATH": str(EXAMPLE), "PYTHONUNBUFFERED": "1"}


def started(folder: Path, name: str, *words: str) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command(*words), cwd=folder, env=environment(), stderr=log, stdout=log)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    worker = started(folder, "worker", "omniq", "worker", "--process-slots", "1")
    server = started(folder, "server", "run", "--port", "0")
    try:

        def address() -> str | None:
            said = (folder / "server.log").read_text(encoding="utf-8")
            assert server.poll() is None, said
            found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", said)
            return found and found[1]

        with httpx.Client(base_url=wait_until(address, TIME, "the web server") or "", timeout=TIME) as client:
            yield Shop(folder, client, worker.pid)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(TIME) == 0, (folder / "worker.log").read_text(encoding="utf-8")
    finally:
        for process in (server, worker):
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_is_carried_out_in_the_applications_context(shop: Shop, kind: str) -> None:
    order = shop.order(kind, "book")
    assert (order["state"], order["error"]) == ("succeeded", None)
    said, process = order["result"].rsplit(" ", 1)
    assert said == f"book by {kind} in shop, process"
    assert (int(process) == shop.worker) is (kind != "process")
    assert shop.orders.count(["book", kind]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_rolled_back_at_the_end_of_its_context(shop: Shop, kind: str) -> None:
    order = shop.order(kind, "unicorn")
    assert (order["state"], order["error"]) == ("failed", "shop.tasks.OutOfStockError")
    assert ["unicorn", kind] not in shop.orders


def test_the_commands_of_omniq_are_flasks(shop: Shop) -> None:
    def flask(*words: str) -> str:
        done = subprocess.run(
            command("omniq", *words),
            cwd=shop.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIME,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    task_id = re.search(r"[0-9a-f-]{36}", flask("enqueue", "shop.tasks.order_on_thread", '"by hand"'))
    assert task_id is not None
    assert shop.ended(task_id[0])["result"].startswith("by hand by thread")
    listed = json.loads(flask("tasks", "list", "--name", "shop.tasks.order_on_thread", "--json"))["tasks"]
    assert task_id[0] in [task["id"] for task in listed]
