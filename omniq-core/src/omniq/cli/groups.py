"""Commands that have actions: ``omniq tasks list``, ``omniq tasks show`` and so on.

An action is a value: what its help says, its options, and what it does to a queue. What all of them have in common,
such as the argument that names the queue, stands here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from attrs import frozen

from omniq._client.queue import TaskQueue
from omniq.cli.app import note_place, open_queue
from omniq.cli.arguments import Configure, add_store, add_verbose, configuring
from omniq.cli.columns import Column, Table
from omniq.cli.terminal import Screen

__all__ = ["Action", "answer_all", "command_of"]

T = TypeVar("T")

Run: TypeAlias = Callable[[argparse.Namespace], int]


@frozen
class Action:
    """One action of a command, on the queue of an application or on the store of a URL."""

    summary: str
    """What the help of the command says of it."""
    description: str
    """What its own help says, in a sentence or two."""
    examples: str
    """Lines to type."""
    options: Sequence[Configure]
    """What it takes beside the queue, in the order in which the help shows it."""
    act: Callable[[TaskQueue, argparse.Namespace], int | None]
    """Does what was asked, and returns the exit code; None: it is done."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add its arguments."""
        configuring(self.description, self.examples, add_store, *self.options)(parser)
        # Not given here, what was given before the action's name holds.
        add_verbose(parser, default=argparse.SUPPRESS)
        parser.set_defaults(act=self.act, _parser=parser)


def command_of(description: str, actions: Mapping[str, Action]) -> tuple[Configure, Run]:
    """Return the functions ``configure`` and ``run`` of a command that takes the name of an action first.

    The examples in its help are the first of each action.

    :param actions: by name, in the order in which the help shows them.
    """

    def add_actions(parser: argparse.ArgumentParser) -> None:
        parsers = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
        for name, action in actions.items():
            action.configure(parsers.add_parser(name, help=action.summary, prog=f"{parser.prog} {name}"))

    examples = "\n".join(action.examples.partition("\n")[0] for action in actions.values())
    return configuring(description, examples, add_actions), _run


def _run(options: argparse.Namespace) -> int:
    with open_queue(options.app) as queue:
        code: int | None = options.act(queue, options)
    return code or 0


def answer_all(
    queue: TaskQueue,
    options: argparse.Namespace,
    found: Sequence[T],
    as_json: Callable[[T], Any],
    columns: Sequence[Column[T]],
    what: str,
) -> None:
    """Write all that there is of something, with a row for each; of nothing, where it was looked for.

    :param as_json: returns one of them as what ``--json`` prints.
    :param what: what they are, for a sentence.
    """
    screen = Screen()
    screen.answer(
        options.json,
        lambda: [as_json(one) for one in found],
        lambda: Table(columns, screen).lines(found) or [f"there are no {what}"],
    )
    if not found and not options.json:
        note_place(queue)
