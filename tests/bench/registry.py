"""Who takes part, on which store, in which measurements."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from tests.bench.contenders.contender import Contender, Setting
from tests.bench.peers import environment_of

__all__ = ["ENTRIES", "Entry", "find"]

ENQUEUE = ("enqueue-sync", "enqueue-many")
ENQUEUE_ASYNC = ("enqueue-async", "enqueue-at-once")
DRAIN_PLAIN = ("drain-threads", "drain-two")
DRAIN_ASYNC = ("drain-async", "drain-one-by-one")
DRAIN = (*DRAIN_ASYNC, *DRAIN_PLAIN)
LIMITED = "drain-keys"
WAIT = ("latency", "round-trip")
PROCESS = ("start-up", "idle", "waiting")
EVERYWHERE = ("list-failed", "fan")
GROWTH = ("growth-empty", "growth-finished", "growth-scheduled", "growth-blocked", "growth-ready", *EVERYWHERE)
# On servers, for peers: without 100,000 waiting tasks, which some take minutes to send.
SYNC_PEER = (*ENQUEUE, "drain-threads", *WAIT, "start-up", "idle")
REDIS_PY, PSYCOPG, NATS_PY = ("redis",), ("psycopg",), ("nats-py",)
ASYNC_PEER = (*ENQUEUE_ASYNC, "enqueue-many", "drain-async", *WAIT, "start-up", "idle")

NO_RESULT_PEER = tuple(scenario for scenario in ASYNC_PEER if scenario != "round-trip")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contender on one store."""

    name: str
    store: str
    """``memory``, ``sqlite``, ``file``, ``redis``, ``postgres``, ``nats``, or ``process`` for no store at all."""
    adapter: str
    """``module:class`` under ``tests.bench.contenders``; empty where its scenarios need none."""
    scenarios: tuple[str, ...]
    environment: str = ""
    """For a peer, the key of the environment that it runs in; empty: OmniQ's."""
    distributions: tuple[str, ...] = ()
    """Whose versions to tell."""
    batch: int = 0
    """For the plain client: how many tasks a transaction."""
    slowness: int = 1
    """By how much fewer tasks give as good a figure of its throughput, in bearable time."""

    @property
    def role(self) -> str:
        """``omniq``, ``peer`` or ``raw``."""
        if self.environment:
            return "peer"
        return "omniq" if self.name == "omniq" else "raw"

    @property
    def product(self) -> str:
        """What a user calls it who chooses among the peers."""
        return self.environment.partition("-")[0]

    @property
    def version(self) -> str:
        """The version of what is measured; empty for what comes with Python."""
        found = [(name, metadata.version(name)) for name in self.distributions]
        return ", ".join([version for _, version in found[:1]] + [f"{name} {version}" for name, version in found[1:]])

    def make(self, setting: Setting) -> Contender:
        """Make the contender, in the environment that has its product."""
        module, _, name = self.adapter.partition(":")
        made = getattr(importlib.import_module(f"tests.bench.contenders.{module}"), name)(setting)
        assert isinstance(made, Contender)
        return made


def _omniq(store: str, *scenarios: str) -> Entry:
    distributions = ("omniq-core", *(() if store in LOCAL else (f"omniq-{store}",)))
    return Entry(
        name="omniq", store=store, adapter="omniq_queue:OmniQ", scenarios=scenarios, distributions=distributions
    )


def _peer(
    name: str, store: str, adapter: str, *scenarios: str, slowness: int = 1, distributions: tuple[str, ...] = ()
) -> Entry:
    return Entry(
        name=name,
        store=store,
        adapter=adapter,
        scenarios=scenarios,
        environment=environment_of(name, store),
        distributions=distributions or (name,),
        slowness=slowness,
    )


def _raw(store: str, adapter: str, batch: int, *scenarios: str, name: str = "", driver: tuple[str, ...] = ()) -> Entry:
    return Entry(
        name=name or f"raw {batch}",
        store=store,
        adapter=adapter,
        scenarios=scenarios,
        batch=batch,
        slowness=4 if batch == 1 else 1,
        distributions=driver,
    )


LOCAL = ("memory", "sqlite", "file", "process")

LOCAL_ENTRIES = (
    _omniq("memory", *ENQUEUE, *ENQUEUE_ASYNC, *DRAIN_ASYNC, LIMITED, "drain-threads", *WAIT, *PROCESS, *EVERYWHERE),
    _peer("huey", "memory", "huey_queue:Huey", *ENQUEUE, "drain-threads", *WAIT, *PROCESS),
    _peer("dramatiq", "memory", "dramatiq_queue:Dramatiq", *ENQUEUE, "drain-threads", *WAIT, *PROCESS),
    _peer("taskiq", "memory", "taskiq_queue:Taskiq", *ENQUEUE_ASYNC, "drain-async", "drain-threads", *WAIT, "start-up"),
    Entry(name="raw deque", store="memory", adapter="raw_memory:RawMemory", scenarios=(*ENQUEUE, "drain-async")),
    _omniq("sqlite", *ENQUEUE, *ENQUEUE_ASYNC, *DRAIN, LIMITED, *WAIT, *PROCESS, *GROWTH),
    _peer("huey", "sqlite", "huey_queue:Huey", *ENQUEUE, *DRAIN_PLAIN, *WAIT, *PROCESS, slowness=4),
    _peer("litequeue", "sqlite", "litequeue_queue:LiteQueue", *ENQUEUE, *DRAIN_PLAIN, "latency", slowness=4),
    _raw("sqlite", "raw_sqlite:RawSqlite", 1, "enqueue-sync", "drain-async"),
    _raw("sqlite", "raw_sqlite:RawSqlite", 100, "enqueue-many", "drain-async"),
    _raw("sqlite", "raw_sqlite:RawSqlite", 500, "enqueue-many", "drain-async"),
    _omniq("file", *ENQUEUE, *ENQUEUE_ASYNC, *DRAIN, LIMITED, *WAIT, *PROCESS, *EVERYWHERE),
    # Not with 100,000 waiting tasks: to write them alone takes it minutes.
    _peer("huey", "file", "huey_queue:Huey", *ENQUEUE, *DRAIN_PLAIN, *WAIT, "start-up", "idle", slowness=20),
    Entry(name="raw file", store="file", adapter="raw_file:RawFile", scenarios=("enqueue-sync", "drain-async")),
    _omniq("process", "import", "drain-processes", "drain-metrics", "cpu-pair", "serializer"),
    *(_peer(name, "process", "", "import") for name in ("huey", "litequeue", "dramatiq", "taskiq")),
    Entry(name="json", store="process", adapter="", scenarios=("serializer",)),
    Entry(name="pickle", store="process", adapter="", scenarios=("serializer",)),
)

REDIS_ENTRIES = (
    _omniq("redis", *ENQUEUE, *ENQUEUE_ASYNC, *DRAIN, LIMITED, "group", *WAIT, *PROCESS, *GROWTH),
    _peer("arq", "redis", "arq_queue:Arq", *ASYNC_PEER, slowness=4),
    _peer("saq", "redis", "saq_queue:Saq", *ASYNC_PEER, slowness=4),
    _peer(
        "taskiq",
        "redis",
        "taskiq_server_queue:TaskiqOnServer",
        *ASYNC_PEER,
        "drain-threads",
        slowness=4,
        distributions=("taskiq", "taskiq-redis"),
    ),
    _peer("dramatiq", "redis", "dramatiq_queue:Dramatiq", *SYNC_PEER, "group", slowness=4),
    _peer("rq", "redis", "rq_queue:Rq", *SYNC_PEER, slowness=10),
    _peer("celery", "redis", "celery_queue:Celery", *SYNC_PEER, "group", slowness=10),
    _peer("huey", "redis", "huey_queue:Huey", *SYNC_PEER, slowness=4),
    _peer("tarsk", "redis", "tarsk_queue:Tarsk", *SYNC_PEER, "drain-async", distributions=("tarsk-redis",)),
    _peer("ardiq", "redis", "ardiq_queue:Ardiq", *ASYNC_PEER),
    _peer("mayu", "redis", "mayu_queue:Mayu", *SYNC_PEER),
    _peer("streaq", "redis", "streaq_queue:Streaq", *ASYNC_PEER, "group", slowness=4),
    _raw("redis", "raw_redis:RawRedis", 1, "enqueue-sync", "enqueue-async", "drain-async", driver=REDIS_PY),
    _raw("redis", "raw_redis:RawRedis", 100, "enqueue-many", "drain-async", driver=REDIS_PY),
    _raw("redis", "raw_redis:RawRedis", 500, "enqueue-many", "drain-async", driver=REDIS_PY),
)

POSTGRES_ENTRIES = (
    _omniq("postgres", *ENQUEUE, *ENQUEUE_ASYNC, *DRAIN, LIMITED, *WAIT, *PROCESS, *GROWTH),
    # These three have nobody wait for a result.
    _peer("procrastinate", "postgres", "procrastinate_queue:Procrastinate", *NO_RESULT_PEER, slowness=10),
    _peer("pgqueuer", "postgres", "pgqueuer_queue:PgQueuer", *NO_RESULT_PEER),
    _peer("oban", "postgres", "oban_queue:Oban", *NO_RESULT_PEER, slowness=4),
    _peer("saq", "postgres", "saq_queue:Saq", *ASYNC_PEER, slowness=10),
    _peer("flexiq", "postgres", "flexiq_queue:Flexiq", *SYNC_PEER, "drain-async", slowness=20),
    _raw("postgres", "raw_postgres:RawPostgres", 1, "enqueue-sync", "enqueue-async", "drain-async", driver=PSYCOPG),
    _raw("postgres", "raw_postgres:RawPostgres", 100, "enqueue-many", "drain-async", driver=PSYCOPG),
    _raw("postgres", "raw_postgres:RawPostgres", 500, "enqueue-many", "drain-async", driver=PSYCOPG),
    _raw("postgres", "raw_postgres:RawPostgresCopy", 500, "enqueue-many", name="raw copy", driver=PSYCOPG),
)

NATS_ENTRIES = (
    _omniq("nats", *ENQUEUE, *ENQUEUE_ASYNC, *DRAIN, *WAIT, *PROCESS, *GROWTH),
    _peer(
        "taskiq",
        "nats",
        "taskiq_server_queue:TaskiqOnServer",
        *NO_RESULT_PEER,
        "drain-threads",
        distributions=("taskiq", "taskiq-nats"),
    ),
    # Its results go into an object store: nothing that one would drain a queue with.
    Entry(
        name="taskiq results",
        store="nats",
        adapter="taskiq_server_queue:TaskiqWithResults",
        scenarios=("drain-async", "round-trip"),
        environment="taskiq-nats",
        distributions=("taskiq", "taskiq-nats"),
        slowness=20,
    ),
    _raw("nats", "raw_nats:RawNats", 1, "enqueue-async", "drain-async", driver=NATS_PY),
    _raw("nats", "raw_nats:RawNats", 100, "enqueue-many", "drain-async", driver=NATS_PY),
    _raw("nats", "raw_nats:RawNats", 500, "enqueue-many", "drain-async", driver=NATS_PY),
)

ENTRIES = (*LOCAL_ENTRIES, *REDIS_ENTRIES, *POSTGRES_ENTRIES, *NATS_ENTRIES)


def find(name: str, store: str, entries: Iterable[Entry] = ENTRIES) -> Entry:
    """Return the entry of a contender on a store."""
    return next(entry for entry in entries if (entry.name, entry.store) == (name, store))
