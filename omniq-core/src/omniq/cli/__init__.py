"""The command line: ``omniq worker``, ``omniq enqueue``, ``omniq stats`` and so on.

Each command, or group of commands, is one module named in :data:`~omniq.plugins.COMMANDS`; only the one that was asked
for is imported. It has two functions: ``configure(parser)`` adds its arguments, ``run(options)`` does the work and
returns the exit code. Plugins add commands of the same form, by the same hook ``omniq_commands``.

Exit codes: 0 done, 1 the operation failed, 2 wrong usage; 130 after Ctrl-C, 141 where the reader of the output has
gone.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from omniq.cli.arguments import Parser, add_verbose, known_app, known_app_name
from omniq.cli.failures import report, suggestion
from omniq.cli.plugin_commands import discover, held_warnings, summaries
from omniq.plugins import COMMANDS
from omniq.storage.urls import redact

__all__ = ["COMMANDS", "Command", "main"]

SAY_THEMSELVES = ("worker", "plugins")
"""Commands that show in their own way what is wrong with a plugin."""
INTERRUPTED = 130
READER_GONE = 141

_EPILOG = """\
APP names the TaskQueue of your program as module:attribute: for `queue = TaskQueue(…)`
in shop/tasks.py write shop.tasks:queue. It is imported from the current folder.

examples:
  omniq worker shop.tasks:queue                     run its tasks
  omniq enqueue shop.tasks:queue resize '"a.png"'   hand one over
  omniq stats shop.tasks:queue --watch              see how it goes
  omniq tasks list shop.tasks:queue --state failed  see what went wrong
  omniq demo                                        see it at work first

`omniq COMMAND --help` tells more of each.
"""


class Command(Protocol):
    """What the module of a command has."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments.

        :param parser: the command's own.
        """

    def run(self, options: argparse.Namespace) -> int:
        """Do what was asked.

        :param options: the parsed arguments.
        :return: the exit code.
        :raises OmniQError: if it could not be done; its text is shown.
        """


def main(
    argv: Sequence[str] | None = None,
    *,
    app: str | None = None,
    prog: str = "omniq",
    ends_process: bool | None = None,
) -> int:
    """Run one command.

    :param argv: the arguments after the program's name; None: those of this process.
    :param app: the queue of every command, as ``module:attribute``, for programs that know theirs; None: an argument.
    :param prog: the program's name, for help and errors.
    :param ends_process: whether the process has nothing to do afterwards, so that nothing which a task left behind may
        keep it; None: if the arguments are its own.
    :return: the exit code.
    """
    with known_app(app):
        code = _main(sys.argv[1:] if argv is None else list(argv), prog)
    if (argv is None if ends_process is None else ends_process) and "omniq._worker.worker_process" in sys.modules:
        from omniq._worker.worker_process import EXIT_SECONDS, exit_within

        exit_within(EXIT_SECONDS, code)
    return code


def _main(arguments: list[str], prog: str) -> int:
    verbose = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding does not have must not end the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            options, command = _parse(arguments, prog)
            verbose = options.verbose
            if options._command not in SAY_THEMSELVES:
                held_warnings()
            return command.run(options)
        finally:
            sys.stdout.flush()
    except SystemExit as ended:  # --help and --version, of argparse
        return ended.code if isinstance(ended.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return READER_GONE
    except Exception as error:
        return report(error, verbose=verbose)


def _parse(arguments: list[str], prog: str) -> tuple[argparse.Namespace, Command]:
    parser = Parser(prog=prog, description="OmniQ: a task queue on the store you already have.")
    if known_app_name() is None:
        parser.epilog = _EPILOG
    parser.add_argument("-V", "--version", action=_Version, help="show the version and exit")
    commands = parser.add_subparsers(dest="_command", metavar="COMMAND", required=True, title="commands")
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    plugins = discover()
    command: Command | None = None if asked is None else plugins.command(asked)
    known = dict(summaries(plugins))
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, summary in known.items():
        about = f"{summary[:1].upper()}{summary[1:]}."
        parsers[name] = subparser = commands.add_parser(
            name, help=summary.replace("%", "%%"), description=about, prog=f"{prog} {name}"
        )
        if name == asked and command is not None:
            command.configure(subparser)
            add_verbose(subparser)
    if asked is None and not arguments:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    if asked is not None and command is None:
        held_warnings()  # of the plugin that would have it, perhaps
        parser.error(f"there is no command {asked!r}{suggestion(asked, known)}")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        is_option = unknown[0].startswith("-")
        # Of a command with actions, the action's own parser tells where its help is.
        getattr(options, "_parser", parsers[options._command]).error(
            f"there is no option {unknown[0]}"
            if is_option
            else f"{redact(unknown[0])!r} is one argument too many; options go before or after all arguments"
        )
    assert command is not None  # argparse demands one
    options._words = arguments[arguments.index(options._command) + 1 :]
    return options, command


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002  # argparse's own name
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"omniq {version('omniq-core')} (Python {sys.version.split()[0]})")
        parser.exit()


def _silence_stdout() -> None:
    # Python flushes stdout once more at its end, into the pipe that is closed.
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        return
