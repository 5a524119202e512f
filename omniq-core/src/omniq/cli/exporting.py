"""``omniq export``: all that a store holds, as lines of JSON."""

from __future__ import annotations

import argparse
import sys

from omniq._client.moving import export_from
from omniq.cli.app import ask, open_queue
from omniq.cli.arguments import add_store, configuring, flag
from omniq.cli.failures import FAILED, complain, note
from omniq.cli.importing import told

__all__ = ["configure", "run"]


configure = configuring(
    "Write all tasks, flows, schedules, limits and pauses of a store, for omniq import. Stop producers and\n"
    "workers first: what changes meanwhile may be in the file or not.",
    "omniq export sqlite:///jobs.db > jobs.jsonl\n"
    "omniq export shop.tasks:queue --as-ready > jobs.jsonl\n"
    "omniq export sqlite:///jobs.db | omniq import postgresql://db/shop",
    add_store,
    flag(
        "--as-ready",
        "write tasks that dead workers left running as ready, to be run again; refused while workers live",
    ),
)


def run(options: argparse.Namespace) -> int:
    """Write everything to stdout."""
    with open_queue(options.app) as queue:
        moved = ask(
            queue,
            lambda storage: export_from(storage, queue.url, sys.stdout.write, complain, as_ready=options.as_ready),
        )
    sys.stdout.flush()
    note(f"exported {told(moved.stored)}")
    return FAILED if moved.refused else 0
