"""``make bench``: which measurements to make, one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import frozen

from tests.bench import environments, table
from tests.bench.lines import SCENARIOS, STORES, Scenario
from tests.bench.processes import MeasurementFailed, Measuring
from tests.bench.registry import ENTRIES, PEERS, Entry
from tests.bench.results import Log, Measurement, Results, machine

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "benchmarks.md"
FIGURES = "<!-- figures: written by make bench BENCH_ARGS=--docs -->"
END = "<!-- end of figures -->"
PATIENCE = 180.0
"""Seconds that a measurement may take, beyond those that it is asked to."""
FULL_PATIENCE = 1800.0
AT_ONCE = 6
"""How many measurements a rehearsal makes at the same time."""
REHEARSED = 0.005
"""The sizes of a rehearsal, as a share."""


@frozen(kw_only=True)
class Options:
    """What was asked for."""

    repetitions: int
    quick: bool
    full: bool
    rehearsal: bool
    scale: float
    stores: tuple[str, ...]
    peers: tuple[str, ...]
    only: tuple[str, ...]
    output: Path
    docs: bool

    def size(self, scenario: Scenario, entry: Entry) -> int:
        """Give how large a measurement of a scenario is for a contender."""
        size = (scenario.quick if self.quick else scenario.size) * self.scale
        return max(scenario.floor, int(size / (entry.slowness if scenario.shrinks else 1)))

    def wants(self, scenario: Scenario) -> bool:
        """Say whether a scenario was asked for."""
        if self.only:
            return any(part in scenario.name for part in self.only)
        return self.full or not scenario.full_only


class Run:
    """One run of all measurements that were asked for."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.results = Results()
        self.failed = False
        self._log = Log(options.output)
        self._log.machine()
        self._pythons = self._environments()

    def _environments(self) -> dict[str, Path]:
        pythons: dict[str, Path] = {}
        for name in self.options.peers:
            try:
                pythons[name] = environments.python_for(name, PEERS[name])
            except environments.PeerMissing as missing:
                print(f"{name} is left out: {missing}", flush=True)
        return pythons

    def go(self) -> None:
        """Measure. Repetitions are the outermost loop, contenders the innermost: a slow minute meets them all."""
        for repetition in range(1, self.options.repetitions + 1):
            for scenario in SCENARIOS:
                if not self.options.wants(scenario) or (scenario.once and repetition > 1):
                    continue
                entries = [entry for entry in ENTRIES if self._takes_part(entry, scenario)]
                for group in [entries] if scenario.together else [[entry] for entry in entries]:
                    self._measure([(scenario, entry) for entry in group], repetition)

    def rehearse(self) -> None:
        """Make every measurement, several at once: it shows whether all can be made, and nothing about speed."""
        pairs = [(scenario, entry) for scenario in SCENARIOS for entry in ENTRIES if self._takes_part(entry, scenario)]
        for start in range(0, len(pairs), AT_ONCE):
            self._measure(pairs[start : start + AT_ONCE], repetition=1)

    def _takes_part(self, entry: Entry, scenario: Scenario) -> bool:
        if scenario.name not in entry.scenarios or entry.store not in self.options.stores:
            return False
        return entry.role != "peer" or entry.name in self._pythons

    def _measure(self, pairs: Iterable[tuple[Scenario, Entry]], repetition: int) -> None:
        begun = [self._begin(scenario, entry) for scenario, entry in pairs]
        for measuring in begun:
            scenario, entry = measuring.scenario, measuring.entry
            try:
                values = measuring.values(FULL_PATIENCE if scenario.full_only else PATIENCE)
            except MeasurementFailed as failure:
                self.failed = self.failed or entry.role != "peer"
                print(f"{scenario.name} on {entry.store}: {entry.name} failed: {_last_line(failure)}", flush=True)
                self._log.failure(scenario=scenario.name, store=entry.store, contender=entry.name, reason=str(failure))
                continue
            for value in values:
                measurement = Measurement(
                    store=entry.store,
                    contender=entry.name,
                    role=entry.role,
                    version=value["version"],
                    line=value["line"],
                    value=value["value"],
                    repetition=repetition,
                    size=measuring.size,
                )
                self.results.measurements.append(measurement)
                self._log.measurement(measurement)
                print(f"{measurement.line} on {entry.store}: {entry.name} {measurement.value:,.4g}", flush=True)

    def _begin(self, scenario: Scenario, entry: Entry) -> Measuring:
        python = self._pythons[entry.name] if entry.role == "peer" else Path(sys.executable)
        return Measuring(scenario, entry, self.options.size(scenario, entry), python)


def _last_line(failure: MeasurementFailed) -> str:
    return str(failure).splitlines()[-1]


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    :return: 0, or 1 if a measurement of OmniQ or of the plain client could not be made.
    """
    options = _options(arguments)
    began = time.monotonic()
    run = Run(options)
    if options.rehearsal:
        run.rehearse()
    else:
        run.go()
    text = report(run.results)
    took = time.monotonic() - began
    print(f"\n{text}\n\n{options.repetitions} × in {took:.0f} s; every measurement is in {options.output}")
    if options.docs:
        _write_docs(text)
    return int(run.failed)


def report(results: Results) -> str:
    """Give what a run found: the tables, the picture, and on what it was made."""
    there = machine()
    setup = f"{there['cores']} cores, {there['system']}, Python {there['python']}, SQLite {there['sqlite']}"
    versions = ", ".join(results.versions(ENTRIES))
    parts = list(table.tables(results))
    if drawn := table.picture(results):
        parts.append(f"```text\n{drawn}\n```")
    parts.append(f"Measured on {setup}; {versions}. Load average at the end: {there['load'][0]:g}.")
    return "\n\n".join(parts)


def _write_docs(text: str) -> None:
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(FIGURES)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{FIGURES}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    print(f"{DOCS} has these figures now")


def _options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=…", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute: small sizes, one repetition")
    parser.add_argument("--full", action="store_true", help="also with a million tasks in the store: some minutes more")
    parser.add_argument("--rehearse", action="store_true", help="try every measurement; the figures mean nothing")
    parser.add_argument("--repetitions", type=int, help="how often (3; 1 with --quick)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all sizes by this")
    parser.add_argument("--stores", type=_words, default=tuple(STORES), help=f"of {','.join(STORES)}")
    parser.add_argument("--peers", type=_words, default=tuple(PEERS), help=f"of {','.join(PEERS)}")
    parser.add_argument("--no-peers", action="store_true", help="OmniQ and the plain clients only; installs nothing")
    parser.add_argument("--only", type=_words, default=(), help="only scenarios whose names hold one of these words")
    parser.add_argument("--output", type=Path, help="the file of JSON lines (in bench-results/)")
    parser.add_argument("--docs", action="store_true", help="write the figures into docs/benchmarks.md")
    given = parser.parse_args(arguments)
    for option, known in (("stores", STORES), ("peers", PEERS)):
        for word in getattr(given, option):
            if word not in known:
                parser.error(f"--{option}: there is no {word!r}; take of {', '.join(known)}")
    return Options(
        repetitions=given.repetitions or (1 if given.quick else 3),
        quick=given.quick,
        full=given.full,
        rehearsal=given.rehearse,
        scale=REHEARSED if given.rehearse else given.scale,
        stores=given.stores,
        peers=() if given.no_peers or given.rehearse else given.peers,
        only=given.only,
        docs=given.docs,
        output=given.output or ROOT / "bench-results" / time.strftime("%Y%m%d-%H%M%S.jsonl"),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)
