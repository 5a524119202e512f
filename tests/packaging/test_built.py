"""What a release consists of: each distribution's sdist and wheel."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from configparser import ConfigParser
from email.message import Message
from email.parser import BytesParser

import pytest
from packaging.requirements import Requirement

from tests.packaging.project import CORE, ROOT, Built, Distribution, repository_files

Build = Callable[[Distribution], Built]


def wheel_files(built: Built) -> dict[str, bytes]:
    with zipfile.ZipFile(built.wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sdist_files(built: Built) -> set[str]:
    with tarfile.open(built.sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def wheel_metadata(built: Built, file: str = "METADATA") -> Message:
    (content,) = [content for name, content in wheel_files(built).items() if name.endswith(f".dist-info/{file}")]
    return BytesParser().parsebytes(content)


def sources(distribution: Distribution) -> set[str]:
    """Return every file of the repository that belongs to the package: code, py.typed, SQL, Lua."""
    folder = distribution.folder / "src"
    return {path.relative_to(folder).as_posix() for path in repository_files(folder)}


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(build: Build, distribution: Distribution) -> None:
    packed = {name for name in wheel_files(build(distribution)) if ".dist-info/" not in name}

    assert packed == sources(distribution)
    assert f"{distribution.package}/py.typed" in packed


def test_an_sdist_holds_what_a_wheel_is_built_from_and_no_tests(build: Build, distribution: Distribution) -> None:
    packed = sdist_files(build(distribution))

    assert {f"src/{name}" for name in sources(distribution)} <= packed
    assert {name.partition("/")[0] for name in packed} == {
        "src",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "PKG-INFO",
    } | (
        # hatchling packs it so that a build from the sdist leaves out the same files.
        {".gitignore"} & packed
    )


def test_the_licence_travels_with_the_wheel_and_is_the_projects(build: Build, distribution: Distribution) -> None:
    licences = [content for name, content in wheel_files(build(distribution)).items() if name.endswith("/LICENSE")]

    assert licences == [(ROOT / "LICENSE").read_bytes()]


def test_the_metadata_say_what_it_is(build: Build, distribution: Distribution) -> None:
    metadata = wheel_metadata(build(distribution))

    assert metadata["Name"] == distribution.name
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Summary"]
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (distribution.folder / "README.md").read_text(encoding="utf-8")


def test_a_wheel_is_for_every_machine(build: Build, distribution: Distribution) -> None:
    assert wheel_metadata(build(distribution), "WHEEL").get_all("Tag") == ["py3-none-any"]


def entry_points(built: Built) -> dict[str, dict[str, str]]:
    """Return group → name → what it names."""
    (content,) = [text for name, text in wheel_files(built).items() if name.endswith(".dist-info/entry_points.txt")]
    parser = ConfigParser(delimiters="=")
    parser.read_string(content.decode())
    return {group: dict(parser[group]) for group in parser.sections()}


def test_the_core_brings_the_command_line(build: Build) -> None:
    assert entry_points(build(CORE))["console_scripts"] == {"omniq": "omniq.cli:main"}


def test_a_backend_names_its_plugin(build: Build, backend: Distribution) -> None:
    short = backend.name.removeprefix("omniq-")

    assert entry_points(build(backend)) == {"omniq": {short: f"{backend.package}.plugin"}}


def test_all_distributions_have_the_version_of_the_core(distribution: Distribution) -> None:
    assert distribution.project["version"] == CORE.project["version"]


def test_siblings_are_required_from_this_minor_version_up_to_the_next(distribution: Distribution) -> None:
    major, minor, *_ = CORE.project["version"].split(".")
    siblings = [requirement for requirement in distribution.requirements if requirement.name.startswith("omniq-")]

    assert siblings
    assert {str(requirement.specifier) for requirement in siblings} == {f"<{major}.{int(minor) + 1},>={major}.{minor}"}


def test_a_backend_needs_the_core_and_no_sibling(backend: Distribution) -> None:
    needed = {Requirement(text).name for text in backend.project["dependencies"]}

    assert {name for name in needed if name.startswith("omniq-")} == {CORE.name}


def test_an_extra_of_the_core_brings_each_backend(backend: Distribution) -> None:
    extra = CORE.project["optional-dependencies"][backend.name.removeprefix("omniq-")]

    assert [Requirement(text).name for text in extra] == [backend.name]


@pytest.mark.parametrize("kind", ["requires-python", "license", "authors"])
def test_all_distributions_agree(distribution: Distribution, kind: str) -> None:
    assert distribution.project[kind] == CORE.project[kind]
