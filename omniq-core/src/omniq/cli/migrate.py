"""``omniq migrate``: bring a store's schema up to date, or show what that would do."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from omniq._client.queue import TaskQueue
from omniq.cli.app import load_queue_or_url
from omniq.cli.arguments import add_json, add_store, configuring
from omniq.cli.terminal import Screen, picked
from omniq.cli.wording import plural
from omniq.storage.migrations import Migrated, Migration

__all__ = ["as_json", "configure", "run"]


def _add_only(parser: argparse.ArgumentParser) -> None:
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="change nothing; show what is missing")
    only.add_argument("--sql", action="store_true", help="change nothing; print the statements that are missing")


configure = configuring(
    "Bring a store's schema up to date. A queue does so by itself on first use, unless its URL says\n"
    "migrate=off: so workers can run as a role that may only change rows.",
    "omniq migrate postgresql://owner@db/shop\n"
    "omniq migrate postgresql://db/shop --dry-run\n"
    "omniq migrate shop.tasks:queue --sql > schema.sql",
    add_store,
    _add_only,
    add_json,
)


def run(options: argparse.Namespace) -> int:
    """Apply or show what is missing."""
    screen = Screen()
    with load_queue_or_url(options.app) as queue:
        storage = queue.connections.sibling()
        if not isinstance(storage, Migrated):
            nothing = [] if options.sql else [f"{queue.url} has no schema to migrate"]
            screen.answer(options.json, lambda: as_json(queue, (), ()), lambda: nothing)
            return 0
        before = queue.run(storage.migrations())
        shown_only = options.dry_run or options.sql
        applied = [] if shown_only else queue.run(storage.migrate())
        if options.sql and not options.json:
            for step in (step for step in before if not step.applied):
                screen.say_lines(f"-- {step.version}: {step.name}\nBEGIN;\n{step.sql}\nCOMMIT;\n")
            return 0
        screen.answer(
            options.json,
            lambda: as_json(queue, before, applied, sql=options.sql),
            lambda: _as_lines(queue, before, applied, shown_only=shown_only),
        )
    return 0


def as_json(
    queue: TaskQueue, steps: Sequence[Migration], applied: Sequence[Migration], *, sql: bool = False
) -> dict[str, Any]:
    """Return the steps as what ``--json`` prints.

    :param steps: all that there are, as they stood before.
    :param applied: those that were applied now.
    :param sql: whether to give their statements, too.
    """
    now = {step.version for step in applied}
    return {
        "url": queue.url,
        "migrations": [
            {
                **picked(step, "version", "name"),
                "applied": step.applied or step.version in now,
                "applied_now": step.version in now,
                **({"sql": step.sql} if sql else {}),
            }
            for step in steps
        ],
    }


def _as_lines(
    queue: TaskQueue, steps: Sequence[Migration], applied: Sequence[Migration], *, shown_only: bool
) -> Iterator[str]:
    yield queue.url
    now = {step.version for step in applied}
    for step in steps:
        state = "applied" if step.version in now else "there already" if step.applied else "missing"
        # Between the look and the deed another process may have done it.
        if state == "missing" and not shown_only:
            state = "there already"
        yield f"{step.version:>4}  {step.name}: {state}"
    number = sum(not step.applied for step in steps)
    if shown_only:
        yield f"{plural(number, 'step')} missing"
    else:
        yield f"{plural(len(applied), 'step')} applied"
