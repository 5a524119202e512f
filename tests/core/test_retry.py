from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq import retry
from omniq._tasks.policies import decode_value, encode_value
from omniq.retry import Exponential, Fixed, Linear, RetryPolicy
from omniq.storage.durations import LONGEST

ERROR = ValueError("again")
POLICIES: list[type[RetryPolicy]] = [Exponential, Fixed, Linear]

attempts = st.integers(1, 100_000)
delays = st.floats(0, LONGEST)
caps = st.none() | delays
jitters = st.floats(0, 1)
factors = st.floats(1, 1e300)

exponentials = st.builds(Exponential, delay=delays, factor=factors, max_delay=caps, jitter=jitters)
linears = st.builds(Linear, delay=delays, step=st.none() | delays, max_delay=caps, jitter=jitters)
fixeds = st.builds(Fixed, delay=delays, jitter=jitters)
policies = st.one_of(exponentials, linears, fixeds)


def wait(policy: RetryPolicy, attempt: int) -> float:
    delay = policy.next_delay(attempt, ERROR)
    assert delay is not None
    return delay


@given(policies, attempts)
def test_no_wait_is_negative_endless_or_longer_than_a_timestamp_holds(policy: RetryPolicy, attempt: int) -> None:
    assert 0 <= wait(policy, attempt) <= LONGEST


@given(st.one_of(exponentials, linears), attempts)
def test_no_wait_is_longer_than_the_cap(policy: Exponential | Linear, attempt: int) -> None:
    assert wait(policy, attempt) <= (LONGEST if policy.max_delay is None else policy.max_delay)


@given(policies, attempts)
def test_jitter_takes_off_at_most_its_share(policy: RetryPolicy, attempt: int) -> None:
    assert isinstance(policy, Exponential | Linear | Fixed)
    whole = wait(attrs.evolve(policy, jitter=0.0), attempt)

    # Within what rounding may do to one multiplication.
    assert whole * (1 - policy.jitter) * (1 - 1e-12) <= wait(policy, attempt) <= whole


@given(exponentials, attempts)
def test_without_jitter_an_exponential_wait_never_shrinks(policy: Exponential, attempt: int) -> None:
    still = attrs.evolve(policy, jitter=0.0)

    assert wait(still, attempt) <= wait(still, attempt + 1)


def test_jitter_spreads_the_waits_of_tasks_that_failed_together() -> None:
    policy = Exponential(delay=600, max_delay=300, jitter=0.5)

    assert len({wait(policy, 1) for _ in range(20)}) > 1


def test_exponential_waits_multiply() -> None:
    policy = Exponential(delay=1, factor=3, max_delay=20, jitter=0)

    assert [wait(policy, attempt) for attempt in (1, 2, 3, 4, 5)] == [1, 3, 9, 20, 20]


def test_linear_waits_add_up_by_the_delay_unless_told_otherwise() -> None:
    assert [wait(Linear(delay=2, jitter=0), attempt) for attempt in (1, 2, 3)] == [2, 4, 6]
    assert [wait(Linear(delay=2, step=5, max_delay=8, jitter=0), attempt) for attempt in (1, 2, 3)] == [2, 7, 8]
    assert [wait(Linear(delay=2, step=0, jitter=0), attempt) for attempt in (1, 2, 3)] == [2, 2, 2]


def test_fixed_waits_are_alike() -> None:
    assert [wait(Fixed(delay=7), attempt) for attempt in (1, 2, 100)] == [7, 7, 7]


@pytest.mark.parametrize("attempt", [2_000, 10**9])
def test_growth_past_what_a_number_holds_waits_for_the_cap(attempt: int) -> None:
    assert wait(Exponential(delay=1, max_delay=60, jitter=0), attempt) == 60
    assert wait(Exponential(delay=1, max_delay=None, jitter=0), attempt) == LONGEST


@pytest.mark.parametrize("attempt", [1, 2, 2_000])
def test_a_delay_of_nothing_stays_nothing_however_often_it_is_multiplied(attempt: int) -> None:
    assert wait(Exponential(delay=0, jitter=0), attempt) == 0


@pytest.mark.parametrize("cls", POLICIES)
def test_a_timedelta_is_as_good_as_seconds(cls: Callable[..., RetryPolicy]) -> None:
    assert cls(delay=timedelta(minutes=1), jitter=0) == cls(delay=60, jitter=0)


@pytest.mark.parametrize("cls", POLICIES)
@pytest.mark.parametrize("jitter", [-0.1, 1.1, math.nan, math.inf])
def test_a_jitter_that_is_no_share_is_refused(cls: Callable[..., RetryPolicy], jitter: float) -> None:
    with pytest.raises(ValueError, match="jitter must be between 0 and 1"):
        cls(jitter=jitter)


@pytest.mark.parametrize("factor", [0.5, 0, -2, math.nan, math.inf])
def test_a_factor_that_shrinks_or_is_endless_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="factor must be a finite number, 1 or more"):
        Exponential(factor=factor)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (Exponential, "delay"),
        (Exponential, "max_delay"),
        (Linear, "delay"),
        (Linear, "step"),
        (Linear, "max_delay"),
        (Fixed, "delay"),
    ],
)
def test_a_duration_that_cannot_be_is_refused_by_its_name(cls: Callable[..., RetryPolicy], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be zero or more seconds"):
        cls(**{name: -1})
    with pytest.raises(TypeError, match=f"^{name} must be seconds"):
        cls(**{name: "soon"})


@pytest.mark.parametrize("policy", [Exponential(), Linear(), Fixed()])
def test_policies_are_values(policy: Any) -> None:
    assert policy == type(policy)()
    assert hash(policy) == hash(type(policy)())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        policy.delay = 3.0


@given(policies)
def test_a_policy_travels_as_text_and_comes_back_equal(policy: RetryPolicy) -> None:
    kinds = {cls.kind: cls for cls in POLICIES}

    assert decode_value(encode_value(policy), kinds.__getitem__) == policy


def test_each_policy_of_the_module_is_tested_here_and_has_a_kind_of_its_own() -> None:
    concrete = [value for name in retry.__all__ if not inspect.isabstract(value := getattr(retry, name))]

    assert concrete == POLICIES
    assert len({cls.kind for cls in POLICIES}) == len(POLICIES)
