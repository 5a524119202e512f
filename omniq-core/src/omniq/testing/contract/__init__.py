"""The conformance kit: what every storage must do, as tests that a storage's own tests inherit.

A distribution that brings a storage proves it with one class and one fixture::

    # tests/test_mystore.py
    from collections.abc import Iterator

    import pytest
    from omniq.testing import StorageContract


    class TestMyStorage(StorageContract):
        @pytest.fixture
        def storage_url(self, tmp_path) -> str:
            return f"mystore://{tmp_path}/jobs"

Run it with plain pytest (``pip install 'omniq-core[testing]'``); no plugin is needed and none disturbs. What to know:

- ``storage_url`` gives the URL of an empty store, another one for each test. The kit opens it as a queue does, through
  the installed plugins, so the distribution must be installed (editable will do). Every storage that is opened by this
  URL must reach the same store. For a server, give each test a namespace of its own (``?namespace=test-17``, at most 30
  characters) and remove it afterwards, with those that begin with its name and a hyphen: the kit opens some.
- Times are judged by the store's clock alone, and no test says how fast a storage must be.
- A storage without ``Capability.SHARED_BETWEEN_PROCESSES`` or ``Capability.DURABLE`` is not asked what only one with
  them can promise; such tests pass and record that as a property (``--junit-xml``).
- Optional fixtures ``break_store`` and ``mend_store``, ``count_requests``, ``count_records``, ``count_syncs`` return
  functions that give the kit what it needs from a store to see raw errors, needless requests, leftovers and what is
  acknowledged before it is on the disk (``outages.py``, ``costs.py``).
- An optional fixture ``spoil`` returns an object that reads and writes single records behind the storage's back
  (:class:`Spoil`): the kit damages them in every way that their format allows, and holds that each harms nothing but
  itself (``spoiling.py``).
- A standard test is inherited, not edited. Replacing one is an error unless it says why::

      @deviates("this store keeps results for whole seconds only")
      async def test_results_whose_time_is_over_are_pruned(self, store: Storage) -> None: ...

- Tests of your own in the class may be coroutines and use the fixtures ``store`` (open) and ``stores`` (opens more).
- The model-based test does 50 times up to 40 steps, the same ones each time; a fixture ``model_examples`` of your own
  returns another number of times. ``OMNIQ_TESTING_EXAMPLES`` and ``OMNIQ_TESTING_STEPS`` set other numbers, too; with
  either of them the steps differ each time, and those that lead to a failure are cut down to the fewest. A fixture
  ``most_damages`` returns how many records a test of ``spoiling.py`` damages at most, else 1000.
"""

from __future__ import annotations

from omniq.testing.contract.adopting import AdoptContract
from omniq.testing.contract.base import Contract, deviates, needs
from omniq.testing.contract.claiming import ClaimContract
from omniq.testing.contract.controlling import ControlContract
from omniq.testing.contract.costs import CostContract, SyncContract
from omniq.testing.contract.enqueueing import EnqueueContract
from omniq.testing.contract.finishing import FinishContract
from omniq.testing.contract.flows import FlowContract
from omniq.testing.contract.history import HistoryContract
from omniq.testing.contract.leasing import LeaseContract
from omniq.testing.contract.limits import LimitContract
from omniq.testing.contract.maintenance import MaintenanceContract
from omniq.testing.contract.modelling import ModelContract
from omniq.testing.contract.outages import OutageContract
from omniq.testing.contract.processes import ProcessContract
from omniq.testing.contract.racing import RaceContract
from omniq.testing.contract.reading import ReadContract
from omniq.testing.contract.scheduling import ScheduleContract
from omniq.testing.contract.spoiling import Spoil, SpoilContract
from omniq.testing.contract.stalling import StallContract
from omniq.testing.contract.steps import new_schedule, new_task
from omniq.testing.contract.stores import Stores
from omniq.testing.contract.waiting import WaitContract

__all__ = ["Contract", "Spoil", "StorageContract", "Stores", "deviates", "needs", "new_schedule", "new_task"]


class StorageContract(
    EnqueueContract,
    ClaimContract,
    FinishContract,
    LeaseContract,
    HistoryContract,
    WaitContract,
    ReadContract,
    ControlContract,
    ScheduleContract,
    MaintenanceContract,
    FlowContract,
    AdoptContract,
    LimitContract,
    CostContract,
    SyncContract,
    OutageContract,
    SpoilContract,
    RaceContract,
    ProcessContract,
    StallContract,
    ModelContract,
):
    """Everything that a storage must do. Subclass it and give the fixture ``storage_url``."""
