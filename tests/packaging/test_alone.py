"""Each distribution is whole with the core beside it: its own tests find all that they need, and no other of ours."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable

import pytest

from tests.packaging.project import ROOT, Distribution, Environment, link_needed, toml

MakeEnvironment = Callable[[Iterable[Distribution]], Environment]

RUN: dict[str, list[str]] = {
    "omniq-local": ["tests/local/test_sqlite_rows.py"],
    "omniq-nats": ["tests/nats/test_times.py"],
    "omniq-postgres": ["tests/postgres/test_callers.py"],
    "omniq-redis": ["tests/redis/test_redis_records.py"],
}
"""Some tests that are run, as an import may wait until then; to run all of them twice would take too long."""


def run_tests(environment: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests of the checkout with what an environment has installed."""
    return environment.run(
        "python", "-m", "pytest", "--rootdir", ROOT, "-p", "no:cacheprovider", "-n", "0", "-q", *arguments, where=ROOT
    )


@pytest.fixture
def alone(environment: MakeEnvironment, backend: Distribution) -> Environment:
    """Give an environment with the core, one backend, and what tests need."""
    made = environment([backend])
    link_needed(toml(ROOT / "pyproject.toml")["dependency-groups"]["test"], made)
    return made


def test_the_tests_of_a_backend_need_no_other_backend(alone: Environment, backend: Distribution) -> None:
    folder = f"tests/{backend.name.removeprefix('omniq-')}"

    collected = run_tests(alone, "--collect-only", folder)
    done = run_tests(alone, *RUN[backend.name])

    assert collected.returncode == 0, collected.stdout
    assert done.returncode == 0, done.stdout
