"""The virtual environments that peers run in: one each, made at the first need and kept in ``.bench``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["PeerMissing", "python_for"]

FOLDER = Path(__file__).parents[2] / ".bench"


class PeerMissing(Exception):
    """A peer cannot be installed; the text says why."""


def python_for(name: str, requirement: str) -> Path:
    """Give the interpreter of a peer's environment; make the environment if it is not there.

    :param name: the peer's name.
    :param requirement: what to install.
    :raises PeerMissing: if it cannot be installed.
    """
    folder = FOLDER / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.exists() and done.read_text() == requirement:
        return python
    print(f"making an environment for {requirement} …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.create(folder, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", requirement],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise PeerMissing(f"{requirement} cannot be installed: {_reason(error)}") from error
    done.write_text(requirement)
    return python


def _reason(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    lines = [line for line in str(text).splitlines() if line.startswith("ERROR")] or [str(error)]
    return lines[-1]
