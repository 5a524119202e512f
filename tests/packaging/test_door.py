"""The one door: the Makefile on machines unlike this one, and the script that decides whether a change lands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.project import ROOT

TARGETS = {
    "demo",
    "test",
    "test-long",
    "test-all",
    "test-all-pythons",
    "release-check",
    "lint",
    "types",
    "docs",
    "bench",
    "size",
    "wheels",
    "clean",
    "format",
}
PARTS = ["lint", "types", "test-all", "test-all-pythons"]
"""What .ci/run runs, in this order."""


def quiet_environment() -> dict[str, str]:
    # The make that runs these tests speaks to its children through the environment; these are not its children.
    spoken = ("MAKE", "MFLAGS", "PYTHON", "VENV", "PYTEST_ARGS")
    return {name: value for name, value in os.environ.items() if not name.startswith(spoken)}


def make(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = quiet_environment()
    if path is not None:
        environ["PATH"] = str(path)
    program = shutil.which("make")
    assert program is not None
    return subprocess.run([program, "-C", ROOT, *arguments], env=environ, capture_output=True, text=True, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine that has a shell and nothing else: a folder to use as the whole path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "echo", "touch"):
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    return folder


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


WORKS = f'exec "{sys.executable}" "$@"'
FAILS = "echo 'command not found' >&2; exit 127"
IS_OLD = "exit 1"


def test_make_alone_lists_every_target() -> None:
    listed = make()

    assert listed.returncode == 0
    assert set(re.findall(r"^  make ([\w-]+) ", listed.stdout, re.MULTILINE)) >= TARGETS


@pytest.mark.parametrize(
    ("commands", "chosen"),
    [
        ({"python3.13": WORKS, "python3": WORKS}, "python3.13"),
        ({"python3.13": FAILS, "python3.12": FAILS, "python3.11": WORKS}, "python3.11"),
        ({"python3.13": FAILS, "python3": WORKS}, "python3"),
        ({"python3.12": IS_OLD, "python3.11": FAILS, "python3": WORKS}, "python3"),
    ],
)
def test_the_first_interpreter_that_really_runs_is_taken(machine: Path, commands: dict[str, str], chosen: str) -> None:
    for name, script in commands.items():
        put(machine, name, script)

    planned = make("--dry-run", "demo", "VENV=.venv-none", path=machine)

    assert planned.returncode == 0, planned.stderr
    assert f'"{chosen}" -m venv ".venv-none"' in planned.stdout


@pytest.mark.parametrize("commands", [{}, {"python3": IS_OLD, "python3.11": FAILS}])
def test_without_a_usable_interpreter_it_says_what_is_needed(machine: Path, commands: dict[str, str]) -> None:
    for name, script in commands.items():
        put(machine, name, script)

    failed = make("demo", "VENV=.venv-none", path=machine)

    assert failed.returncode != 0
    assert "OmniQ needs Python 3.11 or later with pip and venv" in failed.stderr
    assert not (ROOT / ".venv-none").exists()


def test_an_environment_of_another_interpreter_is_not_used_in_silence(tmp_path: Path) -> None:
    put(tmp_path, "python", "echo 3.9")
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    put(environment / "bin", "python", "echo 3.11")

    failed = make("test", f"VENV={environment}", f"PYTHON={tmp_path / 'python'}")

    assert failed.returncode != 0
    assert "was made with another Python" in failed.stderr


def test_with_uv_on_the_path_the_same_packages_come_by_it(machine: Path) -> None:
    put(machine, "python3.11", WORKS)
    put(machine, "uv", "exit 0")

    planned = make("--dry-run", "test", "VENV=.venv-none", path=machine)

    assert 'uv venv --quiet --python "python3.11" ".venv-none"' in planned.stdout
    assert "-m pip" not in planned.stdout
    assert "--editable ./omniq-core" in planned.stdout
    assert "--group test" in planned.stdout


@pytest.mark.parametrize("broken", [[], *([part] for part in PARTS), PARTS])
def test_ci_runs_all_parts_and_fails_if_one_of_them_does(tmp_path: Path, broken: list[str]) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    rules = [f"{part}:\n\t@echo ran {part}; exit {int(part in broken)}\n" for part in PARTS]
    (tmp_path / "Makefile").write_text("".join(rules))
    put(tmp_path, "id", "echo 1000")  # nothing that this machine lacks is installed

    done = subprocess.run(
        ["bash", ".ci/run"],
        cwd=tmp_path,
        env=quiet_environment() | {"CI": "true", "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert [line for line in done.stdout.splitlines() if line.startswith("ran")] == [f"ran {part}" for part in PARTS]
    assert (done.returncode != 0) == bool(broken)


@pytest.mark.parametrize("apt", ["exit 0", "exit 100"], ids=["installed", "without a network"])
def test_ci_installs_the_servers_that_the_package_index_does_not_have(machine: Path, tmp_path: Path, apt: str) -> None:
    for name in ("bash", "dirname"):
        (machine / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    put(machine, "id", "echo 0")
    put(machine, "apt-get", f'echo "apt-get $*"; echo "runlevel $RUNLEVEL" >&2; {apt}')
    put(machine, "make", 'echo "ran $2"')
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")

    done = subprocess.run(
        ["bash", tmp_path / ".ci" / "run"], env={"PATH": str(machine)}, capture_output=True, text=True, check=False
    )

    assert [line for line in done.stdout.splitlines() if line.startswith("ran")] == [f"ran {part}" for part in PARTS]
    assert done.returncode == 0
    asked = re.search(r"^==> installing (.*)$", done.stdout, re.MULTILINE)
    assert asked is not None
    assert {"redis-server", "faketime"} <= set(asked[1].split())  # pgbouncer is looked for outside of the path, too
    if apt == "exit 0":
        assert "runlevel 1" in done.stderr  # what is installed is not started
    else:
        assert "could not install them" in done.stderr
