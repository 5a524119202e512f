"""``make bench``: which measurements to make, one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import frozen

from tests.bench import environments, table
from tests.bench.job import Job
from tests.bench.lines import SCENARIOS, STORES, Scenario
from tests.bench.registry import ENTRIES, PEERS, Entry
from tests.bench.results import Log, Measurement, Results, machine

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0
"""Seconds that a measurement may take, beyond those that it is asked to."""
FULL_PATIENCE = 1800.0


@frozen(kw_only=True)
class Options:
    """What was asked for."""

    repetitions: int
    quick: bool
    full: bool
    scale: float
    stores: tuple[str, ...]
    peers: tuple[str, ...]
    only: tuple[str, ...]
    output: Path

    def size(self, scenario: Scenario, entry: Entry) -> int:
        """Give how large a measurement of a scenario is for a contender."""
        size = (scenario.quick if self.quick else scenario.size) * self.scale
        return max(scenario.floor, int(size / (scenario.slow_share if entry.slow else 1)))

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
        """Measure. Repetitions are the outermost loop, contenders the innermost: all share what the machine goes through."""
        for repetition in range(1, self.options.repetitions + 1):
            for scenario in SCENARIOS:
                if not self.options.wants(scenario) or (scenario.once and repetition > 1):
                    continue
                for group in self._groups(scenario):
                    self._measure(scenario, group, repetition)

    def _groups(self, scenario: Scenario) -> list[list[Entry]]:
        entries = [
            entry
            for entry in ENTRIES
            if scenario.name in entry.scenarios
            and entry.store in self.options.stores
            and (entry.role != "peer" or entry.name in self._pythons)
        ]
        return [entries] if scenario.together else [[entry] for entry in entries]

    def _measure(self, scenario: Scenario, entries: Iterable[Entry], repetition: int) -> None:
        begun = [self._begin(scenario, entry) for entry in entries]
        for measuring in begun:
            entry = measuring.entry
            try:
                values = measuring.values(FULL_PATIENCE if scenario.full_only else PATIENCE)
            except MeasurementFailed as failure:
                self.failed = self.failed or entry.role != "peer"
                print(f"{scenario.name} on {entry.store}: {entry.name} failed: {failure}", flush=True)
                self._log.failure(scenario=scenario.name, store=entry.store, contender=entry.name, reason=str(failure))
                continue
            for value in values:
                measurement = Measurement(
                    store=entry.store,
                    contender=entry.name,
                    role=entry.role,
                    repetition=repetition,
                    size=measuring.size,
                    **value,
                )
                self.results.measurements.append(measurement)
                self._log.measurement(measurement)
                print(f"{measurement.line} on {entry.store}: {entry.name} {measurement.value:,.4g}", flush=True)

    def _begin(self, scenario: Scenario, entry: Entry) -> Measuring:
        python = self._pythons[entry.name] if entry.role == "peer" else Path(sys.executable)
        return Measuring(scenario, entry, self.options.size(scenario, entry), python)


class MeasurementFailed(Exception):
    """A measuring process ended without figures; the text says why."""


class Measuring:
    """A measuring process under way."""

    def __init__(self, scenario: Scenario, entry: Entry, size: int, python: Path) -> None:
        self.entry = entry
        self.size = size
        self._folder = tempfile.mkdtemp(prefix="omniq-bench-")
        job = Job(contender=entry.name, store=entry.store, scenario=scenario.name, size=size, folder=self._folder)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMNIQ_", "COVERAGE_"))}
        self._process = subprocess.Popen(
            [python, "-m", "tests.bench.child", "measure", job.text],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def values(self, patience: float) -> list[dict[str, str | float]]:
        """Wait for the figures.

        :param patience: seconds.
        :raises MeasurementFailed: if none come.
        """
        try:
            output, errors = self._process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise MeasurementFailed(f"no figure within {patience:g} s") from None
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._process.returncode != 0:
            raise MeasurementFailed((errors.strip().splitlines() or [f"code {self._process.returncode}"])[-1])
        return [json.loads(line) for line in output.splitlines()]


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    :return: 0, or 1 if a measurement of OmniQ or of the plain client could not be made.
    """
    options = _options(arguments)
    began = time.monotonic()
    run = Run(options)
    run.go()
    print()
    for text in table.tables(run.results):
        print(text, end="\n\n")
    print(table.picture(run.results), end="\n\n")
    there = machine()
    print(f"{there['cores']} cores, {there['system']}, Python {there['python']}, SQLite {there['sqlite']}", end="; ")
    print(", ".join(run.results.versions(ENTRIES)))
    print(f"load now {there['load'][0]}; {options.repetitions} repetitions in {time.monotonic() - began:.0f} s", end="; ")
    print(f"every measurement is in {options.output}")
    return int(run.failed)


def _options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=…", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute: small sizes, one repetition")
    parser.add_argument("--full", action="store_true", help="also with a million tasks in the store: some minutes more")
    parser.add_argument("--repetitions", type=int, help="how often (3; 1 with --quick)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all sizes by this")
    parser.add_argument("--stores", type=_words, default=tuple(STORES), help=f"of {','.join(STORES)}")
    parser.add_argument("--peers", type=_words, default=tuple(PEERS), help=f"of {','.join(PEERS)}")
    parser.add_argument("--no-peers", action="store_true", help="OmniQ and the plain clients only; installs nothing")
    parser.add_argument("--only", type=_words, default=(), help="only scenarios whose names hold one of these words")
    parser.add_argument("--output", type=Path, help="the file of JSON lines (in bench-results/)")
    given = parser.parse_args(arguments)
    for option, known in (("stores", STORES), ("peers", PEERS)):
        for word in getattr(given, option):
            if word not in known:
                parser.error(f"--{option}: there is no {word!r}; take of {', '.join(known)}")
    return Options(
        repetitions=given.repetitions or (1 if given.quick else 3),
        quick=given.quick,
        full=given.full,
        scale=given.scale,
        stores=given.stores,
        peers=() if given.no_peers else given.peers,
        only=given.only,
        output=given.output or ROOT / "bench-results" / time.strftime("%Y%m%d-%H%M%S.jsonl"),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)
