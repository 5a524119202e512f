"""What several commands take, and how wrong arguments are answered: in one line."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn, TypeAlias, TypeVar

from omniq._tasks.options import check_queue
from omniq.cli.failures import UsageError
from omniq.task import TaskState

__all__ = [
    "Configure",
    "Parser",
    "add_app",
    "add_json",
    "add_store",
    "add_verbose",
    "configuring",
    "count",
    "flag",
    "known_app",
    "known_app_name",
    "label",
    "moment",
    "option",
    "queue_name",
    "reads",
    "seconds",
    "seconds_or_moment",
    "size",
    "states",
    "text",
    "value",
]

T = TypeVar("T")
Number = TypeVar("Number", int, float)
Configure: TypeAlias = Callable[[argparse.ArgumentParser], object]
"""Adds something to a parser."""

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_app: ContextVar[str | None] = ContextVar("_app", default=None)


class Parser(argparse.ArgumentParser):
    """A parser that raises :class:`~omniq.cli.failures.UsageError` instead of printing and leaving."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def configuring(description: str, examples: str, *options: Configure) -> Callable[[argparse.ArgumentParser], None]:
    """Return the function that gives a command the text of its help, and its options.

    :param description: what it does, in a sentence or two.
    :param examples: lines to type, shown at the end.
    :param options: in the order in which the help shows them.
    """

    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = description
        indented = "\n".join(f"  {line}" for line in examples.splitlines())
        parser.epilog = f"examples:\n{indented}"
        for add in options:
            add(parser)

    return configure


def option(*names: str, **settings: Any) -> Configure:
    """Return an option, or an argument, of what :meth:`argparse.ArgumentParser.add_argument` takes."""
    return lambda parser: parser.add_argument(*names, **settings)


def value(names: str, kind: Callable[[str], Any], metavar: str, about: str, **settings: Any) -> Configure:
    """Return an option with a value, or an argument.

    :param names: separated by spaces.
    :param kind: reads the value.
    :param about: what it is, for the help.
    """
    return option(*names.split(), type=kind, metavar=metavar, help=about, **settings)


def flag(names: str, about: str, *, off: str | None = None) -> Configure:
    """Return an option without a value.

    :param names: separated by spaces.
    :param about: what it does, for the help.
    :param off: what it turns off; None: it turns on what it is named after.
    """
    action: dict[str, Any] = {"action": "store_true"} if off is None else {"action": "store_false", "dest": off}
    return option(*names.split(), help=about, **action)


@contextlib.contextmanager
def known_app(app: str | None) -> Iterator[None]:
    """Have commands take one application, instead of an argument that names it.

    :param app: ``module:attribute``; None: the argument names it.
    """
    token = _app.set(app)
    try:
        yield
    finally:
        _app.reset(token)


def known_app_name() -> str | None:
    """Return the application that commands take, as ``module:attribute``; None if an argument names it."""
    return _app.get()


def add_app(parser: argparse.ArgumentParser, *, or_url: bool = False) -> None:
    """Take the application, or the URL of its store, as the first argument, where it is not known."""
    if known_app_name() is not None:
        parser.set_defaults(app=known_app_name())
        return
    text = "your TaskQueue as module:attribute, such as shop.tasks:queue"
    if or_url:
        text += ", or the URL of a store, such as sqlite:///jobs.db"
    parser.add_argument("app", metavar="APP|URL" if or_url else "APP", help=text)


def add_store(parser: argparse.ArgumentParser) -> None:
    """Take the application or the URL of its store."""
    add_app(parser, or_url=True)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Take ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text for people")


def add_verbose(parser: argparse.ArgumentParser, *, default: object = False) -> None:
    """Take ``-v``."""
    text = "say more: debug messages, tracebacks of errors"
    parser.add_argument("-v", "--verbose", action="store_true", default=default, help=text)


def reads(fault: str) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """Return a decorator of a function that reads an argument, whose errors argparse shows as this fault.

    :param fault: what is wrong, with ``{!r}`` for the argument and ``{error}`` for what the function raised.
    """

    def decorate(read: Callable[[str], T]) -> Callable[[str], T]:
        @functools.wraps(read)
        def reading(text: str) -> T:
            try:
                return read(text)
            except (ValueError, OverflowError) as error:
                raise argparse.ArgumentTypeError(fault.format(text, error=error)) from None

        return reading

    return decorate


def _at_least(least: Number, value: Number) -> Number:
    if not least <= value < math.inf:
        raise ValueError(value)
    return value


@reads("{!r} is not a number of seconds, zero or more")
def seconds(text: str) -> float:
    """Read a duration in seconds: a number, zero or more."""
    return _at_least(0.0, float(text))


@reads("{!r} is no time such as 2030-01-31T09:00 or …T08:00Z")
def moment(text: str) -> datetime:
    """Read a point in time in ISO 8601; without an offset by the clocks here."""
    return datetime.fromisoformat(text).astimezone()


def seconds_or_moment(text: str) -> float | datetime:
    """Read a duration in seconds, or a point in time."""
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        return moment(text)


@reads("{!r} is not a whole number of 1 or more")
def count(text: str) -> int:
    """Read a whole number of 1 or more."""
    return _at_least(1, int(text))


@reads(f"{{!r}} is not one or several of {', '.join(TaskState)}, separated by commas")
def states(text: str) -> list[TaskState]:
    """Read one or several states, separated by commas."""
    return [TaskState(state.strip()) for state in text.split(",")]


@reads("{!r} is not a number of bytes, such as 500M or 2G")
def size(text: str) -> int:
    """Read a number of bytes, which may end in K, M or G."""
    digits, factor = (text[:-1], _UNITS[text[-1:].upper()]) if text[-1:].upper() in _UNITS else (text, 1)
    return _at_least(1, int(float(digits) * factor))


def label(text: str) -> tuple[str, str]:
    """Read a label of a worker: a name and a value."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no label such as zone=a")
    return name, value


@reads("{error}")
def queue_name(text: str) -> str:
    """Read the name of a queue."""
    return check_queue(text)


@reads("{!a} is not text in UTF-8")
def text(argument: str) -> str:
    """Read something that a store may hold: text, not bytes that are no UTF-8."""
    return argument.encode().decode()
