"""Numbers that are small every day and large in the long run."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["short_and_long"]


def short_and_long(short: int, long: int) -> list[Any]:
    """Return the values of a parameter that says how often, or of how many, something is tried.

    :param short: every day; left out where the long run is made, which does all of it, too.
    :param long: in the long run.
    """
    return [
        pytest.param(short, marks=pytest.mark.short),
        pytest.param(long, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ]
