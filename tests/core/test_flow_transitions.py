"""What becomes of flows where each step moves one task, so that everything falls between the steps of what follows."""

from __future__ import annotations

import random

import pytest

from omniq.plugins import default_plugins
from omniq.storage import flow_transitions, transitions
from omniq.storage.urls import parse_url
from omniq.testing.contract.flow_driver import FlowDriver


@pytest.mark.parametrize("share", range(4))
async def test_random_flows_come_to_their_ends_however_small_the_steps(
    share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_transitions, "SETTLED_AT_ONCE", 1)
    monkeypatch.setattr(transitions, "SETTLED", 1)
    # And each step looks whether the flow hangs: none does, so that no gate may break of it.
    monkeypatch.setattr(flow_transitions, "AUDIT_SECONDS", 0.0 if share % 2 else 300.0)
    store = default_plugins().open_storage(parse_url("memory://"))
    await store.open()
    try:
        for seed in range(50):
            await FlowDriver(store, random.Random(1000 * share + seed), step=1).run()
    finally:
        await store.close()
