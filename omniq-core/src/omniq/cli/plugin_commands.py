"""Commands that plugins add to ``omniq``, by the hook ``omniq_commands``."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from omniq.errors import ConfigurationError, PluginConflict
from omniq.plugins import Claim, Plugins, default_plugins

__all__ = ["clashes", "command_of", "discover", "held_warnings", "summaries"]

OURS = "omniq-core"
_held: list[logging.LogRecord] = []


def discover() -> Plugins:
    """Return the installed plugins. What is logged of those that are broken is held for :func:`held_warnings`.

    Which commands there are must be known before the command that was asked for has set up logging.
    """
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


def summaries(plugins: Plugins, ours: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the summary of each command that plugins add, or why it cannot be used.

    :param ours: the names of our own commands.
    """
    for name, claims in sorted(plugins.commands.items()):
        if name not in ours:
            try:
                yield name, _summary(name, _claim(name, claims, ours))
            except (PluginConflict, ConfigurationError) as error:
                yield name, f"({error})"


def clashes(plugins: Plugins, ours: Container[str]) -> list[str]:
    """Return one sentence for each name of a command of ours that a plugin claims."""
    found = []
    for name, claims in sorted(plugins.commands.items()):
        if name in ours:
            try:
                _claim(name, claims, ours)
            except PluginConflict as error:
                found.append(str(error))
    return found


def command_of(plugins: Plugins, name: str, ours: Container[str]) -> Any:
    """Return a command that a plugin adds: what has ``configure(parser)`` and ``run(options)``; None if none does.

    :param ours: the names of our own commands.
    :raises PluginConflict: if two distributions claim the name.
    :raises ConfigurationError: if it cannot be used.
    """
    claims = plugins.commands.get(name)
    if claims is None:
        return None
    claim = _claim(name, claims, ours)
    _summary(name, claim)
    command = claim.thing[0]
    if isinstance(command, str):
        module, _, attribute = command.partition(":")
        try:
            found: Any = import_module(module)
            command = getattr(found, attribute) if attribute else found
        except Exception as error:  # whatever a module raises on import
            raise ConfigurationError(
                f"command {name!r} of {claim.distribution} cannot be loaded from {command!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
    missing = [method for method in ("configure", "run") if not callable(getattr(command, method, None))]
    if missing:
        what = command.__name__ if isinstance(command, ModuleType) else repr(command)
        raise ConfigurationError(f"command {name!r} of {claim.distribution}: {what} has no {' and no '.join(missing)}")
    return command


def _claim(name: str, claims: list[Claim], ours: Container[str]) -> Claim:
    owners = [*([OURS] if name in ours else []), *(claim.distribution for claim in claims)]
    if len(owners) > 1:
        raise PluginConflict(
            f"command {name!r} is claimed by {' and '.join(owners)}; uninstall one of them, or leave one out: set the "
            f"environment variable OMNIQ_PLUGINS=-{owners[-1]}"
        )
    return claims[0]


def _summary(name: str, claim: Claim) -> str:
    match claim.thing:
        case (_, str() as summary):
            return summary
    raise ConfigurationError(
        f"command {name!r} of {claim.distribution}: omniq_commands must map it to a pair of what runs it, or "
        f'"module:attribute", and a summary, not to {claim.thing!r}'
    )
