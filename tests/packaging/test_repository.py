"""What holds for the repository itself: nothing of one machine or registry in it, and its tools see all of it."""

from __future__ import annotations

import re

import pytest

from tests.packaging.project import DISTRIBUTIONS, ROOT, Distribution, repository_files, toml

# In pieces, so that this file does not hold what it looks for.
HOSTS = re.compile(
    "|".join(["py" + r"pi\.org", "python" + "hosted", "npm" + r"js\.org", "deb" + r"ian\.org"]), re.IGNORECASE
)
LOCK_FILES = {"uv.lock", "pylock.toml", "poetry.lock", "pdm.lock", "Pipfile.lock"}
TOOLS = toml(ROOT / "pyproject.toml")["tool"]


def test_no_file_names_the_host_of_a_package_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in repository_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if HOSTS.search(line)
    ]

    assert found == []


def test_no_lock_file_is_kept_as_each_line_of_one_names_a_host() -> None:
    assert [path for path in repository_files() if path.name in LOCK_FILES] == []


def test_the_tests_of_a_group_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """Else each of several processes builds all distributions, and starts the servers of all groups."""
    is_distributed = bool(getattr(request.config.option, "loadgroup", False))

    assert request.node.nodeid.endswith("@packaging") == is_distributed


def test_the_root_is_no_package() -> None:
    assert not {"project", "build-system"} & set(toml(ROOT / "pyproject.toml"))


def test_the_tools_look_after_every_distribution(distribution: Distribution) -> None:
    source = f"{distribution.folder.name}/src"

    assert source in TOOLS["mypy"]["mypy_path"]
    assert distribution.package in TOOLS["coverage"]["run"]["source_pkgs"]
    assert distribution.package in TOOLS["ruff"]["lint"]["isort"]["known-first-party"]
    assert distribution.package in TOOLS["importlinter"]["root_packages"]


def contract(name: str) -> dict[str, list[str]]:
    (found,) = [contract for contract in TOOLS["importlinter"]["contracts"] if contract["id"] == name]
    assert isinstance(found, dict)
    return found


def test_the_import_contracts_hold_for_every_backend() -> None:
    backends = {distribution.package for distribution in DISTRIBUTIONS} - {"omniq"}

    assert set(contract("core-knows-no-backend")["forbidden_modules"]) == backends
    assert set(contract("backends-know-the-contract")["source_modules"]) == backends
    assert set(contract("backends-apart")["modules"]) == backends
    # What one of them may import, all may.
    assert all(line.startswith("** -> ") for line in contract("backends-know-the-contract")["ignore_imports"])


def test_each_distribution_carries_the_licence(distribution: Distribution) -> None:
    assert (distribution.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("path", [".ci/run"])
def test_what_is_run_by_name_can_be_run(path: str) -> None:
    assert (ROOT / path).stat().st_mode & 0o111
