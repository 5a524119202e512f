"""What a person's terminal or log file shows: texts that may come from anyone, without anything that acts on either.

A store, a file's name or an error's message may hold escape codes, line ends and marks of direction: printed as they
are, they clear the screen or forge a line of the log. The loggers of OmniQ are made here, and escape
what they are given; the command line's output passes through :class:`omniq.cli.terminal.Screen`, which does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

__all__ = ["Lines", "escape_record", "get_logger", "printable", "printable_lines", "shown", "shown_reason"]

LONGEST_SHOWN = 200
"""Characters of an id or name that a message shows."""
LONGEST_REASON = 500
"""Characters of what is wrong with a record."""
LONGEST_ARGUMENT = 20_000
"""Characters of a value that a log record shows."""


def printable(text: str) -> str:
    """Return a text without anything that a terminal would obey: escape codes, line ends, marks of direction."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_lines(text: str) -> str:
    """Return a text of several lines with each of them as :func:`printable` returns it."""
    return "\n".join(map(printable, text.expandtabs().split("\n")))


def shown(text: object) -> str:
    """Return an id or a name as it can stand in an error and in a log: in one line, and not endless."""
    if isinstance(text, str) and text.isprintable() and len(text) <= LONGEST_SHOWN:
        return text
    return ascii(text)[:LONGEST_SHOWN]


def shown_reason(problem: BaseException | str) -> str:
    """Return what is wrong with a record, which may quote what was found there: of any length, and anything in it."""
    reason = printable(str(problem)[: LONGEST_REASON + 1]) or type(problem).__name__
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "…"


class Lines(str):
    """A text of which a log record keeps the line ends, such as a traceback; the rest is escaped."""

    __slots__ = ()


class _Escaped:
    """What stands in a log record for a value that is neither text nor number, such as an error."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return _bounded(str(self._value))

    def __repr__(self) -> str:
        return _bounded(repr(self._value))


def _bounded(text: str) -> str:
    if len(text) > LONGEST_ARGUMENT:
        text = f"{text[:LONGEST_ARGUMENT]}… ({len(text):,} characters)"
    return printable(text)


def _is_fit(value: object) -> bool:
    kind = value.__class__
    if kind is str:
        return value.isprintable() and len(value) <= LONGEST_ARGUMENT  # type: ignore[attr-defined, arg-type]  # it is text
    return kind in _NUMBERS


def _escaped(value: object) -> object:
    if _is_fit(value):
        return value
    if isinstance(value, Lines):
        return printable_lines(value)
    return _bounded(value) if isinstance(value, str) else _Escaped(value)


_NUMBERS = frozenset({int, float, bool, type(None)})
_FIELDS = ("task_id", "task_name", "task_queue")


def escape_record(record: logging.LogRecord) -> bool:
    """Escape what a log record shows besides its message's own words: its arguments, and its task's fields.

    :return: True, as a filter of a logger does for what it lets pass.
    """
    args: object = record.args  # typeshed knows no values
    if isinstance(args, tuple):
        # A worker logs each task: as nearly always all is fit, nothing is made anew.
        for value in args:
            if not _is_fit(value):
                record.args = tuple(map(_escaped, args))
                break
    elif isinstance(args, Mapping):
        record.args = {name: _escaped(value) for name, value in args.items()}
    fields = record.__dict__
    if "task_id" in fields:
        for name in _FIELDS:
            if not _is_fit(value := fields.get(name)):
                fields[name] = _escaped(value)
    return True


def get_logger(name: str) -> logging.Logger:
    """Return a logger of OmniQ's, or of a store's, whose records are fit for a terminal and a log file.

    :param name: such as ``omniq.redis``.
    """
    logger = logging.getLogger(name)
    logger.addFilter(escape_record)  # once, however often it is asked for
    return logger
