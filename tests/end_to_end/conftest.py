"""What the tests of whole programs share: the stores of the fault tests."""

from __future__ import annotations

from tests.faults.conftest import servers, stage

__all__ = ["servers", "stage"]
