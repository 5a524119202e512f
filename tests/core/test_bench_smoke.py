"""The benchmark can be run: every measurement of OmniQ can be made, and comes out as a line of the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.lines import LINES, STORES
from tests.bench.registry import ENTRIES
from tests.bench.results import Measurement, Results
from tests.bench.table import judge, tables

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, object]]]:
    file = tmp_path_factory.mktemp("bench") / "results.jsonl"
    made = subprocess.run(
        [sys.executable, "tests/bench/run.py", "--rehearse", "--output", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [entry["reason"] for entry in entries if entry["kind"] == "failure"] == []
    assert (made.returncode, made.stderr) == (0, "")
    return made.stdout, [entry for entry in entries if entry["kind"] == "measurement"]


def test_every_line_is_measured_and_printed(rehearsal: tuple[str, list[dict[str, object]]]) -> None:
    printed, measurements = rehearsal
    values = {str(entry["line"]): entry["value"] for entry in measurements if entry["contender"] == "omniq"}

    assert set(values) == {line.name for line in LINES}
    # A worker that has nothing to do may well ask nothing of its store in the second for which it is looked at.
    assert [line for line, value in values.items() if not value and not line.startswith("idle")] == []
    assert min(value for value in values.values() if isinstance(value, float)) >= 0
    for line in LINES:
        assert line.title.partition("{")[0] in printed


def test_the_plain_clients_are_measured(rehearsal: tuple[str, list[dict[str, object]]]) -> None:
    measured = {(entry["contender"], entry["store"]) for entry in rehearsal[1]}

    assert measured == {(entry.name, entry.store) for entry in ENTRIES if entry.role != "peer"}


def measurement(contender: str, role: str, line: str, value: float) -> Measurement:
    return Measurement(
        store="sqlite",
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
    (table,) = tables(results)
    assert STORES["sqlite"] in table
    assert "10,000 ±50%" in table
