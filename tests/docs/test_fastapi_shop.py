"""The example of a web application, docs/examples/fastapi-shop: a real web server, a real worker, one store between."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
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

EXAMPLE = DOCS / "examples" / "fastapi-shop"
TIME = 100.0
"""Seconds after which something hangs: the child process imports everything anew, on a machine that may be busy."""
KINDS = ["loop", "thread", "process"]


@frozen
class Shop:
    """The shop that is open."""

    folder: Path
    client: httpx.Client

    def order(self, kind: str, article: str, request_id: str) -> dict[str, Any]:
        """Order something, and return how the order ended."""
        answer = self.client.post(f"/orders/{kind}", params={"article": article}, headers={"x-request-id": request_id})
        assert answer.status_code == 202

        def ended() -> dict[str, Any] | None:
            order: dict[str, Any] = self.client.get(f"/orders/{answer.json()['id']}").raise_for_status().json()
            return order if order["state"] in ("succeeded", "failed") else None

        order = wait_until(ended, TIME, "the end of the order")
        assert order is not None
        return order

    @property
    def log(self) -> str:
        return (self.folder / "worker.log").read_text(encoding="utf-8")

    @property
    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "reports").read_text(encoding="utf-8").splitlines()]

    def orders(self) -> list[tuple[str, str]]:
        connection = sqlite3.connect(self.folder / "shop.db")
        try:
            return connection.execute("SELECT article, kind FROM orders").fetchall()
        finally:
            connection.close()


def started(folder: Path, name: str, *words: str) -> subprocess.Popen[bytes]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMNIQ", "SHOP", "SENTRY"))}
    more = {"PYTHONPATH": str(EXAMPLE), "PYTHONUNBUFFERED": "1", "SHOP_REPORTS": str(folder / "reports")}
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", *words], cwd=folder, env=kept | more, stderr=log, stdout=log)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    worker = started(folder, "worker", "omniq", "worker", "shop.tasks:queue", "--no-log-setup", "--process-slots", "1")
    server = started(folder, "server", "uvicorn", "shop.web:app", "--port", "0")
    try:

        def address() -> str | None:
            said = (folder / "server.log").read_text(encoding="utf-8")
            assert server.poll() is None, said
            found = re.search(r"running on (http://127\.0\.0\.1:\d+)", said)
            return found and found[1]

        with httpx.Client(base_url=wait_until(address, TIME, "the web server") or "", timeout=TIME) as client:
            yield Shop(folder, client)
        for process in (server, worker):
            process.send_signal(signal.SIGTERM)
        server.wait(TIME)
        assert worker.wait(TIME) == 0
        assert "the pool is closed" in (folder / "worker.log").read_text(encoding="utf-8")
    finally:
        for process in (server, worker):
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_is_carried_out_with_an_injected_connection_and_logged_under_the_requests_id(
    shop: Shop, kind: str
) -> None:
    assert shop.order(kind, "book", f"request-{kind}") == {
        "state": "succeeded", "result": f"book by {kind}", "error": None,
    }  # fmt: skip
    assert shop.orders().count(("book", kind)) == 1
    wait_until(lambda: f"INFO shop [request-{kind}] ordering a book" in shop.log, TIME, "the record of the task")


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_rolled_back_and_reported_with_its_exception(shop: Shop, kind: str) -> None:
    assert shop.order(kind, "unicorn", f"failing-{kind}")["error"] == "shop.tasks.OutOfStockError"
    assert ("unicorn", kind) not in shop.orders()

    (report,) = [report for report in shop.reports if report["tags"]["request_id"] == f"failing-{kind}"]
    (raised,) = report["exception"]["values"]
    assert (raised["module"], raised["type"], raised["value"]) == ("shop.tasks", "OutOfStockError", "unicorn")
    frame = raised["stacktrace"]["frames"][-1]
    assert (frame["function"], frame["vars"]["article"], frame["vars"]["kind"]) == ("insert", "'unicorn'", f"'{kind}'")
