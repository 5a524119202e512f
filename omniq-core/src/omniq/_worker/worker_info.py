"""What a worker tells about itself, as a text that stores keep and do not read, and back.

The text is JSON. A reader passes over names that it does not know, such as those of a newer version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import accumulate, islice, takewhile
from typing import Any

from attrs import asdict, field, frozen

from omniq.storage import StoredWorker
from omniq.storage.durations import duration
from omniq.storage.validation import UNREADABLE

__all__ = [
    "WorkerAbout",
    "WorkerInfo",
    "as_worker_info",
    "check_labels",
    "dump_about",
    "load_about",
    "serves",
    "some_names",
]

MOST_LABELS = 20
LONGEST_LABEL = 100
MOST_NAMES = 500
LARGEST_NAMES = 20_000
"""Bytes that all names of functions may take, as JSON; those that run on processes are told twice."""


@frozen(kw_only=True)
class WorkerAbout:
    """What a worker is, in its own words."""

    hostname: str
    pid: int
    started_at: datetime
    """By the clock of the worker's host."""
    versions: Mapping[str, str]
    """Of ``omniq-core``, of the distribution that brings the store, if it is known, and of ``python``."""
    queues: Mapping[str, int] | tuple[str, ...] | None
    """As the worker's option ``queues``: names in strict order, or weights by name; None: every queue."""
    concurrency: int
    """How many tasks may run at once."""
    slots: Mapping[str, int]
    """How many of them on each executor: ``loop``, ``thread``, ``process``."""
    lease: float
    """Seconds."""
    recover_every: float
    """Seconds between two looks for tasks whose lease has run out, give or take a quarter."""
    serializers: tuple[str, ...]
    """The names of those that it accepts."""
    functions: tuple[str, ...] = field(default=())
    """The names of the functions that it can run; of many the first 500 by name, or fewer if the names are long."""
    function_count: int
    """How many functions it can run."""
    process_functions: tuple[str, ...] = field(default=())
    """Those of ``functions`` that run on processes."""
    labels: Mapping[str, str] = field(factory=dict)
    """Labels set where the worker was started, such as its zone."""


@frozen(kw_only=True)
class WorkerInfo:
    """A worker that has been heard of within its lease."""

    id: str
    seen_at: datetime
    """When it was last heard of, by the store's clock."""
    running: tuple[str, ...] = ()
    """The ids of the tasks that it holds."""
    about: WorkerAbout | None = None
    """What it is; None if it has not told, or what it told cannot be read by this version."""


def as_worker_info(stored: StoredWorker) -> WorkerInfo:
    """Return a worker as users see it."""
    about = None if stored.about is None else load_about(stored.about)
    return WorkerInfo(id=stored.id, seen_at=stored.seen_at, running=stored.running, about=about)


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a worker if they can be some.

    :raises ValueError: if they are too many or too long, or one is no printable text.
    """
    if len(labels) > MOST_LABELS:
        raise ValueError(f"a worker can have {MOST_LABELS} labels, not {len(labels)}")
    texts: list[object] = [*labels.keys(), *labels.values()]
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= LONGEST_LABEL or not text.isprintable():
            raise ValueError(
                f"a worker's label and its value must have 1 to {LONGEST_LABEL} printable characters, not {text!r:.300}"
            )
    return dict(labels)


def some_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the first of some names in their order: so many that stores take them without trouble."""
    few = list(islice(sorted(names), MOST_NAMES))
    sizes = accumulate(len(json.dumps(name)) for name in few)
    return tuple(few[: sum(1 for _ in takewhile(lambda size: size <= LARGEST_NAMES, sizes))])


def dump_about(about: WorkerAbout) -> str:
    """Return what a worker tells about itself as a text."""
    return json.dumps({**asdict(about), "started_at": about.started_at.isoformat()}, separators=(",", ":"))


def load_about(text: str) -> WorkerAbout | None:
    """Return what :func:`dump_about` was given; None if the text is of another kind."""
    try:
        told = json.loads(text)
        return WorkerAbout(
            hostname=_is(told["hostname"], str),
            pid=_is(told["pid"], int),
            started_at=_moment(told["started_at"]),
            versions=_mapping(told["versions"], str),
            queues=_queues(told["queues"]),
            concurrency=_is(told["concurrency"], int),
            slots=_mapping(told["slots"], int),
            lease=duration(told["lease"], "lease"),
            recover_every=duration(told["recover_every"], "recover_every"),
            serializers=_texts(told["serializers"]),
            functions=_texts(told["functions"]),
            function_count=_is(told["function_count"], int),
            process_functions=_texts(told.get("process_functions", [])),
            labels=_mapping(told.get("labels", {}), str),
        )
    except UNREADABLE:
        return None


def _moment(text: Any) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() is None:
        raise ValueError(f"{text!r} is no time with a time zone")
    return moment


def _is(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"{value!r} is of the wrong type")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_is(value, str) for value in _is(values, list))


def _mapping(values: Any, kind: type) -> dict[str, Any]:
    return {name: _is(value, kind) for name, value in _is(values, dict).items()}


def _queues(value: Any) -> Mapping[str, int] | tuple[str, ...] | None:
    if value is None:
        return None
    return _mapping(value, int) if isinstance(value, dict) else _texts(value)


def serves(about: WorkerAbout | None, queue: str) -> bool:
    """Return whether a worker serves a queue; True if it has not told which it does.

    :param about: what the worker tells about itself.
    :param queue: the queue's name.
    """
    return about is None or about.queues is None or queue in about.queues
