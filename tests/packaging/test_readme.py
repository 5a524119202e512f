"""The commands of the README, typed by a user: wheels in an environment of their own, away from any checkout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.dashboard.support import served
from tests.docs.pages import blocks
from tests.packaging.project import BACKENDS, CORE, ROOT, Distribution, Environment, link_needed
from tests.servers.starting import make_server

PAGE = ROOT / "README.md"


@pytest.fixture(scope="module")
def installed(environment: Callable[[Iterable[Distribution]], Environment]) -> Environment:
    """What ``pip install`` makes of the five wheels and the extra ``dashboard``."""
    made = environment(BACKENDS)
    link_needed(CORE.project["optional-dependencies"]["dashboard"], made)
    assert Path(made.evaluate("import omniq; print(omniq.__file__)")).is_relative_to(made.folder)
    return made


def test_the_example_prints_what_its_comments_say(installed: Environment, tmp_path: Path) -> None:
    (example,) = [block for block in blocks(PAGE) if block.language == "python"]
    program = tmp_path / "example.py"
    program.write_text("\n".join(example.lines), encoding="utf-8")
    done = installed.run("python", program, where=tmp_path)
    said = [line.partition("  # ")[2] for line in example.lines if line.lstrip().startswith("print(")]
    assert (done.returncode, done.stdout.splitlines()) == (0, said), done.stderr
    assert len(said) == 2


def test_the_demo_runs(installed: Environment) -> None:
    assert "omniq demo" in (ROOT / "Makefile").read_text(encoding="utf-8")  # what `make demo` does
    done = installed.run("omniq", "demo", "--limit", "40")
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_command_shows_a_dashboard_that_brings_all_that_its_pages_are_made_of(
    installed: Environment, tmp_path: Path
) -> None:
    assert "$ omniq dashboard redis://localhost" in PAGE.read_text(encoding="utf-8")
    with make_server("redis", tmp_path) as server:
        command = [str(installed.folder / "bin" / "omniq"), "dashboard", server.url]
        with served(command, cwd=tmp_path, env=installed.environ) as (_, client):
            page = client.get("/").text
            assert "No tasks yet" in page
            parts = re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="([^"]+)"', page)
            assert {part.partition("?")[0] for part in parts} == {
                f"/static/{name}" for name in ("dashboard.css", "dashboard.js", "mark.svg")
            }
            assert {client.get(part).status_code for part in parts} == {200}
