"""Why a value or a payload is not taken, and where in it the trouble lies.

A :class:`CodecError` starts where the trouble is and gathers one step of the path at every level on its way up, so that
no path is carried along for the values that are fine.
"""

from __future__ import annotations

from typing import Any

from omniq.errors import ArgumentsMismatch, SerializationError

__all__ = ["CodecError", "Malformed", "describe", "key_step", "type_name"]

_SHOWN_STEPS = 12
_SHOWN_KEY = 40
_SHOWN_ERROR = 300


class CodecError(Exception):
    """A value that cannot be encoded, or a payload that cannot be decoded.

    :param message: what is wrong and what to do about it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.steps: list[str] = []

    def error(self, root: str) -> SerializationError:
        """Make the public error.

        :param root: the path to the outermost value, such as ``args[0]``.
        """
        return SerializationError(self.message, self._path(root))

    def mismatch(self, root: str) -> SerializationError:
        """Make the public error of arguments that were read: of those that do not fit, unless they are malformed."""
        return ArgumentsMismatch(self.message, self._path(root))

    def _path(self, root: str) -> str:
        steps = self.steps[::-1]
        if len(steps) > _SHOWN_STEPS:
            steps = [*steps[:_SHOWN_STEPS], "..."]
        return root + "".join(steps)


class Malformed(CodecError):
    """A payload that no annotation could take: it is not of the form that it says it is."""

    def mismatch(self, root: str) -> SerializationError:
        return self.error(root)


def key_step(key: Any) -> str:
    """Return the step of the path for a mapping's key."""
    if type(key) not in {str, int, bool, float, type(None)}:
        # Its repr may be endless, or run code that fails.
        return f"[<{type_name(key)}>]"
    try:
        text = repr(key)
    except ValueError:  # an int with more digits than Python is willing to write
        return "[<int>]"
    return f"[{text}]" if len(text) <= _SHOWN_KEY else f"[{text[:_SHOWN_KEY]}...]"


def describe(error: BaseException) -> str:
    """Write an error that foreign code raised, in no more than a line or two."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    return f"{type_name(error)}: {text[:_SHOWN_ERROR]}{'...' if len(text) > _SHOWN_ERROR else ''}"


def type_name(value: Any) -> str:
    """Name a value's class as its author wrote it."""
    return type(value).__qualname__.rpartition("<locals>.")[2]
