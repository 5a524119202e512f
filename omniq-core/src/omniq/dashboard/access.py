"""Who may do what in the dashboard. Without an answer it is closed."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import TypeAlias

from attrs import field, frozen
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["EVERYTHING", "READ_ONLY", "Access", "Permission", "Visitor", "visitor_of"]


class Permission(StrEnum):
    """Something that a visitor may do."""

    VIEW = "view"
    """See which tasks, queues, functions, workers, schedules and flows there are, and how they are. Without it nothing
    is shown."""
    PAYLOAD = "payload"
    """See what tasks carry: arguments, results, headers, the messages and tracebacks of errors."""
    CANCEL = "cancel"
    """Cancel tasks and flows."""
    RETRY = "retry"
    """Retry tasks and flows, and run tasks now that are scheduled for later."""
    DELETE = "delete"
    """Delete tasks."""
    PURGE = "purge"
    """Remove all tasks of a queue that are not running."""
    PAUSE = "pause"
    """Pause and resume queues."""
    LIMITS = "limits"
    """Set and delete limits."""
    SCHEDULES = "schedules"
    """Pause, resume, trigger and delete schedules."""
    ENQUEUE = "enqueue"
    """Enqueue a copy of a task with other arguments; it takes ``payload``, too."""


EVERYTHING = frozenset(Permission)
"""All permissions."""
READ_ONLY = frozenset({Permission.VIEW, Permission.PAYLOAD})
"""Seeing everything, and changing nothing."""


def _permissions(names: Iterable[Permission | str]) -> frozenset[Permission]:
    return frozenset(map(Permission, names))


@frozen(kw_only=True)
class Visitor:
    """A user of the dashboard."""

    name: str
    """For the audit log, and as the actor of ``omniq_action_taken``; 1 to 500 characters."""
    may: frozenset[Permission] = field(default=READ_ONLY, converter=_permissions)
    """The permissions; any collection of them, or of their names, is taken."""


Access: TypeAlias = Callable[[Request], Visitor | Response | Awaitable[Visitor | Response | None] | None]
"""Says who sends a request: a visitor; None, who is refused; or a response, such as one that leads to a page to sign in
on. A plain or a coroutine function."""


async def visitor_of(access: Access, request: Request) -> Visitor | Response | None:
    """Return who sends a request.

    :raises TypeError: if ``access`` returned something else than it may.
    """
    answer = access(request)
    visitor = await answer if inspect.isawaitable(answer) else answer
    if visitor is not None and not isinstance(visitor, Visitor | Response):
        raise TypeError(f"access must return a Visitor, a Response or None, not {visitor!r}")
    return visitor
