"""The documentation as a site: it can be made without a warning, and every page can be reached."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES

# One process makes the site, for all of these tests.
pytestmark = pytest.mark.xdist_group("site")
LINK = re.compile(r'href="([^"#:?]+\.html)')
LOADED = re.compile(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="(https?:[^"]*)"')


def make(folder: Path, *options: str) -> None:
    """Make the site, or whatever a builder of Sphinx makes of the documentation."""
    options = ("--fail-on-warning", "--quiet", "--doctree-dir", str(folder / "doctrees"), *options)
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a site made of the documentation."""
    folder = tmp_path_factory.mktemp("site")
    make(folder)
    return folder / "html"


@pytest.mark.short  # to write all pages takes most of the time
def test_every_page_is_read_without_a_warning(tmp_path: Path) -> None:
    make(tmp_path, "--builder", "dummy")


@pytest.mark.long
def test_every_page_can_be_reached_from_the_first(site: Path) -> None:
    reached: set[Path] = set()
    ahead = [site / "index.html"]
    while ahead:
        page = ahead.pop()
        if page not in reached:
            reached.add(page)
            ahead += [(page.parent / link).resolve() for link in LINK.findall(page.read_text(encoding="utf-8"))]

    assert {site / path.relative_to(DOCS).with_suffix(".html") for path in PAGES if DOCS in path.parents} <= reached


@pytest.mark.long
def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    assert [link for page in site.rglob("*.html") for link in LOADED.findall(page.read_text(encoding="utf-8"))] == []


@pytest.mark.long
def test_the_docstrings_of_public_names_are_on_a_page(site: Path) -> None:
    page = (site / "reference" / "docstrings.html").read_text(encoding="utf-8")

    assert all(f'id="omniq.{name}"' in page for name in ("TaskQueue.enqueue_many", "TaskFunction.using", "TaskFailed"))
