"""The distributions of this checkout as the packaging tests see them: what is declared, built and installed."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from attrs import field, frozen
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ENTRY_POINT_GROUP = "omniq"


@frozen
class Distribution:
    """One distribution: a folder with a pyproject.toml of its own."""

    folder: Path
    project: dict[str, Any] = field(repr=False, eq=False)
    """The table ``[project]``."""

    @property
    def name(self) -> str:
        return str(self.project["name"])

    @property
    def package(self) -> str:
        """The name to import."""
        (folder,) = (self.folder / "src").glob("omniq*/")
        return folder.name

    @property
    def requirements(self) -> list[Requirement]:
        """What it needs, its extras included."""
        extras = self.project.get("optional-dependencies", {}).values()
        return [Requirement(text) for texts in (self.project.get("dependencies", []), *extras) for text in texts]


@frozen
class Built:
    """The two files that a release of a distribution has."""

    sdist: Path
    wheel: Path


def toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


DISTRIBUTIONS = [
    Distribution(path.parent, toml(path)["project"]) for path in sorted(ROOT.glob("omniq-*/pyproject.toml"))
]
CORE = next(distribution for distribution in DISTRIBUTIONS if distribution.name == "omniq-core")
BACKENDS = [distribution for distribution in DISTRIBUTIONS if distribution is not CORE]


def repository_files(under: Path = ROOT) -> list[Path]:
    """Return the files that belong to the repository: tracked, or new and not ignored."""
    # The checkout may belong to another user than the one that tests it.
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=under, capture_output=True, check=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := under / name).is_file()]


@frozen
class Environment:
    """A virtual environment of its own, with no way to anything that was not put into it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        return self.folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    @property
    def environ(self) -> dict[str, str]:
        """For processes of it."""
        return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OMNIQ"))}

    def run(self, *command: str | Path, where: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment.

        :param where: in which folder; None: away from the checkout.
        """
        return subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=where or self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def evaluate(self, program: str) -> str:
        """Return what a Python program prints."""
        done = self.run("python", "-c", program)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def make_environment(folder: Path, wheels: Iterable[Path], names: Iterable[str]) -> Environment:
    """Install wheels of ours, and link what they declare to need, from the environment that runs the tests. Offline.

    :param wheels: what to install.
    :param names: the names of their distributions.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    environment = Environment(folder)
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "install", "--quiet"]
    apart = ["--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*pip, *apart, *map(str, wheels)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = {distribution.name for distribution in DISTRIBUTIONS}
    for name in _needed(frozenset(names)) - ours:
        link_distribution(name, environment)
    return environment


def link_distribution(name: str, environment: Environment) -> None:
    """Link an installed distribution, from the environment that runs the tests, into another environment."""
    for entry in _top_level(name):
        (environment.packages / entry.name).symlink_to(entry)


def link_needed(requirements: Iterable[str], environment: Environment) -> None:
    """Link distributions, and what they need, unless they are there already."""
    names = frozenset(_normal(Requirement(text).name) for text in requirements)
    for name in sorted(_needed(names)):
        if not any((environment.packages / entry.name).exists() for entry in _top_level(name)):
            link_distribution(name, environment)


@functools.cache
def _needed(names: frozenset[str]) -> frozenset[str]:
    found: set[tuple[str, str]] = set()
    ahead = {(name, "") for name in names}
    while ahead:
        name, extra = ahead.pop()
        found.add((name, extra))
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                ahead |= {(_normal(requirement.name), wanted) for wanted in ("", *requirement.extras)} - found
    return frozenset(name for name, _ in found)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _top_level(name: str) -> list[Path]:
    distribution = metadata.distribution(name)
    names = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
    return [Path(str(distribution.locate_file(entry))) for entry in sorted(names)]
