"""Builds every distribution once, without the network, as a release does: an sdist, and from the sdist the wheel."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from build import ProjectBuilder
from pyproject_hooks import quiet_subprocess_runner

from tests.packaging.project import BACKENDS, CORE, DISTRIBUTIONS, Built, Distribution, Environment, make_environment


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.xdist_group("packaging"))  # one process builds for all of them


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for argument, distributions in {"distribution": DISTRIBUTIONS, "backend": BACKENDS}.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, distributions, ids=[distribution.name for distribution in distributions])


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Distribution], Built]:
    """Build a distribution, at its first call for each."""
    done: dict[str, Built] = {}

    def build(distribution: Distribution) -> Built:
        if distribution.name not in done:
            folder = tmp_path_factory.mktemp(distribution.name)
            sdist = Path(_builder(distribution.folder).build("sdist", folder / "dist"))
            with tarfile.open(sdist) as archive:
                # Python 3.11.0 to 3.11.3 know no filters; later ones warn without one.
                archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
                archive.extractall(folder)
            unpacked = folder / sdist.name.removesuffix(".tar.gz")
            done[distribution.name] = Built(sdist, Path(_builder(unpacked).build("wheel", folder / "dist")))
        return done[distribution.name]

    return build


def _builder(folder: Path) -> ProjectBuilder:
    return ProjectBuilder(folder, python_executable=sys.executable, runner=quiet_subprocess_runner)


@pytest.fixture(scope="session")
def environment(
    tmp_path_factory: pytest.TempPathFactory, build: Callable[[Distribution], Built]
) -> Callable[[Iterable[Distribution]], Environment]:
    """Make an environment with the core, other distributions and what they declare to need; one for each choice."""
    made: dict[frozenset[str], Environment] = {}

    def environment(others: Iterable[Distribution]) -> Environment:
        chosen = [CORE, *others]
        names = frozenset(distribution.name for distribution in chosen)
        if names not in made:
            wheels = [build(distribution).wheel for distribution in chosen]
            made[names] = make_environment(tmp_path_factory.mktemp("environment"), wheels, names)
        return made[names]

    return environment
