"""A pipe between a parent and its worker processes, so that none outlives a parent that was killed.

The parent holds the writing end and never writes. However it dies, the kernel closes that end; the children read the
end of the stream and stop as they would on SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from omniq.storage.escaping import get_logger

__all__ = ["ParentWatch", "stop_when_parent_ends"]

_log = get_logger("omniq.supervisor")


class ParentWatch:
    """The parent's side."""

    def __init__(self) -> None:
        self.child_end, self._parent_end = os.pipe()

    def close(self) -> None:
        """Free both ends: children that still run now stop."""
        os.close(self.child_end)
        os.close(self._parent_end)


def stop_when_parent_ends(child_end: int, *, within: float) -> None:
    """Send this process SIGTERM when the parent has ended; the child's side.

    :param child_end: the file descriptor that the parent passed on.
    :param within: seconds after which the process is killed if it has not stopped.
    :raises OSError: if it is no file descriptor.
    """
    os.set_inheritable(child_end, False)
    threading.Thread(target=_watch, args=(child_end, within), name="omniq-parent-watch", daemon=True).start()


def _watch(child_end: int, within: float) -> None:
    while os.read(child_end, 1):
        pass
    _log.warning("the process that started this one has ended; stopping")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(within)
    _log.error("this process does not stop; killing it")
    os.kill(os.getpid(), signal.SIGKILL)
