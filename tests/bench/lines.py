"""What is measured: the scenarios with their sizes, and the lines of the table that they give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import field, frozen

__all__ = ["LINES", "SCENARIOS", "SERVERS", "STORES", "Goal", "Line", "Scenario"]

STORES = {
    "memory": "In memory",
    "sqlite": "SQLite",
    "file": "Files",
    "redis": "Redis",
    "postgres": "PostgreSQL",
    "nats": "NATS",
    "process": "The package itself",
}
"""The stores, and what the table calls them."""

SERVERS = ("redis", "postgres", "nats")
"""Those with a server, which the runner starts."""


@frozen(kw_only=True)
class Scenario:
    """One kind of measurement, made in a process of its own for each contender and repetition."""

    name: str
    size: int
    """How much of it: tasks, rounds or seconds."""
    quick: int
    """The same for ``--quick``."""
    floor: int = 1
    """The least size that it works with."""
    shrinks: bool = False
    """Whether it asks for throughput only, so that slow contenders may be given fewer tasks."""
    once: bool = False
    """Whether one repetition is enough, since it takes an average already or cannot vary much."""
    together: bool = False
    """Whether the contenders may be measured at the same time, since they do next to nothing."""
    takes_long: bool = False
    """Whether it can take slow contenders many minutes."""
    full_only: bool = False
    """Whether it takes so long that it must be asked for."""


@frozen(kw_only=True)
class Goal:
    """What OmniQ wants to reach."""

    at_least: float
    """The least ratio to what it is compared with (more is better, also in times and costs); the bound of a value."""
    against: str
    """``peer``, ``raw``: the best of them; ``value``: the figure itself; or the name of another line of OmniQ's own."""
    text: str
    rivals: tuple[str, ...] = ()
    """The peers that count; empty: all."""


@frozen(kw_only=True)
class Line:
    """One line of the table."""

    name: str
    title: str
    unit: str
    more_is_better: bool = False
    rivals: tuple[str, ...] = ()
    """Lines of which the peers' and the plain client's figures count as well, where they have no such way."""
    raw_rivals: tuple[str, ...] = ()
    """The same, for the plain client only."""
    goals: Mapping[str, tuple[Goal, ...]] = field(factory=dict)
    """By store."""


SCENARIOS = (
    Scenario(name="enqueue-sync", size=4_000, quick=1_000),
    Scenario(name="enqueue-async", size=4_000, quick=1_000),
    Scenario(name="enqueue-at-once", size=10_000, quick=3_000, floor=100),
    Scenario(name="enqueue-many", size=20_000, quick=5_000, shrinks=True),
    Scenario(name="drain-async", size=10_000, quick=3_000, shrinks=True),
    Scenario(name="drain-one-by-one", size=5_000, quick=1_500),
    Scenario(name="drain-keys", size=5_000, quick=2_000),
    Scenario(name="drain-threads", size=10_000, quick=3_000, shrinks=True),
    Scenario(name="drain-two", size=10_000, quick=3_000, shrinks=True),
    Scenario(name="group", size=10_000, quick=2_000, floor=10, takes_long=True),
    Scenario(name="fan", size=10_000, quick=1_000),
    Scenario(name="latency", size=200, quick=50, floor=3),
    Scenario(name="round-trip", size=200, quick=50, floor=3),
    Scenario(name="start-up", size=1, quick=1),
    Scenario(name="idle", size=20, quick=5, once=True, together=True),
    Scenario(name="waiting", size=100_000, quick=20_000, floor=5_000, once=True),
    Scenario(name="import", size=15, quick=7, floor=5),
    Scenario(name="drain-processes", size=2_000, quick=500),
    Scenario(name="drain-metrics", size=1_000, quick=1_000),
    Scenario(name="cpu-pair", size=3_000, quick=1_000),
    Scenario(name="serializer", size=3_000, quick=500, floor=10),
    Scenario(name="growth-empty", size=3_000, quick=3_000, floor=200, once=True, full_only=True),
    Scenario(name="growth-finished", size=1_000_000, quick=100_000, floor=200, once=True, full_only=True),
    Scenario(name="growth-scheduled", size=1_000_000, quick=100_000, floor=200, once=True, full_only=True),
    Scenario(name="growth-blocked", size=1_000_000, quick=100_000, floor=200, once=True, full_only=True),
    Scenario(name="growth-ready", size=100_000, quick=100_000, floor=200, once=True, full_only=True),
    Scenario(name="list-failed", size=1_000_000, quick=100_000, once=True, full_only=True),
)

ONE_BY_ONE = ("enqueue-sync", "enqueue-async")
SHARED = ("sqlite", "file", *SERVERS)
"""The stores that several processes share, and to which there is a way."""


def _peer(at_least: float) -> Goal:
    return Goal(at_least=at_least, against="peer", text=f"≥ {at_least:g} × peer")


def _own(at_least: float, line: str, text: str) -> Goal:
    return Goal(at_least=at_least, against=line, text=text)


def _value(bound: float, text: str) -> Goal:
    return Goal(at_least=bound, against="value", text=text)


def _everywhere(*goals: Goal) -> Mapping[str, tuple[Goal, ...]]:
    return dict.fromkeys(STORES, goals)


def _on(stores: Iterable[str], *goals: Goal) -> Mapping[str, tuple[Goal, ...]]:
    return dict.fromkeys(stores, goals)


def _rate(
    name: str,
    title: str,
    goals: Mapping[str, tuple[Goal, ...]],
    rivals: tuple[str, ...] = (),
    raw_rivals: tuple[str, ...] = (),
) -> Line:
    return Line(
        name=name, title=title, unit="tasks/s", more_is_better=True, rivals=rivals, raw_rivals=raw_rivals, goals=goals
    )


RAW_SHARE = Goal(at_least=0.8, against="raw", text="≥ 0.8 × raw")
THREADS = Goal(at_least=5, against="peer", text="≥ 5 × dramatiq, huey", rivals=("dramatiq", "huey"))
STAND_BY = {**_everywhere(_peer(1)), **_on(SERVERS, _peer(1), RAW_SHARE)}

LINES = (
    _rate("enqueue-sync", "enqueue, one by one", STAND_BY, ONE_BY_ONE),
    _rate("enqueue-async", "aenqueue, one by one", STAND_BY, ONE_BY_ONE),
    _rate(
        "enqueue-at-once",
        "aenqueue, 100 coroutines",
        # In memory there is no round trip that many could share.
        _on(SHARED, _own(5, "enqueue-async", "≥ 5 × one by one")),
        ONE_BY_ONE,
    ),
    _rate("enqueue-many", "enqueue_many", _everywhere(_peer(1.5))),
    _rate(
        "drain-async",
        "drain, async, 100 slots",
        {"memory": (_value(15_000, "≥ 15,000"),), **_on(("sqlite", "file"), _peer(10)), **_on(SERVERS, _peer(2))},
        ("drain-threads",),
    ),
    _rate(
        "drain-one-by-one",
        "drain, async, enqueued one by one",
        {
            "memory": (_value(15_000, "≥ 15,000"),),
            **_on(("sqlite", "file"), _peer(10)),
            **_on(("redis", "nats"), _peer(2)),
            "postgres": (_peer(1.5),),
        },
        # To the peers it makes no difference: to most of them, each task is one message or row in either case.
        ("drain-async", "drain-threads"),
        ("drain-async",),
    ),
    _rate("drain-keys", "drain, async, 1,000 keys with limits", {}),
    _rate(
        "drain-threads",
        "drain, sync, threads",
        {**_on(SHARED, _peer(5)), "redis": (THREADS,)},
        raw_rivals=("drain-async",),
    ),
    _rate("drain-two", "drain, two processes", _on(SHARED, _own(1.6, "drain-async", "≥ 1.6 × one"))),
    _rate("group", "group of {size:,} and its callback", _on(("redis",), _peer(1))),
    Line(
        name="group callback p50",
        title="its callback after the last member, p50",
        unit="ms",
        goals=_on(("redis",), _value(20, "≤ 20")),
    ),
    Line(name="latency p50", title="latency, p50", unit="ms", goals=_everywhere(_peer(1))),
    Line(
        name="latency p99",
        title="latency, p99",
        unit="ms",
        goals=_everywhere(_own(1 / 3, "latency p50", "≤ 3 × p50")),
    ),
    Line(name="round-trip p50", title="round trip, p50", unit="ms", goals=_everywhere(_peer(1))),
    Line(
        name="round-trip p99",
        title="round trip, p99",
        unit="ms",
        goals=_everywhere(_own(1 / 3, "round-trip p50", "≤ 3 × p50")),
    ),
    Line(name="start-up", title="start-up to first task", unit="ms"),
    Line(name="idle cpu", title="idle: CPU", unit="% of a core", goals=_everywhere(_value(1, "≤ 1"))),
    Line(name="idle calls", title="idle: calls of the store", unit="a minute", goals=_everywhere(_value(60, "≤ 60"))),
    Line(name="idle sql", title="idle: SQL transactions", unit="a minute", goals=_everywhere(_value(60, "≤ 60"))),
    Line(
        name="idle requests",
        title="idle: requests",
        unit="a minute",
        goals=_everywhere(_value(60, "≤ 60")),
    ),
    Line(name="idle rss", title="idle: memory", unit="MB"),
    Line(name="waiting task", title="memory of a waiting task", unit="bytes"),
    Line(name="waiting rss", title="memory with {size:,} waiting", unit="MB"),
    Line(name="growth-empty", title="claim + finish, empty store", unit="µs a task"),
    *(
        Line(
            name=f"growth-{state}",
            title=f"claim + finish, {{size:,}} {state}",
            unit="µs a task",
            goals=_everywhere(_own(1 / 1.5, "growth-empty", "≤ 1.5 × empty")),
        )
        for state in ("finished", "scheduled", "blocked", "ready")
    ),
    *(
        Line(
            name=f"growth-{state} {what}",
            title=f"{title}, " + ("empty store" if state == "empty" else f"{{size:,}} {state}"),
            unit=unit,
            goals={} if state == "empty" else _everywhere(_own(1 / 1.5, f"growth-empty {what}", "≤ 1.5 × empty")),
        )
        for what, title, unit in (
            ("enqueue", "enqueue in hundreds", "µs a task"),
            ("stats", "stats()", "ms"),
            ("rss", "memory of a worker", "MB"),
        )
        for state in ("empty", "finished", "scheduled", "blocked")
    ),
    *(
        Line(
            name=name,
            title=f"{title}, {{size:,}} others ended",
            unit="ms",
            goals=_everywhere(_value(bound, f"≤ {bound:,}")),
        )
        for name, title, bound in (
            ("list-failed", "list 3 failed tasks", 500),
            ("list-failed page", "dashboard: the page of 3 failed tasks", 1000),
        )
    ),
    *(
        Line(
            name=name,
            title=f"1 → {{size:,}} → 1 tasks: {title}",
            unit="ms",
            goals=_everywhere(_value(250, "≤ 250")),
        )
        for name, title in (("fan", "longest call"), ("fan beside", "longest call of another queue"))
    ),
    Line(name="import", title="import", unit="ms"),
    _rate("drain-processes", "drain, executor=process, two slots", {}),
    Line(
        name="drain-metrics",
        title="drain with metrics",
        unit="× without",
        goals=_on(("process",), _value(1.01, "≤ 1.01")),
    ),
    Line(
        name="cpu-pair",
        title="two CPU-bound process tasks",
        unit="× one alone",
        goals=_on(("process",), _value(1.2, "≤ 1.2 on two cores")),
    ),
    Line(name="serializer", title="dump + load a payload", unit="µs"),
    Line(name="serializer load", title="load a payload", unit="µs"),
    Line(name="serializer signing", title="sign a payload, and check it", unit="µs"),
)
