"""The virtual environments that peers run in: one each, made at the first need and kept in ``.bench``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.peers import ENVIRONMENTS

__all__ = ["PeerMissing", "python_for"]

FOLDER = Path(__file__).parents[2] / ".bench"
NEWEST = 15
"""The last minor version of Python 3 that is looked for."""


class PeerMissing(Exception):
    """A peer cannot be installed; the text says why."""


def python_for(key: str) -> Path:
    """Return the interpreter of a peer's environment; make the environment if it is not there.

    :param key: of :data:`ENVIRONMENTS`.
    :raises PeerMissing: if it cannot be installed.
    """
    environment = ENVIRONMENTS[key]
    wanted = " ".join(environment.requirements)
    base, version = _interpreter(environment.python)
    folder = FOLDER / f"{key}-{version}"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"making an environment for {wanted} …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    install: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "1",
    ]
    commands: list[list[str | Path]] = [[base, "-m", "venv", folder], [*install, *environment.requirements]]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise PeerMissing(f"{wanted} cannot be installed: {_reason(error)}") from error
    done.write_text(wanted)
    return python


def _interpreter(oldest: tuple[int, int]) -> tuple[Path, str]:
    here = sys.version_info[:2]
    if here >= oldest:
        return Path(sys.executable), f"{here[0]}.{here[1]}"
    for minor in range(oldest[1], NEWEST + 1):
        for python in _candidates(f"3.{minor}"):
            # Version managers put commands on the path that may fail when run.
            found = subprocess.run([python, "-c", "import venv, ensurepip"], check=False, capture_output=True)
            if found.returncode == 0:
                return python, f"3.{minor}"
    raise PeerMissing(f"it needs Python {oldest[0]}.{oldest[1]} or later, and there is none")


def _candidates(version: str) -> Iterator[Path]:
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    if root := os.environ.get("PYENV_ROOT"):
        yield from Path(root, "versions").glob(f"{version}*/bin/python{version}")


def _reason(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    lines = [line for line in str(text).splitlines() if line.startswith("ERROR")] or [str(error)]
    return lines[-1]
