"""When a failed task runs again. Policies are pure values: from attempt and error to a delay, or to None for never."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from datetime import timedelta
from typing import ClassVar

from attrs import field, frozen

from omniq.storage.durations import LONGEST, duration

__all__ = ["Exponential", "Fixed", "Linear", "RetryPolicy"]


class RetryPolicy(ABC):
    """Decides how long a failed task waits before it runs again.

    A policy is an attrs class of plain fields, registered by :attr:`kind` through the hook ``omniq_retry_policies``, so
    that it can travel with a task. ``max_retries`` bounds the attempts; the policy may stop earlier.
    """

    kind: ClassVar[str]
    """The name under which the policy is stored with a task."""

    @abstractmethod
    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        """Return the seconds to wait before the next attempt.

        :param attempt: the attempt that just failed, counted from 1.
        :param error: what it raised.
        :return: seconds, or None to fail the task now.
        """


def _delay(value: float | timedelta) -> float:
    return duration(value, "delay")


def _step(value: float | timedelta | None) -> float | None:
    return None if value is None else duration(value, "step")


def _max_delay(value: float | timedelta | None) -> float | None:
    return None if value is None else duration(value, "max_delay")


def _share(instance: object, attribute: object, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"jitter must be between 0 and 1 (a share of the delay), not {value!r}")


def _factor(instance: object, attribute: object, value: float) -> None:
    if not 1 <= value < math.inf:
        raise ValueError(f"factor must be a finite number, 1 or more, not {value!r}")


def _spread(delay: float, max_delay: float | None, jitter: float) -> float:
    # Without a cap a wait could leave what a timestamp holds.
    delay = min(delay, LONGEST if max_delay is None else max_delay)
    # Only downwards: retries that reached the cap still spread, and none waits longer than the cap.
    return delay * (1 - jitter * random.random())


@frozen
class Exponential(RetryPolicy):
    """``delay × factor^(attempt − 1)`` seconds, at most ``max_delay``, less a random part of up to ``jitter`` of it.

    :param delay: seconds (or a timedelta) before the first retry.
    :param factor: by how much each wait is longer than the one before it, 1 or more.
    :param max_delay: the longest wait, in seconds (or a timedelta); None: a hundred years.
    :param jitter: 0…1, the share of a wait that is left to chance, so that tasks that failed together do not return
        together.
    """

    kind: ClassVar[str] = "exponential"

    delay: float = field(default=1.0, converter=_delay)
    factor: float = field(default=2.0, validator=_factor)
    max_delay: float | None = field(default=300.0, converter=_max_delay)
    jitter: float = field(default=0.1, validator=_share)

    def next_delay(self, attempt: int, error: BaseException) -> float:
        try:
            delay = self.delay * self.factor ** (attempt - 1)
        except OverflowError:
            delay = math.inf if self.delay else 0.0
        return _spread(delay, self.max_delay, self.jitter)


@frozen
class Linear(RetryPolicy):
    """``delay + step × (attempt − 1)`` seconds, at most ``max_delay``, less a random part of up to ``jitter`` of it.

    :param delay: seconds (or a timedelta) before the first retry.
    :param step: by how many seconds each wait is longer than the one before it; None: by ``delay``.
    :param max_delay: the longest wait, in seconds (or a timedelta); None: a hundred years.
    :param jitter: 0…1, the share of a wait that is left to chance.
    """

    kind: ClassVar[str] = "linear"

    delay: float = field(default=1.0, converter=_delay)
    step: float | None = field(default=None, converter=_step)
    max_delay: float | None = field(default=300.0, converter=_max_delay)
    jitter: float = field(default=0.1, validator=_share)

    def next_delay(self, attempt: int, error: BaseException) -> float:
        step = self.delay if self.step is None else self.step
        return _spread(self.delay + step * (attempt - 1), self.max_delay, self.jitter)


@frozen
class Fixed(RetryPolicy):
    """The same wait before every retry.

    :param delay: seconds (or a timedelta).
    :param jitter: 0…1, the share of the wait that is left to chance.
    """

    kind: ClassVar[str] = "fixed"

    delay: float = field(default=1.0, converter=_delay)
    jitter: float = field(default=0.0, validator=_share)

    def next_delay(self, attempt: int, error: BaseException) -> float:
        return _spread(self.delay, None, self.jitter)
