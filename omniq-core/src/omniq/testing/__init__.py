"""What tests of programs and of backends need: waiting for a condition, and the conformance kit for storages.

:class:`StorageContract` (see :mod:`omniq.testing.contract`) needs ``pip install 'omniq-core[testing]'``; the rest needs
nothing, and importing this package imports neither pytest nor hypothesis.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from omniq.testing.waiting import await_until, wait_until

if TYPE_CHECKING:
    from omniq.testing.contract import StorageContract, Stores, deviates, needs, new_task

__all__ = ["StorageContract", "Stores", "await_until", "deviates", "needs", "new_task", "wait_until"]

_OF_THE_KIT = frozenset({"StorageContract", "Stores", "deviates", "needs", "new_task"})

# Assertions tell what differed only in modules that pytest rewrites, and it rewrites only what it is told of before the
# import. Where pytest is not loaded no test is going to run, so it need not be loaded for this.
if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite("omniq.testing.contract")


def __getattr__(name: str) -> Any:
    if name not in _OF_THE_KIT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        kit = importlib.import_module("omniq.testing.contract")
    except ModuleNotFoundError as error:
        if error.name not in ("pytest", "hypothesis"):
            raise
        raise ImportError(f"omniq.testing.{name} needs {error.name}: pip install 'omniq-core[testing]'") from error
    return getattr(kit, name)
