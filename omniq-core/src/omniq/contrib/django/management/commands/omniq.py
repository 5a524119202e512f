"""``manage.py omniq …``: the command line ``omniq``, on the queue of a backend in ``TASKS``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand  # type: ignore[import-untyped]  # it brings no types

from omniq.cli import main

__all__ = ["Command"]

_PROG = "manage.py omniq"


class Command(BaseCommand):  # type: ignore[misc]  # Django brings no types
    """Passes on to ``omniq``; APP is the queue of the backend that ``--backend`` names, ``default`` unless given."""

    help = "Run `omniq` on the queue of a backend in TASKS: worker, stats, tasks list and so on."

    def run_from_argv(self, argv: Sequence[str]) -> None:
        """Run the command, and end the process with its exit code.

        :param argv: the arguments of the process.
        """
        # A worker's child processes are started as `python -m omniq`, which finds modules from the current folder.
        folders = [folder for folder in (sys.path[0], os.environ.get("PYTHONPATH")) if folder]
        os.environ["PYTHONPATH"] = os.pathsep.join(folders)
        sys.exit(_run(argv[2:], ends_process=True))

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
        code = _run(arguments, ends_process=False)
        if code:
            sys.exit(code)


_parser = argparse.ArgumentParser(prog=_PROG, add_help=False, allow_abbrev=False)
_parser.add_argument("--backend", default="default")
_parser.add_argument("--settings")  # of every command of Django, as the next; manage.py has read both by then
_parser.add_argument("--pythonpath")


def _run(arguments: Sequence[str], *, ends_process: bool) -> int:
    options, rest = _parser.parse_known_args(arguments)
    app = f"omniq.contrib.django.queues:{options.backend}"
    return main(rest, app=app, prog=_PROG, ends_process=ends_process)
