"""What only POSIX systems have, such as fork and SIGQUIT, for code that is imported everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable

from omniq.errors import ConfigurationError

__all__ = ["IS_POSIX", "at_fork", "require_posix"]

IS_POSIX = hasattr(os, "fork")


def _nothing() -> None: ...


def at_fork(
    *,
    before: Callable[[], object] = _nothing,
    after_in_parent: Callable[[], object] = _nothing,
    after_in_child: Callable[[], object] = _nothing,
) -> None:
    """Do :func:`os.register_at_fork` where processes can fork, else nothing.

    :param before: called before each fork.
    :param after_in_parent: called in the parent after each.
    :param after_in_child: called in the child after each.
    """
    if IS_POSIX:
        os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)


def require_posix(what: str, instead: str) -> None:
    """Refuse what this system cannot do.

    :param what: what was asked for.
    :param instead: what to do instead.
    :raises ConfigurationError: if this is no POSIX system.
    """
    if not IS_POSIX:
        raise ConfigurationError(f"{what} needs a POSIX system, such as Linux or macOS: {instead}")
