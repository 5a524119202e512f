"""``omniq import``: what ``omniq export`` wrote, into another store."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Mapping
from typing import BinaryIO

from omniq._client.moving import NotMoved, import_into
from omniq.cli.app import ask, open_queue
from omniq.cli.arguments import add_store, configuring, flag
from omniq.cli.failures import FAILED, complain
from omniq.cli.terminal import Screen
from omniq.cli.wording import plural
from omniq.storage.interchange import KINDS, is_end

__all__ = ["configure", "run", "told"]

LAST_LINE = 1000
"""Bytes at the end of a file that hold its last line."""
_WORDS = {"paused": "pause", "limit": "limit", "flow": "flow", "task": "task", "schedule": "schedule"}


configure = configuring(
    "Store what omniq export wrote, from stdin. What is there already stays as it is, so an import that was\n"
    "interrupted is repeated from its beginning.",
    "omniq import postgresql://db/shop < jobs.jsonl\nomniq import shop.tasks:queue --partial < cut-off.jsonl",
    add_store,
    flag("--partial", "take a file that was cut off: what stands in it is all that there is"),
)


def run(options: argparse.Namespace) -> int:
    """Read everything from stdin."""
    source = sys.stdin.buffer
    if not options.partial:
        _refuse_cut_off(source)
    with open_queue(options.app) as queue:
        moved = ask(queue, lambda storage: import_into(storage, source, complain, partial=options.partial))
    screen = Screen()
    screen.say(f"imported {told(moved.stored)}")
    if moved.present:
        screen.say(f"there already: {told(moved.present)}")
    if moved.refused:
        screen.say(f"not stored: {told(moved.refused)}")
    return FAILED if moved.refused else 0


def _refuse_cut_off(source: BinaryIO) -> None:
    """Refuse a file without its last line before anything of it is stored; a pipe tells that only at its end."""
    if not source.seekable():
        return
    here, end = source.tell(), source.seek(0, os.SEEK_END)
    source.seek(max(here, end - LAST_LINE))
    *_, last = [b"", *source.read().splitlines(keepends=True)]
    source.seek(here, io.SEEK_SET)
    if not is_end(last):
        raise NotMoved(
            "the file ends without its last line: the export was cut off, or is still going on. Export anew; with "
            "--partial what there is will do"
        )


def told(counts: Mapping[str, int]) -> str:
    """Return how many records of each kind, in words."""
    return ", ".join(plural(counts[kind], _WORDS[kind]) for kind in KINDS if counts.get(kind)) or "nothing"
