"""What holds for all tests."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import inspect
from collections.abc import Generator
from typing import Any

import hypothesis
import pytest

from omniq.storage import corrupt_records
from omniq.testing.contract.actors import Actor
from tests.fork_server import Popen
from tests.repeating import short_and_long

# No time limit for an example: on a busy machine that is a test of the machine. A failure prints how to repeat it. The
# long run names its profile on the command line.
for profile, examples in (("daily", 25), ("long", 100)):
    hypothesis.settings.register_profile(profile, deadline=None, print_blob=True, max_examples=examples)
hypothesis.settings.load_profile("daily")
Actor.popen = Popen


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    if config.getvalue("dist") != "loadgroup":
        return None
    from tests.scheduling import FromBothEnds

    return FromBothEnds(config, log)


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


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, object, object]:
    """Import a module in one process after the other: the first compiles it, which costs as much as all the rest."""
    if not isinstance(collector, pytest.Module):
        return (yield)
    with collector.path.open() as module:
        fcntl.flock(module, fcntl.LOCK_EX)
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what may take longest, so that no process of several is alone with it in the end."""
    items.sort(key=lambda item: not any(map(item.get_closest_marker, ("timeout", "xdist_group"))))


def pytest_runtest_setup() -> None:
    """Begin each test as a process that has not logged any damaged record: it logs each once, and a thousand in all."""
    corrupt_records._logged.clear()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # The conformance kit: sequences of operations, and damaged records. As many sequences as the kit does by itself
    # where OMNIQ_TESTING_EXAMPLES says so.
    for name, numbers in (("model_examples", (8, 20)), ("most_damages", (50, 1000))):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, short_and_long(*numbers))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on an event loop of its own."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    asyncio.run(test(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
