"""Any sequence of operations, held against a model that is simple enough to be seen to be right."""

from __future__ import annotations

import os
from typing import Any, cast

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from omniq.testing.contract.base import Contract
from omniq.testing.contract.machine import StorageMachine
from omniq.testing.contract.stores import Stores

__all__ = ["ModelContract"]

EXAMPLES, STEPS = 50, 40


class ModelContract(Contract):
    """The model."""

    @pytest.fixture
    def model_examples(self) -> int:
        """Return the number of sequences; fewer are the first of them."""
        return EXAMPLES

    def test_any_sequence_of_operations_does_what_the_model_does(self, stores: Stores, model_examples: int) -> None:
        examples, steps = os.environ.get("OMNIQ_TESTING_EXAMPLES"), os.environ.get("OMNIQ_TESTING_STEPS")
        is_thorough = bool(examples or steps)
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        if is_thorough:
            # Minutes on a store that is not in memory: too long for everyday.
            phases.append(hypothesis.Phase.shrink)
        settings = hypothesis.settings(
            max_examples=int(examples or model_examples),
            stateful_step_count=int(steps or STEPS),
            deadline=None,
            derandomize=not is_thorough,
            phases=phases,
            database=None,
            print_blob=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        # Documented to take any factory, typed to take a class.
        run_state_machine_as_test(cast(Any, lambda: StorageMachine(stores)), settings=settings)
