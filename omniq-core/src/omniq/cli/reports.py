"""What the worker processes of ``omniq worker --processes N --http`` tell their parent, which answers for all.

Each has a pipe and writes a line to it every second and at its end. What a process that was killed had counted stays in
the sum, but for its last second.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable

from attrs import define, field

from omniq._worker.metrics import Totals, added, from_lines, to_lines

__all__ = ["Reporter", "Reports"]

EVERY = 1.0
"""Seconds between two lines."""
SILENT = 10.0
"""Seconds without a line after which a process does not count as ready: its loop may go on, but it does not."""


@define
class _Child:
    totals: Totals = field(factory=dict)
    reason: str | None = "it has not begun"
    heard_at: float = field(factory=time.monotonic)


class Reports:
    """The parent's side.

    :param processes: how many processes there should be.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._children: dict[int, _Child] = {}
        self._gone: Totals = {}

    def open(self) -> int:
        """Make a pipe for a process that is about to start.

        :return: its end; to be closed here once the process has it.
        """
        ours, theirs = os.pipe()
        threading.Thread(target=self._read, args=(ours,), name="omniq-reports", daemon=True).start()
        return theirs

    def totals(self) -> Totals:
        """Return the sum of all processes, those that have ended included."""
        with self._lock:
            return added([self._gone, *(child.totals for child in self._children.values())])

    def alive(self) -> int:
        """Return how many processes there are."""
        with self._lock:
            return len(self._children)

    def reason(self) -> str | None:
        """Return why not all of the processes work; None if they do."""
        now = time.monotonic()
        with self._lock:
            missing = self._processes - len(self._children)
            reasons = [child.reason for child in self._children.values() if child.reason is not None]
            silent = sum(now - child.heard_at > SILENT for child in self._children.values())
        if missing > 0:
            return f"{missing} of {self._processes} worker processes do not run"
        if silent:
            return f"{silent} of {self._processes} worker processes do not answer"
        return f"{len(reasons)} of {self._processes} worker processes: {reasons[0]}" if reasons else None

    def _read(self, end: int) -> None:
        child = _Child()
        with self._lock:
            self._children[end] = child
        with os.fdopen(end, encoding="utf-8") as lines:
            try:
                for line in lines:
                    told = json.loads(line)
                    with self._lock:
                        child.totals = from_lines(told["rows"])
                        child.reason = told["reason"]
                        child.heard_at = time.monotonic()
            except ValueError:
                pass  # the last line of one that was killed
            with self._lock:
                self._gone = added([self._gone, self._children.pop(end).totals])


class Reporter:
    """The side of a worker process.

    :param end: its end of the pipe.
    :param totals: returns what it has counted.
    :param reason: returns why it does not work; None if it does.
    """

    def __init__(self, end: int, totals: Callable[[], Totals], reason: Callable[[], str | None]) -> None:
        os.set_inheritable(end, False)
        self._pipe = os.fdopen(end, "w", encoding="utf-8", buffering=1)
        self._totals, self._reason = totals, reason
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell_again_and_again, name="omniq-reporter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell a last time."""
        self._ended.set()
        self._thread.join(EVERY)

    def _tell_again_and_again(self) -> None:
        try:
            while not self._ended.wait(EVERY):
                self._tell()
            self._tell()
        except OSError:
            return  # the parent has ended

    def _tell(self) -> None:
        self._pipe.write(json.dumps({"rows": to_lines(self._totals()), "reason": self._reason()}) + "\n")
