"""Measurements: written as JSON lines while they are made, and condensed to medians with their spread."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from attrs import asdict, field, frozen

__all__ = ["Log", "Measurement", "Results", "Value", "machine"]


@frozen(kw_only=True)
class Measurement:
    """One value of one repetition."""

    store: str
    contender: str
    role: str
    """``omniq``, ``peer`` or ``raw``."""
    version: str
    line: str
    value: float
    repetition: int
    size: int
    """How many tasks, rounds or seconds it was measured with."""


@frozen
class Value:
    """What several repetitions come to."""

    median: float
    spread: float
    """Half the distance between the least and the greatest, as a share of the median."""
    count: int


@frozen
class Results:
    """All measurements of a run."""

    measurements: list[Measurement] = field(factory=list)
    missing: dict[tuple[str, str], str] = field(factory=dict)
    """By store and contender: who could not be measured at all, and why."""
    servers: dict[str, str] = field(factory=dict)
    """By store: name and version of its server."""
    machines: list[dict[str, Any]] = field(factory=list)
    """What it was measured on, at the beginning of the run and at its end."""

    @classmethod
    def read(cls, files: Iterable[Path]) -> Self:
        """Read what earlier runs have written."""
        results = cls()
        for file in files:
            for line in file.read_text(encoding="utf-8").splitlines():
                results.add(json.loads(line))
        return results

    def add(self, entry: dict[str, Any]) -> None:
        """Take a line of a run's file."""
        kind = entry.pop("kind")
        if kind == "measurement":
            self.measurements.append(Measurement(**entry))
        elif kind == "machine":
            self.machines.append(entry)
        elif kind == "server":
            self.servers[entry["store"]] = entry["version"]
        elif kind == "missing":
            self.missing[entry["store"], entry["contender"]] = entry["reason"]

    def stores(self) -> set[str]:
        """Return the stores on which there are figures."""
        return {entry.store for entry in self.measurements}

    def contenders(self, store: str) -> list[tuple[str, str]]:
        """Return name and role of everyone who was measured on a store: OmniQ, peers, the plain client."""
        found = {(entry.contender, entry.role) for entry in self.measurements if entry.store == store}
        ranks = ("omniq", "peer", "raw")
        order = [entry.contender for entry in self.measurements]
        return sorted(found, key=lambda entry: (ranks.index(entry[1]), order.index(entry[0])))

    def value(self, store: str, contender: str, line: str) -> Value | None:
        """Return what one cell of the table holds."""
        values = [
            entry.value
            for entry in self.measurements
            if (entry.store, entry.contender, entry.line) == (store, contender, line)
        ]
        if not values:
            return None
        median = statistics.median(values)
        return Value(median, (max(values) - min(values)) / 2 / median if median else 0.0, len(values))

    def size(self, line: str) -> int:
        """Return how large OmniQ's measurement of a line was."""
        return max((entry.size for entry in self.measurements if entry.line == line), default=0)

    def versions(self, store: str) -> list[str]:
        """Return what was measured on a store, with versions."""
        found = {entry.contender: entry.version for entry in self.measurements if entry.store == store}
        return [f"{name} {found[name]}" for name, _ in self.contenders(store) if found[name]]


class Log:
    """The file of JSON lines of a run, and what they come to.

    :param file: made if it is not there.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.results = Results()
        file.parent.mkdir(parents=True, exist_ok=True)

    def machine(self) -> None:
        """Note what the run is made on."""
        self._write("machine", **machine())

    def server(self, store: str, version: str) -> None:
        """Note the version of a store's server."""
        self._write("server", store=store, version=version)

    def measurement(self, measurement: Measurement) -> None:
        """Note one value."""
        self._write("measurement", **asdict(measurement))

    def failure(self, **what: Any) -> None:
        """Note a measurement that could not be made."""
        self._write("failure", **what)

    def missing(self, store: str, contender: str, reason: str) -> None:
        """Note somebody who cannot be measured at all."""
        self._write("missing", store=store, contender=contender, reason=reason)

    def _write(self, kind: str, **what: Any) -> None:
        with self.file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps({"kind": kind, **what}, ensure_ascii=False) + "\n")
        self.results.add({"kind": kind, **what})


def machine() -> dict[str, Any]:
    """Describe this machine and how busy it is."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load": [round(load, 2) for load in os.getloadavg()],
    }
