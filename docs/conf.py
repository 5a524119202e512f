"""How these pages become a site, see ``make site``. The code host, the tests and the site read the same Markdown."""

from __future__ import annotations

import re
from importlib.metadata import version as _version
from typing import Any

project = "OmniQ"
author = "the OmniQ developers"
project_copyright = author
release = _version("omniq-core")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["examples/*/src", "examples/*/tests"]
html_theme = "furo"
html_title = f"OmniQ {release}"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0f5f6b", "color-brand-content": "#0f5f6b"},
    "dark_css_variables": {"color-brand-primary": "#67c5d1", "color-brand-content": "#67c5d1"},
}
# Headings have the anchors that code hosts make of them.
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {
    "members": True,
    "imported-members": True,
    # Of all bases but those that Python brings.
    "inherited-members": "BaseException, OSError, TimeoutError, str, StrEnum, Enum, tuple, Generic",
}

_LINK_TO_A_PAGE = re.compile(r"\]\(([\w/-]+)\.(?:md|rst)\)")
_LINK_OUT_OF_THE_DOCUMENTATION = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[A-Z]+\.md[^)]*\)")


def _navigation(index: str) -> str:
    """Return the directives that make a site's navigation of the sections and links of the index page."""
    directives = []
    for section in index.split("\n## ")[1:]:
        caption, _, text = section.partition("\n")
        pages = _LINK_TO_A_PAGE.findall(text)
        directives.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]))
    return "\n\n".join(directives)


def _read_source(app: object, name: str, source: list[str]) -> None:
    """Make of a page what the site needs: navigation on the first, and no links to files that it does not have."""
    text = _LINK_OUT_OF_THE_DOCUMENTATION.sub(r"\1", source[0])
    source[0] = f"{text}\n\n{_navigation(text)}\n" if name == "index" else text


def setup(app: Any) -> None:
    """Connect to Sphinx."""
    app.connect("source-read", _read_source)
