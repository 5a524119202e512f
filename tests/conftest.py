"""What holds for all tests."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Generator

import hypothesis
import pytest

from omniq.storage import validation

# No time limit for an example: on a busy machine that is a test of the machine. A failure prints how to repeat it.
hypothesis.settings.register_profile("omniq", deadline=None, print_blob=True)
hypothesis.settings.load_profile("omniq")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector away from what the tests are held in: objects by the hundred thousand, which all stay.

    Looking through them again and again took a third of the time, and a second whenever a test has garbage collected.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_setup() -> None:
    """Begin each test as a process that has not logged any damaged record: it logs each once, and a thousand in all."""
    validation._logged.clear()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # The model of the conformance kit: some sequences of operations every day, more in the long run; as many as the kit
    # does by itself where OMNIQ_TESTING_EXAMPLES says so.
    if "model_examples" in metafunc.fixturenames:
        in_the_long_run = pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(600)])
        metafunc.parametrize("model_examples", [8, in_the_long_run])


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on an event loop of its own."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    asyncio.run(test(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
