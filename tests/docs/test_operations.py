"""The alerts and the dashboard that come with the documentation: they ask for metrics that there are."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from omniq._worker.metrics import RECOVERED, Metrics
from omniq.cli.exposition import exposed, store_metrics, worker_metrics
from omniq.storage import QueueStats
from omniq.task import StoredTask, TaskState
from tests.docs.pages import DOCS

OPERATIONS = DOCS / "operations"
NOW = datetime.now(UTC)
METRIC = re.compile(r"\bomniq_\w+")


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load((OPERATIONS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((OPERATIONS / "grafana.json").read_text())["panels"]
    return found


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Return the names of all metrics that a worker and an exporter show."""

    metrics = Metrics()
    metrics.count(StoredTask(id="t", queue="q", name="f", body=b"", created_at=NOW, run_at=NOW), RECOVERED)
    stats = [QueueStats(queue="q", counts=dict.fromkeys(TaskState, 0))]
    texts = (
        exposed(worker_metrics(metrics.totals(), 1)).body,
        exposed(store_metrics(stats, [], [], NOW)).body,
    )
    names = {name for text in texts for name in re.findall(r"^(omniq_\w+)", text, re.MULTILINE)}
    return names | {"omniq_store_up"}


def test_every_alert_asks_for_metrics_that_there_are_and_says_what_is_wrong(known: set[str]) -> None:
    assert [rule["alert"] for rule in rules() if not set(METRIC.findall(rule["expr"])) <= known] == []
    assert [rule["alert"] for rule in rules() if not METRIC.findall(rule["expr"])] == []
    assert {rule["labels"]["severity"] for rule in rules()} == {"critical", "warning"}
    assert all(rule["annotations"]["summary"] for rule in rules())


def test_every_panel_of_the_dashboard_asks_for_metrics_that_there_are(known: set[str]) -> None:
    asked = {
        panel["title"]: {name for target in panel["targets"] for name in METRIC.findall(target["expr"])}
        for panel in panels()
    }

    assert {title: names - known for title, names in asked.items() if not names or names - known} == {}
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_metric_is_on_the_page(known: set[str]) -> None:
    page = (DOCS / "how-to" / "metrics.md").read_text(encoding="utf-8")
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in known}

    assert [name for name in sorted(families) if f"`{name}`" not in page] == []
