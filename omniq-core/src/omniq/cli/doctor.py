"""``omniq doctor``: what a store has to say about its own health."""

from __future__ import annotations

import argparse
import asyncio
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omniq._client.limits import unequal_limits
from omniq._client.queue import TaskQueue
from omniq.cli.app import load_queue_or_url, store_of
from omniq.cli.arguments import add_json, add_store, configuring
from omniq.cli.failures import FAILED
from omniq.cli.terminal import Screen, display_width, padded
from omniq.cli.wording import plural
from omniq.errors import StorageError
from omniq.storage import Finding, Severity, Storage
from omniq.storage.escaping import printable

__all__ = ["as_json", "as_lines", "configure", "diagnose", "run"]

CHECK_SECONDS = 30.0
"""For how long records are read to find one that cannot be."""
MOST_RECORDS = 100
"""How many of them are shown."""
_MARKS: Mapping[Severity, str] = {Severity.OK: "✓", Severity.WARNING: "!", Severity.ERROR: "✗"}
_STYLES: Mapping[Severity, str] = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.ERROR: "red"}


configure = configuring(
    "Check a store for problems: its version, its durability, its limits, and records that cannot be\n"
    "read. Exit code 1 if something is an error, or if the store cannot be reached.",
    "omniq doctor sqlite:///jobs.db\nomniq doctor shop.tasks:queue --json",
    add_store,
    add_json,
)


def run(options: argparse.Namespace) -> int:
    """Show the findings."""
    screen = Screen()
    with load_queue_or_url(options.app) as queue:
        try:
            findings = queue.run(diagnose(queue))
        except StorageError as error:
            if not options.json:
                raise
            # A program that watches a store wants to read that it is away in the same way as anything else.
            findings = [Finding(severity=Severity.ERROR, subject="connection", message=str(error))]
        screen.answer(options.json, lambda: as_json(findings, queue), lambda: as_lines(findings, queue, screen))
    return FAILED if any(finding.severity is Severity.ERROR for finding in findings) else 0


async def diagnose(queue: TaskQueue) -> list[Finding]:
    """Return what a store says about its health, and what cannot be read of it."""
    storage = await store_of(queue)
    unequal = [
        Finding(severity=Severity.WARNING, subject="limits", message=message)
        for message in await unequal_limits(queue, storage)
    ]
    return [*await storage.diagnose(), *unequal, *await _check(storage)]


async def _check(storage: Storage) -> list[Finding]:
    """Return what cannot be read."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            found = await storage.check(MOST_RECORDS)
    except StorageError as error:
        return [Finding(severity=Severity.ERROR, subject="records", message=str(error))]
    except TimeoutError:
        message = f"there are too many to look at each within {CHECK_SECONDS:g} s; none that cannot be read was found"
        return [Finding(severity=Severity.WARNING, subject="records", message=message)]
    if len(found) == MOST_RECORDS:
        message = f"these are the first {MOST_RECORDS} that cannot be read"
        return [*found, Finding(severity=Severity.WARNING, subject="records", message=message)]
    return found


def as_json(findings: Sequence[Finding], queue: TaskQueue) -> dict[str, Any]:
    """Return the findings as what ``--json`` prints."""
    return {"url": queue.url, "findings": findings}


def as_lines(findings: Sequence[Finding], queue: TaskQueue, screen: Screen) -> Iterator[str]:
    """Yield the findings as lines for people, and their number at the end."""
    yield screen.styled(queue.url, "bold")
    marks = _MARKS if screen.can_show("".join(_MARKS.values())) else {severity: severity.value for severity in Severity}
    mark_width = max(map(len, marks.values()))
    width = max((display_width(printable(finding.subject)) for finding in findings), default=0)
    for finding in findings:
        mark = screen.styled(f"{marks[finding.severity]:<{mark_width}}", _STYLES[finding.severity])
        first, *others = _wrapped(printable(finding.message), screen, mark_width + width + 3)
        yield f"{mark} {padded(printable(finding.subject), width)}  {first}"
        for line in others:
            yield " " * (mark_width + width + 3) + line
    counts = Counter(finding.severity for finding in findings)
    yield f"{plural(counts[Severity.ERROR], 'error')}, {plural(counts[Severity.WARNING], 'warning')}"


def _wrapped(text: str, screen: Screen, indent: int) -> list[str]:
    if not screen.is_terminal:
        return [text]
    return textwrap.wrap(text, max(screen.width - indent, 20), break_on_hyphens=False) or [""]
