"""Who does something to tasks, queues and schedules: for plugins that keep a record of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from omniq._tasks.options import check_text
from omniq.plugins import Plugins

__all__ = ["acting_as", "tell_action"]

_actor: ContextVar[str | None] = ContextVar("omniq_actor", default=None)


@contextlib.contextmanager
def acting_as(actor: str) -> Iterator[None]:
    """Name who does what is done within the block, for the event ``omniq_action_taken``.

    It holds for this thread or coroutine, and for what they start in their context.

    :param actor: such as the name of a user; 1 to 500 characters.
    :return: a context manager; blocks may be nested, and the inner one counts.
    :raises TypeError: if it is no string.
    :raises ValueError: if it is empty or too long.
    """
    token = _actor.set(check_text(actor, "the actor"))
    try:
        yield
    finally:
        _actor.reset(token)


def tell_action(plugins: Plugins, action: str, targets: Sequence[str], done: int) -> None:
    """Tell plugins of a control action, once the store has answered.

    :param action: the method's name, such as ``cancel``.
    :param targets: the ids or names that it was asked for.
    :param done: for how many things it took effect.
    """
    event = plugins.event("omniq_action_taken")
    if event is not None:
        event(action=action, targets=tuple(targets), done=done, actor=_actor.get())
