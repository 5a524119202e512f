"""Each distribution is whole with the core beside it: its own tests find all that they need, and no other of ours."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable

import pytest

from tests.packaging.project import BACKENDS, ROOT, Distribution, Environment, link_needed, toml

MakeEnvironment = Callable[[Iterable[Distribution]], Environment]

RUN = {
    "omniq-local": "test_sqlite_rows.py",
    "omniq-nats": "test_times.py",
    "omniq-postgres": "test_driver_adapters.py",
    "omniq-redis": "test_redis_records.py",
}
"""Tests that are run, as an import may wait until then; the others are only collected, to run them twice takes long."""


def run_tests(environment: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests of the checkout with what an environment has installed."""
    return environment.run(
        "python", "-m", "pytest", "--rootdir", ROOT, "-p", "no:cacheprovider", "-n", "0", "-q", *arguments, where=ROOT
    )


# Every day the one whose tests are collected the soonest, all others in the long run.
@pytest.fixture(
    params=[
        pytest.param(backend, id=backend.name, marks=[] if backend.name == "omniq-nats" else [pytest.mark.long])
        for backend in BACKENDS
    ]
)
def tested(request: pytest.FixtureRequest) -> Distribution:
    """Return a backend."""
    backend: Distribution = request.param
    return backend


@pytest.fixture
def alone(environment: MakeEnvironment, tested: Distribution) -> Environment:
    """Return an environment with the core, that backend, and what tests need."""
    made = environment([tested])
    link_needed(toml(ROOT / "pyproject.toml")["dependency-groups"]["test"], made)
    return made


def test_the_tests_of_a_backend_need_no_other_backend(alone: Environment, tested: Distribution) -> None:
    folder = f"tests/{tested.name.removeprefix('omniq-')}"

    done = run_tests(alone, folder, "-k", RUN[tested.name])

    assert done.returncode == 0, done.stdout
