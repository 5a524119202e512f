"""The hooks around a call that enqueues tasks, and the headers that they add."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from attrs import define, evolve

from omniq._hook_calls import Around, Entered
from omniq._tasks.options import check_headers
from omniq._tasks.payloads import Codec
from omniq.storage import Enqueued
from omniq.storage.body import load_content, split_body, with_header
from omniq.task import NewTask

__all__ = ["Enqueueing", "enqueueing"]


@define
class Enqueueing:
    """A call that enqueues tasks, within the hooks around it."""

    tasks: Sequence[NewTask]
    """What is to be stored, with the headers that the hooks have added."""
    stored: Sequence[Enqueued] | None = None
    """What the store answered; the caller's to set. None: nothing came to be stored, and that is no error."""


@contextlib.contextmanager
def enqueueing(around: Around, codec: Codec, tasks: Sequence[NewTask]) -> Iterator[Enqueueing]:
    """Enter the hooks around a call that enqueues tasks, and leave them with what the store answered.

    :param around: the hooks, see :attr:`omniq.plugins.Plugins.around_enqueue`.
    :param codec: signs the tasks that get headers.
    """
    entered = around(tasks=tuple(tasks))
    call = Enqueueing(_with_added(entered, codec, tasks))
    try:
        yield call
    except BaseException as error:
        entered.abandon(error)
        raise
    if call.stored is None:
        entered.abandon()
    else:
        entered.leave(tuple(call.stored))


def _with_added(entered: Entered, codec: Codec, tasks: Sequence[NewTask]) -> Sequence[NewTask]:
    """Return the tasks with the headers that the hooks have yielded; what one of them cannot have is logged."""
    added: list[dict[str, str]] = [{} for _ in tasks]
    for plugin, yielded in entered.yielded:
        if yielded is None:
            continue
        try:
            _merge(added, tasks, yielded)
        except (TypeError, ValueError) as error:
            entered.ignore(plugin, error)
    return [
        _with_headers(codec, task, headers) if headers else task for task, headers in zip(tasks, added, strict=True)
    ]


def _merge(added: list[dict[str, str]], tasks: Sequence[NewTask], yielded: object) -> None:
    if isinstance(yielded, str) or not isinstance(yielded, Sequence) or len(yielded) != len(tasks):
        raise ValueError(f"it must yield a mapping of headers for each of {len(tasks)} tasks, or None, not {yielded!r}")
    # All or none: what is found wrong with one task's must not leave the others' behind.
    merged = [_merged(task, own, more) for task, own, more in zip(tasks, added, yielded, strict=True)]
    for own, more in zip(added, merged, strict=True):
        own.update(more)


def _merged(task: NewTask, added: Mapping[str, str], more: Mapping[str, str]) -> Mapping[str, str]:
    there = {**added, **_headers_of(task)}
    check_headers({**check_headers(more), **there})
    return {name: value for name, value in more.items() if name not in there}


def _headers_of(task: NewTask) -> Mapping[str, str]:
    return load_content(split_body(task.body)[1])[0].headers


def _with_headers(codec: Codec, task: NewTask, added: Mapping[str, str]) -> NewTask:
    headers = {**added, **_headers_of(task)}
    return codec.sign(evolve(task, body=with_header(task.body, headers=headers)))
