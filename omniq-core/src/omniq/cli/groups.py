"""Commands that have actions: ``omniq tasks list``, ``omniq tasks show`` and so on."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from attrs import frozen

from omniq.cli.arguments import add_verbose

__all__ = ["Action", "add_actions", "run_action"]


@frozen
class Action:
    """One action of a command."""

    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    """Adds its arguments."""
    run: Callable[[argparse.Namespace], int]
    """Does what was asked and gives the exit code."""


def add_actions(parser: argparse.ArgumentParser, actions: Mapping[str, Action]) -> None:
    """Take the name of an action as the first argument, and then the arguments of that action.

    :param actions: by name, in the order in which the help shows them.
    """
    parsers = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    for name, action in actions.items():
        subparser = parsers.add_parser(name, help=action.summary, prog=f"{parser.prog} {name}")
        action.configure(subparser)
        # Not given here, what was given before the action's name holds.
        add_verbose(subparser, default=argparse.SUPPRESS)
        subparser.set_defaults(run=action.run, parser=subparser)


def run_action(options: argparse.Namespace) -> int:
    """Run the action that was asked for."""
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)
