"""The benchmark can be run: every measurement of OmniQ can be made, and comes out as a line of the table."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.bench.lines import LINES, SERVERS, STORES
from tests.bench.peers import ENVIRONMENTS
from tests.bench.registry import ENTRIES, find
from tests.bench.report import END, FIGURES, write_figures
from tests.bench.results import Measurement, Results
from tests.bench.table import judge, tables

ROOT = Path(__file__).parents[2]


# What can be seen on some stores only: SQL, a server, memory that holds the tasks themselves.
SEEN_ON = {"idle sql": ("sqlite",), "idle requests": SERVERS, "waiting task": ("memory", "redis")}


def rehearse(store: str, file: Path) -> tuple[str, list[dict[str, object]]]:
    command: list[str | Path] = [
        sys.executable,
        "tests/bench/run.py",
        "--rehearse",
        "--stores",
        store,
        "--output",
        file,
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as made:
        try:
            printed, errors = made.communicate()
        except BaseException:
            # Not killed: it has servers to stop.
            made.terminate()
            raise
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [entry["reason"] for entry in entries if entry["kind"] in ("failure", "missing")] == []
    assert (made.returncode, errors) == (0, "")
    return printed, [entry for entry in entries if entry["kind"] == "measurement"]


def lines_of(store: str) -> set[str]:
    scenarios = find("omniq", store).scenarios
    return {
        line.name
        for line in LINES
        if line.name.partition(" ")[0] in scenarios and store in SEEN_ON.get(line.name, (store,))
    }


# Many measurements, each in processes of its own: on a busy machine more than the usual time.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "store",
    [pytest.param(store, marks=[] if store == "memory" else [pytest.mark.long]) for store in STORES],
)
def test_every_line_is_measured_and_printed(store: str, tmp_path: Path) -> None:
    printed, measurements = rehearse(store, tmp_path / "results.jsonl")
    values = {str(entry["line"]): entry["value"] for entry in measurements if entry["contender"] == "omniq"}

    assert set(values) == lines_of(store)
    # A worker that has nothing to do may well ask nothing of its store in the second for which it is looked at.
    assert [line for line, value in values.items() if not value and not line.startswith("idle")] == []
    assert min(value for value in values.values() if isinstance(value, float)) >= 0
    assert [line.name for line in LINES if line.name in values and line.title.partition("{")[0] not in printed] == []
    assert {entry["contender"] for entry in measurements} == {
        entry.name for entry in ENTRIES if entry.role != "peer" and entry.store == store
    }


def test_there_is_no_line_that_nobody_measures() -> None:
    assert set().union(*(lines_of(store) for store in STORES)) == {line.name for line in LINES}


def test_every_peer_has_an_environment_and_an_adapter() -> None:
    peers = [entry for entry in ENTRIES if entry.role == "peer"]

    assert {entry.environment for entry in peers} == set(ENVIRONMENTS)
    for entry in peers:
        module, _, name = entry.adapter.partition(":")
        # Imported without its product, which is only there in the peer's environment.
        assert not entry.adapter or hasattr(import_module(f"tests.bench.contenders.{module}"), name)


def measurement(contender: str, role: str, line: str, value: float, store: str = "sqlite") -> Measurement:
    return Measurement(
        store=store,
        contender=contender,
        role=role,
        version="1",
        line=line,
        value=value,
        repetition=1,
        size=1,
    )


def test_ratios_compare_medians_with_the_best_of_the_others_and_more_is_better() -> None:
    results = Results(
        [
            *(measurement("omniq", "omniq", "drain-async", value) for value in (900.0, 10_000.0, 11_000.0)),
            measurement("slow", "peer", "drain-threads", 500.0),
            measurement("quick", "peer", "drain-threads", 1_000.0),
            measurement("raw 100", "raw", "drain-async", 40_000.0),
            measurement("omniq", "omniq", "latency p50", 2.0),
            measurement("omniq", "omniq", "latency p99", 7.0),
            measurement("quick", "peer", "latency p50", 1.0),
        ]
    )
    lines = {line.name: line for line in LINES}

    drain, p50, p99 = (judge(results, "sqlite", lines[name]) for name in ("drain-async", "latency p50", "latency p99"))

    assert (drain.to_peer, drain.to_raw, drain.reached) == (10.0, 0.25, True)
    assert (p50.to_peer, p50.to_raw, p50.reached) == (0.5, None, False)
    assert p99.reached is False
    assert "10,000 ±50%" in tables(results, "sqlite")


def test_a_goal_is_reached_only_if_all_parts_of_it_are() -> None:
    lines = {line.name: line for line in LINES}

    def reached(raw: float) -> bool | None:
        results = Results(
            [
                measurement("omniq", "omniq", "enqueue-sync", 1_000.0, store="redis"),
                measurement("quick", "peer", "enqueue-async", 900.0, store="redis"),
                measurement("raw 1", "raw", "enqueue-sync", raw, store="redis"),
            ]
        )
        return judge(results, "redis", lines["enqueue-sync"]).reached

    assert reached(raw=1_200.0) is True
    assert reached(raw=1_300.0) is False


def test_a_goal_may_name_the_peers_that_count() -> None:
    results = Results(
        [
            measurement("omniq", "omniq", "drain-threads", 6_000.0, store="redis"),
            measurement("huey", "peer", "drain-threads", 1_000.0, store="redis"),
            measurement("mayu", "peer", "drain-threads", 5_000.0, store="redis"),
        ]
    )

    verdict = judge(results, "redis", next(line for line in LINES if line.name == "drain-threads"))

    assert (verdict.to_peer, verdict.best_peer, verdict.reached) == (1.2, "mayu", True)


def test_where_there_are_many_peers_they_have_a_table_of_their_own() -> None:
    peers = [measurement(f"peer{number}", "peer", "drain-async", 100.0 + number) for number in range(9)]
    results = Results([measurement("omniq", "omniq", "drain-async", 1_080.0), *peers])

    verdict, others = tables(results, "sqlite").split("\n\n")

    assert "10.0 × peer8" in verdict
    assert "peer0" not in verdict
    assert all(f"peer{number}" in others for number in range(9))


def test_figures_of_one_store_leave_those_of_the_others_in_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{FIGURES}\n\n{END}\n\nafter\n")

    write_figures(page, {"redis": "of redis", "sqlite": "old"})
    write_figures(page, {"sqlite": "new"})

    text = page.read_text()
    assert text.startswith(f"before\n\n{FIGURES}\n\n")
    assert text.endswith(f"\n\n{END}\n\nafter\n")
    assert text.index("new") < text.index("of redis")
    assert "old" not in text
