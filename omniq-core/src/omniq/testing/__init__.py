"""What tests need: a queue on memory under a clock moved by hand, waiting for a condition, the kit for storages.

:func:`trial` puts an application's queue on memory; as pytest fixtures there are ``omniq_queue``, ``omniq_trial`` and
``omniq_clock``. :class:`StorageContract` (see :mod:`omniq.testing.contract`) checks a backend, and needs
``pip install 'omniq-core[testing]'``. Importing this package imports neither pytest nor hypothesis.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from omniq.testing.waiting import await_until, wait_until

if TYPE_CHECKING:
    from omniq.testing.clock import ManualClock
    from omniq.testing.contract import StorageContract, Stores, deviates, needs, new_task
    from omniq.testing.trials import Trial, trial

__all__ = [
    "ManualClock",
    "StorageContract",
    "Stores",
    "Trial",
    "await_until",
    "deviates",
    "needs",
    "new_task",
    "trial",
    "wait_until",
]

_HOMES = {
    **dict.fromkeys(("StorageContract", "Stores", "deviates", "needs", "new_task"), "omniq.testing.contract"),
    **dict.fromkeys(("Trial", "trial"), "omniq.testing.trials"),
    "ManualClock": "omniq.testing.clock",
}

# Assertions tell what differed only in modules that pytest rewrites, and it rewrites only what it is told of before the
# import. Where pytest is not loaded no test is going to run, so it need not be loaded for this.
if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite("omniq.testing.contract")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if error.name not in ("pytest", "hypothesis"):
            raise
        raise ImportError(f"omniq.testing.{name} needs {error.name}: pip install 'omniq-core[testing]'") from error
    return getattr(home, name)
