"""The files for operators that come with the documentation: metrics that there are, commands that can be typed."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import promql_parser
import pytest
import yaml

from omniq._worker.metrics import RECOVERED, Metrics
from omniq.cli import COMMANDS, Command
from omniq.cli.arguments import Parser
from omniq.cli.exposition import exposed, store_metrics, worker_metrics
from omniq.limit import Limit, LimitUsage, Scope
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
    usage = [LimitUsage(scope=Scope(queue="q"), limit=Limit(queue="q", concurrency=1), running=0)]
    texts = (
        exposed(worker_metrics(metrics.totals(), 1)).body,
        exposed(store_metrics(stats, [], [], NOW, usage)).body,
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


def test_prometheus_can_read_every_expression() -> None:
    expressions = [rule["expr"] for rule in rules()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    for expression in expressions:
        promql_parser.parse(expression.replace("$__rate_interval", "5m"))


# How workers are started


def composed() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((OPERATIONS / "compose.yaml").read_text())["services"]
    return services


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((OPERATIONS / "kubernetes.yaml").read_text()))


def containers() -> dict[str, dict[str, Any]]:
    """Return by name each pod that a manifest describes."""
    deployments = [one for one in manifests() if one["kind"] == "Deployment"]
    return {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in deployments}


def unit() -> dict[str, str]:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as the standard library says
    parser.read(OPERATIONS / "omniq-worker@.service")
    return dict(parser["Service"])


def parsed(words: list[str]) -> argparse.Namespace:
    assert words[0].rpartition("/")[2] == "omniq"
    command: Command = import_module(COMMANDS[words[1]][0])
    parser = Parser(prog=f"omniq {words[1]}")
    command.configure(parser)
    return parser.parse_args(words[2:])


def checked(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_the_compose_file_is_one_by_the_schema_of_compose() -> None:
    checked("check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(OPERATIONS / "compose.yaml"))


def test_the_manifests_are_such_by_the_schemas_of_kubernetes() -> None:
    said = checked("kubernetes_validate", "-k", "1.33", "--strict", str(OPERATIONS / "kubernetes.yaml"))
    # What KEDA brings is in no schema of Kubernetes.
    unknown = [line for line in said.splitlines() if " passed " not in line]
    assert [kind for line in unknown for kind in re.findall(r"for kind (\w+)", line)] == ["ScaledObject"]


def test_every_command_of_omniq_can_be_typed_and_a_worker_gets_the_time_that_it_needs_to_stop() -> None:
    worker = composed()["worker"]
    assert parsed(worker["command"]).grace + 10 < int(worker["stop_grace_period"].removesuffix("s"))
    assert parsed(composed()["exporter"]["command"]).http

    pod = containers()["shop-worker"]
    assert parsed(pod["containers"][0]["command"]).grace + 10 < pod["terminationGracePeriodSeconds"]
    assert parsed(containers()["shop-exporter"]["containers"][0]["command"]).http

    service = unit()
    words = shlex.split(service["ExecStart"].replace("${APP}", "shop:queue").replace("%i", "shop"))
    assert parsed(words).grace + 10 < int(service["TimeoutStopSec"])


def test_probes_ask_the_port_that_the_worker_listens_on() -> None:
    for pod in containers().values():
        (container,) = pod["containers"]
        port = container["ports"][0]["containerPort"]
        assert parsed(container["command"]).http[1] == port
        for probe in ("livenessProbe", "readinessProbe"):
            if probe in container:
                assert container[probe]["httpGet"]["port"] == container["ports"][0]["name"]


def test_manifests_refer_to_each_other_by_names_that_there_are() -> None:
    kinds = {(one["kind"], one["metadata"]["name"]): one for one in manifests()}
    service = kinds["Service", "shop-exporter"]
    assert service["spec"]["selector"] == kinds["Deployment", "shop-exporter"]["spec"]["selector"]["matchLabels"]
    scaled = kinds["ScaledObject", "shop-worker"]["spec"]
    assert ("Deployment", scaled["scaleTargetRef"]["name"]) in kinds
    assert scaled["triggers"][0]["metadata"]["url"].startswith(f"http://{service['metadata']['name']}:")
