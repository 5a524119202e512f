"""Which commands there are, found out before the one that was asked for has set up logging."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from omniq.errors import ConfigurationError, PluginConflict
from omniq.plugins import Plugins, default_plugins

__all__ = ["discover", "held_warnings", "summaries"]

_held: list[logging.LogRecord] = []


def discover() -> Plugins:
    """Return the installed plugins. What is logged of those that are broken is held for :func:`held_warnings`."""
    logger = logging.getLogger("omniq.plugins")

    def hold(record: logging.LogRecord) -> bool:
        _held.append(record)
        return False

    logger.addFilter(hold)
    try:
        return default_plugins()
    finally:
        logger.removeFilter(hold)


def held_warnings() -> None:
    """Log what was held."""
    while _held:
        record = _held.pop(0)
        logging.getLogger(record.name).handle(record)


def summaries(plugins: Plugins) -> Iterator[tuple[str, str]]:
    """Yield the name and the summary of each command, or why it cannot be used."""
    for name in plugins.commands:
        try:
            yield name, plugins.command_summary(name)
        except (PluginConflict, ConfigurationError) as error:
            yield name, f"({error})"
