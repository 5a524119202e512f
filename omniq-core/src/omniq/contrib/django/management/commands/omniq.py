"""``manage.py omniq …``: the command line ``omniq``, on the queue of a backend in ``TASKS``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from django.core.management.base import BaseCommand  # type: ignore[import-untyped]  # it brings no types

from omniq.cli import COMMANDS, main
from omniq.cli.arguments import Parser

__all__ = ["Command"]

_OF_DJANGO = ("--settings", "--pythonpath")
"""Options of every command, which ``manage.py`` has read by then."""


class Command(BaseCommand):  # type: ignore[misc]  # Django brings no types
    """Passes on to ``omniq``; APP is the queue of the backend that ``--backend`` names, ``default`` unless given."""

    help = "Run `omniq` on the queue of a backend in TASKS: worker, stats, tasks list and so on."

    def run_from_argv(self, argv: Sequence[str]) -> None:
        """Run the command, and end the process with its exit code.

        :param argv: the arguments of the process.
        """
        given, alias = _without_options(argv[2:])
        # A worker's child processes are started as `python -m omniq`, which finds modules from the current folder.
        folders = [folder for folder in (sys.path[0], os.environ.get("PYTHONPATH")) if folder]
        os.environ["PYTHONPATH"] = os.pathsep.join(folders)
        sys.argv = ["omniq", *_with_app(given, f"omniq.contrib.django.queues:{alias}")]
        sys.exit(main())

    def add_arguments(self, parser: Any) -> None:
        """Take all arguments as they are.

        :param parser: the command's parser, for ``call_command``.
        """
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def handle(self, *_: Any, arguments: Sequence[str], **options: Any) -> None:
        """Run the command for ``call_command("omniq", "stats")``.

        :param arguments: those of ``omniq``, and ``--backend``.
        :param options: those of every command of Django.
        :raises SystemExit: with the exit code, unless that is 0.
        """
        given, alias = _without_options(arguments)
        code = main(_with_app(given, f"omniq.contrib.django.queues:{alias}"))
        if code:
            sys.exit(code)


def _without_options(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Return the arguments that are for ``omniq``, and the alias of the backend."""
    rest: list[str] = []
    alias, left = "default", list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":
            return [*rest, argument, *left], alias
        name, equals, value = argument.partition("=")
        if name not in ("--backend", *_OF_DJANGO):
            rest.append(argument)
            continue
        if not equals:
            value = left.pop(0) if left else ""
        if name == "--backend":
            alias = value
    return rest, alias


def _with_app(arguments: Sequence[str], app: str) -> list[str]:
    """Return the arguments with APP where the command takes it: behind its name, and that of its action."""
    words = [place for place, argument in enumerate(arguments) if not argument.startswith("-")]
    if not words or arguments[words[0]] not in COMMANDS:
        return [*arguments]
    parser: argparse.ArgumentParser = Parser()
    import_module(COMMANDS[arguments[words[0]]][0]).configure(parser)
    for place in words[:2]:
        if any(action.dest == "app" for action in parser._actions):
            return [*arguments[: place + 1], app, *arguments[place + 1 :]]
        actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        following = next((arguments[word] for word in words if word > place), None)
        if not actions or following not in actions[0].choices:
            break
        parser = actions[0].choices[following]
    return [*arguments]
