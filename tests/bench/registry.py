"""Who takes part, on which store, in which measurements, and what must be installed for it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from tests.bench.contenders.contender import Contender, Setting

__all__ = ["ENTRIES", "PEERS", "Entry", "find"]

ENQUEUE = ("enqueue-sync", "enqueue-many")
ENQUEUE_ASYNC = ("enqueue-async", "enqueue-at-once")
DRAIN_PLAIN = ("drain-threads", "drain-two")
WAIT = ("latency", "round-trip")
PROCESS = ("start-up", "idle", "waiting")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contender on one store."""

    name: str
    store: str
    """``memory``, ``sqlite``, ``file``, or ``process`` for what has to do with no store."""
    adapter: str
    """``module:class`` under ``tests.bench.contenders``; empty where its scenarios need none."""
    scenarios: tuple[str, ...]
    requirement: str = ""
    """What to install for it into an environment of its own; empty: it runs in OmniQ's."""
    distribution: str = ""
    """Whose version to tell."""
    batch: int = 0
    """For the plain client: how many tasks a transaction."""
    slowness: int = 1
    """By how much fewer tasks give as good a figure of its throughput, in bearable time."""

    @property
    def role(self) -> str:
        """``omniq``, ``peer`` or ``raw``."""
        if self.requirement:
            return "peer"
        return "omniq" if self.name == "omniq" else "raw"

    @property
    def version(self) -> str:
        """The version of what is measured; empty for what comes with Python."""
        return metadata.version(self.distribution) if self.distribution else ""

    def make(self, setting: Setting) -> Contender:
        """Make the contender, in the environment that has its product."""
        module, _, name = self.adapter.partition(":")
        made = getattr(importlib.import_module(f"tests.bench.contenders.{module}"), name)(setting)
        assert isinstance(made, Contender)
        return made


PEERS = {"huey": "huey~=3.0", "litequeue": "litequeue~=0.9", "dramatiq": "dramatiq~=2.0", "taskiq": "taskiq~=0.12"}
"""The peers by name, and what to install for each. A major version is held, as adapters are written for it."""


def _omniq(store: str, *scenarios: str) -> Entry:
    return Entry(name="omniq", store=store, adapter="omniq_queue:OmniQ", scenarios=scenarios, distribution="omniq-core")


def _peer(name: str, store: str, adapter: str, *scenarios: str, slowness: int = 1) -> Entry:
    return Entry(
        name=name,
        store=store,
        adapter=adapter,
        scenarios=scenarios,
        requirement=PEERS[name],
        distribution=name,
        slowness=slowness,
    )


def _raw(batch: int, *scenarios: str) -> Entry:
    return Entry(
        name=f"raw {batch}",
        store="sqlite",
        adapter="raw_sqlite:RawSqlite",
        scenarios=scenarios,
        batch=batch,
        slowness=4 if batch == 1 else 1,
    )


GROWTH = ("growth-empty", "growth-finished", "growth-scheduled", "growth-ready")

ENTRIES = (
    _omniq("memory", *ENQUEUE, *ENQUEUE_ASYNC, "drain-async", "drain-threads", *WAIT, *PROCESS),
    _peer("huey", "memory", "huey_queue:Huey", *ENQUEUE, "drain-threads", *WAIT, *PROCESS),
    _peer("dramatiq", "memory", "dramatiq_queue:Dramatiq", *ENQUEUE, "drain-threads", *WAIT, *PROCESS),
    _peer("taskiq", "memory", "taskiq_queue:Taskiq", *ENQUEUE_ASYNC, "drain-async", "drain-threads", *WAIT, "start-up"),
    Entry(name="raw deque", store="memory", adapter="raw_memory:RawMemory", scenarios=(*ENQUEUE, "drain-async")),
    _omniq("sqlite", *ENQUEUE, *ENQUEUE_ASYNC, "drain-async", "drain-threads", "drain-two", *WAIT, *PROCESS, *GROWTH),
    _peer("huey", "sqlite", "huey_queue:Huey", *ENQUEUE, "drain-threads", "drain-two", *WAIT, *PROCESS, slowness=4),
    _peer(
        "litequeue",
        "sqlite",
        "litequeue_queue:LiteQueue",
        *ENQUEUE,
        "drain-threads",
        "drain-two",
        "latency",
        slowness=4,
    ),
    _raw(1, "enqueue-sync", "drain-async"),
    _raw(100, "enqueue-many", "drain-async"),
    _raw(500, "enqueue-many", "drain-async"),
    _omniq("file", *ENQUEUE, *ENQUEUE_ASYNC, "drain-async", "drain-threads", "drain-two", *WAIT, *PROCESS),
    # Not with 100,000 waiting tasks: to write them alone takes it minutes.
    _peer("huey", "file", "huey_queue:Huey", *ENQUEUE, *DRAIN_PLAIN, *WAIT, "start-up", "idle", slowness=20),
    Entry(name="raw file", store="file", adapter="raw_file:RawFile", scenarios=("enqueue-sync", "drain-async")),
    _omniq("process", "import", "drain-processes", "cpu-pair", "serializer"),
    *(_peer(name, "process", "", "import") for name in PEERS),
    Entry(name="json", store="process", adapter="", scenarios=("serializer",)),
    Entry(name="pickle", store="process", adapter="", scenarios=("serializer",)),
)


def find(name: str, store: str, entries: Iterable[Entry] = ENTRIES) -> Entry:
    """Give the entry of a contender on a store."""
    return next(entry for entry in entries if (entry.name, entry.store) == (name, store))
