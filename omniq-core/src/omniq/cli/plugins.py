"""``omniq plugins``: what was found, what it brings, and what is wrong with it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from omniq.cli.arguments import add_json, configuring
from omniq.cli.terminal import Screen, picked
from omniq.plugins import ENVIRONMENT, Plugin, Plugins, default_plugins

__all__ = ["as_json", "configure", "run"]

_PLURALS = {"retry policy": "retry policies"}


configure = configuring(
    "Show every installed plugin with its distribution, version, what it brings and how long it took to load.\n"
    "Exit code 1 if one is broken, or if two claim one name. OMNIQ_PLUGINS=-NAME leaves one out.",
    "omniq plugins\nomniq plugins --json",
    add_json,
)


def run(options: argparse.Namespace) -> int:
    """Show the plugins."""
    # What discovery warns of stands in the table.
    logging.getLogger("omniq.plugins").setLevel(logging.ERROR)
    plugins = default_plugins()
    screen = Screen()
    screen.answer(options.json, lambda: as_json(plugins), lambda: _as_text(plugins, screen))
    return 1 if plugins.conflicts or any(plugin.problem for plugin in plugins.found) else 0


def as_json(plugins: Plugins) -> dict[str, Any]:
    """Return the plugins as what ``--json`` prints."""
    found = [
        {
            **picked(plugin, "name", "distribution", "version", "problem", "left_out"),
            "provides": {kind: list(names) for kind, names in plugin.provides.items()},
            "seconds": round(plugin.seconds, 6),
        }
        for plugin in plugins.found
    ]
    return {"plugins": found, "conflicts": plugins.conflicts}


def _as_text(plugins: Plugins, screen: Screen) -> list[str]:
    lines: list[str] = []
    for plugin in plugins.found:
        title = f"{plugin.distribution} {plugin.version}".rstrip()
        name = "" if plugin.name == "omniq" else f"  ({plugin.name})"
        lines += [screen.styled(title, "bold") + name, *_details(plugin, screen), ""]
    conflicts = [screen.styled(f"conflict: {conflict}", "red") for conflict in plugins.conflicts]
    return lines + conflicts if conflicts else lines[:-1]


def _details(plugin: Plugin, screen: Screen) -> Sequence[str]:
    if plugin.left_out:
        return [screen.styled(f"  left out by {ENVIRONMENT}", "dim")]
    took = [screen.styled(f"  loaded in       {1000 * plugin.seconds:,.1f} ms", "dim")] if plugin.seconds else []
    if plugin.problem:
        return [screen.styled(f"  broken: {plugin.problem}", "red"), *took]
    provided = [
        f"  {_PLURALS.get(kind, f'{kind}s'):<15} {', '.join(names)}" for kind, names in plugin.provides.items() if names
    ]
    return [*(provided or [screen.styled("  listens to events only", "dim")]), *took]
