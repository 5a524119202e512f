"""Named points at which a process can be made to die, so that tests can show what survives it.

``OMNIQ_FAILPOINT=worker.after-claim`` makes the process kill itself (SIGKILL: nothing is flushed, no handler runs) at
the first pass of that point; ``worker.after-claim:3`` at the third. Unset, a point costs one comparison.
"""

from __future__ import annotations

import functools
import os
import signal

__all__ = ["failpoint"]


class _Armed:
    def __init__(self, setting: str) -> None:
        self.name, _, count = setting.partition(":")
        self.left = int(count or 1)


@functools.cache
def _armed() -> _Armed | None:
    setting = os.environ.get("OMNIQ_FAILPOINT")
    return _Armed(setting) if setting else None


def failpoint(name: str) -> None:
    """Die here if the environment says so."""
    armed = _armed()
    if armed is not None and armed.name == name:
        armed.left -= 1
        if armed.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
