"""How the command line fails: one clear line on stderr that says what to do, and an exit code for scripts."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Callable, Iterable

from omniq.errors import ConfigurationError, OmniQError
from omniq.storage.escaping import printable, printable_lines
from omniq.storage.urls import redact_all

__all__ = ["FAILED", "WRONG_USAGE", "OperationFailed", "UsageError", "complain", "each", "note", "report", "suggestion"]

FAILED = 1
WRONG_USAGE = 2


class UsageError(OmniQError):
    """What was typed cannot be done, whatever the state of the store."""


class OperationFailed(OmniQError):
    """What was typed makes sense, and did not succeed."""


def report(error: Exception, *, verbose: bool) -> int:
    """Say on stderr what went wrong.

    :param verbose: whether to show the traceback as well.
    :return: the exit code.
    """
    if verbose:
        print(printable_lines(redact_all("".join(traceback.format_exception(error)))), end="", file=sys.stderr)
    complain(_text(error))
    return WRONG_USAGE if isinstance(error, (UsageError, ConfigurationError)) else FAILED


def complain(text: str) -> None:
    """Say on stderr what was not done."""
    # Whatever was typed, or a driver says, may hold a URL with its password.
    print(printable(f"omniq: error: {redact_all(text)}"), file=sys.stderr)


def note(text: str) -> None:
    """Say on stderr what is worth knowing of something that was done."""
    print(printable(f"omniq: note: {text}"), file=sys.stderr)


def _text(error: Exception) -> str:
    if isinstance(error, OmniQError):
        return " ".join(str(error).split("\n"))
    # This one was not foreseen, so its text alone may say little.
    return f"{type(error).__name__}: {error} (type -v to see where)"


def suggestion(given: str, known: Iterable[str]) -> str:
    """Return ``; did you mean …?`` where something known looks like what was typed, else nothing."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def each(names: Iterable[str], act: Callable[[str], object]) -> int:
    """Do something to each of what was named, once, also after one to which it could not be done.

    :param act: raises :class:`OperationFailed` for such a one.
    :return: the exit code.
    """
    code = 0
    for name in dict.fromkeys(names):
        try:
            act(name)
        except OperationFailed as error:
            complain(_text(error))
            code = FAILED
    return code
