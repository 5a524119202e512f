"""Looks from another thread whether an event loop still runs what is handed to it, and where it is if it does not."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable

from omniq.storage.escaping import Lines, get_logger

__all__ = ["LoopMonitor"]

_log = get_logger("omniq.worker")


class LoopMonitor:
    """Watches a loop. To be made on its thread.

    :param loop: the loop.
    :param seconds: after so long without a response the loop is reported as blocked.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float = math.inf) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._seconds = seconds
        self._asked: float | None = None
        self._reported = False

    def look(self) -> None:
        """Warn if the loop is blocked: once, until it responds again. To be called now and then, from one thread."""
        now = time.monotonic()
        if self._asked is None:
            self._asked, self._reported = now, False
            self._call(self._respond)
        elif now - self._asked >= self._seconds and not self._reported:
            self._reported = True
            _log.warning(
                "the event loop has been blocked for %.0f s: nothing else runs on it, and nothing is claimed. "
                "Code that waits or computes belongs in a plain function, or behind asyncio.to_thread. "
                "The loop is here:\n%s",
                now - self._asked,
                Lines(self.where()),
            )

    def _respond(self) -> None:
        self._asked = None

    def responds(self, within: float) -> bool:
        """Wait for the loop to respond; a closed one does."""
        response = threading.Event()
        return not self._call(response.set) or response.wait(within)

    def _call(self, callback: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return False
        return True

    def where(self) -> str:
        """Return the stack of the loop's thread, as text."""
        frame = sys._current_frames().get(self._thread)
        return "nowhere" if frame is None else "".join(traceback.format_stack(frame)).rstrip()
