"""``omniq workers``: which workers are alive, for people and for probes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from omniq._worker.worker_info import WorkerInfo
from omniq.cli.app import note_place, now_of, open_queue
from omniq.cli.arguments import add_json, add_store, configuring, count, text, value
from omniq.cli.columns import Column, Table
from omniq.cli.failures import FAILED, complain
from omniq.cli.terminal import Screen, picked
from omniq.cli.wording import ago, plural

__all__ = ["as_json", "configure", "run"]


configure = configuring(
    "Show every worker that was heard of within its lease. The exit code is 1 if there are fewer than\n"
    "asked for: one, unless --at-least says otherwise. So it serves as a probe.",
    "omniq workers shop.tasks:queue\n"
    "omniq workers sqlite:///jobs.db --at-least 4\n"
    'omniq workers redis://localhost --host "$(hostname)"      is the one of this container alive?',
    add_store,
    value("--host", text, "NAME", "only workers on this host"),
    value("--at-least", count, "N", "how many there must be (default 1)", default=1),
    add_json,
)


def run(options: argparse.Namespace) -> int:
    """Show the workers; whether there are enough."""
    with open_queue(options.app) as queue:
        workers = [one for one in queue.workers() if options.host in (None, _host(one))]
        now, screen = now_of(queue), Screen()
        columns = _columns(now, labels=any(map(_has_labels, workers)))
        screen.answer(options.json, lambda: as_json(workers), lambda: Table(columns, screen).lines(workers))
        if len(workers) >= options.at_least:
            return 0
        where = "" if options.host is None else f" on {options.host}"
        complain(f"{plural(len(workers), 'worker')}{where} alive, {options.at_least} asked for")
        if not workers:
            note_place(queue)
    return FAILED


def as_json(workers: Sequence[WorkerInfo]) -> list[dict[str, Any]]:
    """Return the workers as what ``--json`` prints."""
    return [
        {
            "id": worker.id,
            "host": _host(worker),
            "pid": _pid(worker),
            **picked(worker, "seen_at", "running", "about"),
        }
        for worker in workers
    ]


def _columns(now: datetime, *, labels: bool) -> list[Column[WorkerInfo]]:
    return [
        Column(title="host", cell=lambda worker: _host(worker) or "-", least=10, keep_end=True),
        Column(title="pid", cell=lambda worker: str(_pid(worker) or "-"), right=True),
        Column(title="queues", cell=_queues, least=12),
        Column(title="version", cell=_version, rank=2),
        Column(title="slots", cell=_slots, right=True, rank=3),
        Column(title="tasks", cell=lambda worker: f"{len(worker.running):,}", right=True),
        Column(title="seen", cell=lambda worker: ago(worker.seen_at, now), right=True),
        *([Column(title="labels", cell=_labels, least=8, rank=2)] if labels else []),
        Column(title="id", cell=lambda worker: worker.id, least=12, keep_end=True, rank=1),
    ]


def _queues(worker: WorkerInfo) -> str:
    if worker.about is None:
        return "-"
    match worker.about.queues:
        case None:
            return "all"
        case tuple(names):
            return ", ".join(names)
        case weights:
            return ", ".join(f"{name}={weight}" for name, weight in weights.items())


def _version(worker: WorkerInfo) -> str:
    return "-" if worker.about is None else worker.about.versions.get("omniq-core", "-")


def _has_labels(worker: WorkerInfo) -> bool:
    return worker.about is not None and bool(worker.about.labels)


def _labels(worker: WorkerInfo) -> str:
    labels = {} if worker.about is None else worker.about.labels
    return " ".join(f"{name}={value}" for name, value in labels.items()) or "-"


def _slots(worker: WorkerInfo) -> str:
    return "-" if worker.about is None else f"{worker.about.concurrency:,}"


def _host(worker: WorkerInfo) -> str | None:
    """Return a worker's host: as it told, or as in its id, ``HOST-PID-RANDOM``; None if that is of another form."""
    if worker.about is not None:
        return worker.about.hostname
    host, _, rest = worker.id.rpartition("-")[0].rpartition("-")
    return host if host and rest.isdecimal() else None


def _pid(worker: WorkerInfo) -> int | None:
    if worker.about is not None:
        return worker.about.pid
    return None if _host(worker) is None else int(worker.id.split("-")[-2])
