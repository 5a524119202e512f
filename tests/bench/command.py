"""``make bench``: which measurements to make, one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import frozen

from tests import fork_server
from tests.bench import environments
from tests.bench.hosts import Hosts, ServerMissing
from tests.bench.lines import SCENARIOS, SERVERS, STORES, Scenario
from tests.bench.peers import NAMES
from tests.bench.processes import MeasurementFailed, Measuring
from tests.bench.registry import ENTRIES, Entry
from tests.bench.report import report, write_figures
from tests.bench.results import Log, Measurement, Results

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "benchmarks.md"
PATIENCE = 180.0
"""Seconds that a measurement may take, beyond those that it is asked to."""
FULL_PATIENCE = 7200.0
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
    report: tuple[Path, ...]

    def size(self, scenario: Scenario, entry: Entry) -> int:
        """Return how large a measurement of a scenario is for a contender."""
        size = (scenario.quick if self.quick else scenario.size) * self.scale
        return max(scenario.floor, int(size / (entry.slowness if scenario.shrinks else 1)))

    def wants(self, scenario: Scenario) -> bool:
        """Say whether a scenario was asked for."""
        if self.only:
            return any(part in scenario.name for part in self.only)
        return self.full or not scenario.full_only


class Run:
    """One run of all measurements that were asked for."""

    def __init__(self, options: Options, hosts: Hosts) -> None:
        self.options = options
        self.failed = False
        self.log = Log(options.output)
        self.log.machine()
        self._hosts = hosts
        self._stores = self._with_servers()
        self._pythons = self._environments()

    def _with_servers(self) -> list[str]:
        stores = list(self.options.stores)
        for store in SERVERS:
            if store in stores:
                try:
                    self.log.server(store, self._hosts.start(store))
                except ServerMissing as missing:
                    stores.remove(store)
                    self.failed = True
                    self._leave_out(store, "omniq", f"there is no server: {missing}")
        return stores

    def _environments(self) -> dict[str, Path]:
        pythons: dict[str, Path] = {}
        for entry in ENTRIES:
            if entry.role == "peer" and entry.product in self.options.peers and self._is_wanted(entry):
                try:
                    pythons.setdefault(entry.environment, environments.python_for(entry.environment))
                except environments.PeerMissing as missing:
                    self._leave_out(entry.store, entry.name, str(missing))
        return pythons

    def _is_wanted(self, entry: Entry) -> bool:
        return entry.store in self._stores and any(
            scenario.name in entry.scenarios and self.options.wants(scenario) for scenario in SCENARIOS
        )

    def _leave_out(self, store: str, contender: str, reason: str) -> None:
        print(f"{contender} on {store} is left out: {reason}", flush=True)
        self.log.missing(store, contender, reason)

    def go(self) -> None:
        """Measure. Repetitions are the outermost loop, contenders the innermost: a slow minute meets them all.

        Each other repetition takes the contenders in reverse: the first of all meets a server that has just started,
        and each one what the one before it has left to do.
        """
        for repetition in range(1, self.options.repetitions + 1):
            for scenario in SCENARIOS:
                if not self.options.wants(scenario) or (scenario.once and repetition > 1):
                    continue
                entries = [entry for entry in ENTRIES if self._takes_part(entry, scenario)]
                if repetition % 2 == 0:
                    entries.reverse()
                # On a server they would disturb each other's figures, and be counted together.
                at_once = [entry for entry in entries if scenario.together and entry.store not in SERVERS]
                for group in [at_once, *([entry] for entry in entries if entry not in at_once)]:
                    self._measure([(scenario, entry) for entry in group], repetition)

    def rehearse(self) -> None:
        """Make every measurement, several at once: it shows whether all can be made, and nothing about speed."""
        pairs = [(scenario, entry) for scenario in SCENARIOS for entry in ENTRIES if self._takes_part(entry, scenario)]
        for start in range(0, len(pairs), AT_ONCE):
            self._measure(pairs[start : start + AT_ONCE], repetition=1)

    def _takes_part(self, entry: Entry, scenario: Scenario) -> bool:
        if scenario.name not in entry.scenarios or entry.store not in self._stores:
            return False
        return entry.role != "peer" or (entry.product in self.options.peers and entry.environment in self._pythons)

    def _measure(self, pairs: Iterable[tuple[Scenario, Entry]], repetition: int) -> None:
        begun = [self._begin(scenario, entry) for scenario, entry in pairs]
        for measuring in begun:
            scenario, entry = measuring.scenario, measuring.entry
            try:
                takes_long = scenario.full_only or scenario.takes_long
                values = measuring.values(FULL_PATIENCE if takes_long else PATIENCE)
            except MeasurementFailed as failure:
                self.failed = self.failed or entry.role != "peer"
                print(f"{scenario.name} on {entry.store}: {entry.name} failed: {_last_line(failure)}", flush=True)
                self.log.failure(scenario=scenario.name, store=entry.store, contender=entry.name, reason=str(failure))
                continue
            finally:
                if measuring.place is not None:
                    self._hosts.remove(entry.store, measuring.place)
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
                self.log.measurement(measurement)
                print(f"{measurement.line} on {entry.store}: {entry.name} {measurement.value:,.4g}", flush=True)

    def _begin(self, scenario: Scenario, entry: Entry) -> Measuring:
        python = self._pythons[entry.environment] if entry.role == "peer" else Path(sys.executable)
        size = self.options.size(scenario, entry)
        # What imports what takes a figure's time in a measurement, and most of the time of a rehearsal.
        popen = fork_server.Popen if self.options.rehearsal else subprocess.Popen
        return Measuring(scenario, entry, size, python, self._hosts.make(entry.store), popen)


def _last_line(failure: MeasurementFailed) -> str:
    return str(failure).splitlines()[-1]


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    :return: 0, or 1 if a measurement of OmniQ or of the plain client could not be made.
    """
    options = _options(arguments)
    # So that it stops its servers first.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    failed = False
    if options.report:
        results = Results.read(options.report)
    else:
        with Hosts() as hosts:
            run = Run(options, hosts)
            if options.rehearsal:
                run.rehearse()
            else:
                run.go()
        run.log.machine()
        results, failed = run.log.results, run.failed
        print(f"\nEvery single measurement is in {options.output}")
    texts = {store: report(results, store) for store in STORES if store in results.stores()}
    print("\n" + "\n\n".join(texts.values()))
    if options.docs:
        write_figures(DOCS, texts)
        print(f"{DOCS} has these figures now")
    return int(failed)


def _options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=…", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute: small sizes, one repetition")
    parser.add_argument("--full", action="store_true", help="also with a million tasks in the store: some minutes more")
    parser.add_argument("--rehearse", action="store_true", help="try every measurement; the figures mean nothing")
    parser.add_argument("--repetitions", type=int, help="how often (3; 1 with --quick)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all sizes by this")
    parser.add_argument("--stores", type=_words, default=tuple(STORES), help=f"of {','.join(STORES)}")
    parser.add_argument("--peers", type=_words, default=NAMES, help=f"of {','.join(NAMES)}")
    parser.add_argument("--no-peers", action="store_true", help="OmniQ and the plain clients only; installs nothing")
    parser.add_argument("--only", type=_words, default=(), help="only scenarios whose names hold one of these words")
    parser.add_argument("--output", type=Path, help="the file of JSON lines (in bench-results/)")
    parser.add_argument(
        "--report", type=Path, nargs="+", default=(), help="measure nothing; show what these files of JSON lines hold"
    )
    parser.add_argument("--docs", action="store_true", help="write the figures into docs/benchmarks.md")
    given = parser.parse_args(arguments)
    for option, known in (("stores", STORES), ("peers", NAMES)):
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
        report=tuple(given.report),
        output=given.output or ROOT / "bench-results" / time.strftime("%Y%m%d-%H%M%S.jsonl"),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)
