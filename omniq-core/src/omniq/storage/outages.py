"""Logging of what fails again and again: a connection that is lost, a store that cannot be reached.

:class:`Outage` is the one mechanism for that, in the core and in every backend. Each try reports how it went; the log
shows when an outage begins, that it lasts, and when it is over, however often it is tried meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from omniq.errors import OmniQError

__all__ = ["QUIET_SECONDS", "REMINDER_SECONDS", "Outage", "error_text"]

QUIET_SECONDS = 10.0
"""The least time between two lines about one outage, and between the end of one and the report of the next."""
REMINDER_SECONDS = 60.0
"""After this time an outage is reported at ERROR, and again each time that it has passed."""


def error_text(error: BaseException | str) -> str:
    """Return what to log of an error: OmniQ's own speak for themselves, of others the class is named, too."""
    if isinstance(error, str | OmniQError):
        return str(error)
    text, name = str(error), type(error).__name__
    if not text:
        return name  # TimeoutError() has none
    return f"{name}: {text}"


class Outage:
    """Reports to the log that something cannot be done for a while. Callable from any thread.

    The first failure is logged at WARNING. Further ones are not, unless the error is another one and
    ``QUIET_SECONDS`` have passed; once the outage has lasted for ``REMINDER_SECONDS``, and each time that these have
    passed again, it is logged at ERROR. Its end is logged at INFO if its beginning was.

    :param log: the logger to write to.
    :param lost: what cannot be done, as a clause: ``"redis://host: the connection is lost"``.
    :param restored: what is logged at the end of the outage: ``"redis://host: connected again"``.
    :param clock: returns the time in seconds; only differences count.
    """

    def __init__(
        self, log: logging.Logger, lost: str, restored: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._lost = lost
        self._restored = restored
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._failures = 0
        self._told: str | None = None
        """The error that the log shows of this outage; None: nothing yet."""
        self._quiet_until = 0.0
        self._remind_at = 0.0

    @property
    def seconds(self) -> float:
        """For how many seconds it has lasted; 0: there is none."""
        with self._lock:
            return 0.0 if self._began is None else self._clock() - self._began

    @property
    def lasts(self) -> bool:
        """Whether it has lasted for so long that it is reported at ERROR."""
        return self.seconds >= REMINDER_SECONDS

    def failed(self, error: BaseException | str) -> None:
        """Report that a try failed.

        :param error: why.
        """
        text = error_text(error)
        with self._lock:
            now = self._clock()
            if self._began is None:
                self._began, self._failures, self._told = now, 0, None
                self._remind_at = now + REMINDER_SECONDS
            self._failures += 1
            reminds = now >= self._remind_at
            if not reminds and (text == self._told or now < self._quiet_until):
                return
            lasted, failures = now - self._began, self._failures
            self._told = text
            self._quiet_until = now + QUIET_SECONDS
            if reminds:
                self._remind_at = now + REMINDER_SECONDS
        level = logging.ERROR if reminds else logging.WARNING
        if failures == 1:
            self._log.log(level, "%s, trying again: %s", self._lost, text)
        else:
            self._log.log(level, "%s for %.0f s now (%d tries): %s", self._lost, lasted, failures, text)

    def succeeded(self) -> None:
        """Report that a try succeeded."""
        if not self._failures:  # by far the most frequent case costs no lock
            return
        with self._lock:
            now = self._clock()
            lasted = now - (now if self._began is None else self._began)
            self._began, self._failures = None, 0
            told, self._told = self._told, None
            if told is None:
                return
            self._quiet_until = now + QUIET_SECONDS
        self._log.info("%s after %.1f s", self._restored, lasted)
