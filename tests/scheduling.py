"""Which process of several runs which tests next."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]  # it has no types

__all__ = ["FromBothEnds"]


class FromBothEnds(LoadGroupScheduling):  # type: ignore[misc]  # which has no types
    """One half of the processes begins with the first tests, the other with the last.

    So tests that wait and tests that compute run at the same time, though those of one kind are neighbours.
    """

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        # All that a process was ever given is looked through whenever one of its tests ends.
        units = self.assigned_work[node]
        name = self._split_scope(self.registered_collections[node][item_index])
        if all(units[name].values()):
            del units[name]

    def _assign_work_unit(self, node: Any) -> None:
        name, unit = self.workqueue.popitem(last=int(node.gateway.id.removeprefix("gw")) % 2 == 1)
        self.assigned_work[node][name] = unit
        node.send_runtest_some([self._numbers[test] for test, is_complete in unit.items() if not is_complete])

    @functools.cached_property
    def _numbers(self) -> Mapping[str, int]:
        """The number of each test, the same in all processes."""
        assert self.collection is not None
        return {test: number for number, test in enumerate(self.collection)}
