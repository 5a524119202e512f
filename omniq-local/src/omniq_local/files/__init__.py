"""The file storage.

A call's way through these rooms: ``storage`` makes a job of it; ``folder`` runs the job under the store's lock
(``store_lock``), here and now or on a thread; the job is a function of ``producing``, ``claiming``, ``finishing``,
``managing``, ``scheduling``, ``reading`` or ``upkeep`` that talks to the ``transaction``; ``records`` are the tasks'
files, ``state_folders`` and ``queues`` the folders whose listings are the order; ``flows`` says what follows from the
ends of a flow's tasks; ``journal`` makes all that the change writes one step.
"""

from __future__ import annotations

from omniq.storage.posix import IS_POSIX

if not IS_POSIX:
    raise ImportError("the file storage needs a POSIX system, such as Linux or macOS; take sqlite:///… instead")

from omniq_local.files.storage import FileStorage

__all__ = ["FileStorage"]
