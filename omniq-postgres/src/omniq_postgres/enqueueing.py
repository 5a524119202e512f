"""Enqueue: new tasks into the store, all or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg.errors import UniqueViolation

from omniq.storage import Enqueued
from omniq.task import NewTask
from omniq_postgres import binary_params
from omniq_postgres.encoding import columns_of, key_of, values_of
from omniq_postgres.notifier import telling
from omniq_postgres.operations import Context, News, Steps

__all__ = ["FEW", "enqueue", "enqueue_rest", "settle", "store"]

FEW = 20
"""So few tasks are enqueued by one plan whatever their number; more are worth a plan of their own, as a plan for few
compares each with each."""


def store(
    tasks: Sequence[NewTask], context: Context, columns: Sequence[binary_params.Parameter] | None = None
) -> Steps[list[Enqueued]]:
    """Store tasks in the way that is quickest for them; see :meth:`~omniq.storage.Storage.enqueue`.

    Not within a transaction, which a task that is stored already may make fail.

    :param columns: what ``columns_of`` gives of them, if it is known.
    """
    if _is_plain(tasks):
        try:
            if len(tasks) == 1 and tasks[0].run_at is None and tasks[0].expires is None:
                return (yield from _enqueue_single(tasks[0], context))
            return (yield from _enqueue_fresh(tasks, columns or columns_of(tasks), context))
        except UniqueViolation:
            pass
    return (yield from enqueue(tasks, context))


def _is_plain(tasks: Sequence[NewTask]) -> bool:
    """Whether :func:`_enqueue_fresh` will do: no unique keys, and no id twice."""
    if len(tasks) == 1:
        return tasks[0].unique is None
    return all(task.unique is None for task in tasks) and len({task.id for task in tasks}) == len(tasks)


def _enqueue_single(task: NewTask, context: Context) -> Steps[list[Enqueued]]:
    news = News()
    news.ready(task.queue)
    yield telling(news, context.query("enqueue.single", *values_of(task)), context)
    return [Enqueued(task.id, True)]


def _enqueue_fresh(
    tasks: Sequence[NewTask], columns: Sequence[binary_params.Parameter], context: Context
) -> Steps[list[Enqueued]]:
    """Store tasks without unique keys.

    A task whose id is stored already makes the statement fail (UniqueViolation): then :func:`enqueue` is to be done.
    """
    later = yield context.query("enqueue.fresh", *columns)
    context.news.tasks += len(tasks)
    for queue, seconds in later:
        context.news.ready(queue, seconds)
    for queue in {task.queue for task in tasks if task.run_at is None}:
        context.news.ready(queue)
    if any(task.run_at is not None for task in tasks):
        scheduled = {row[0] for row in later}
        for queue in {task.queue for task in tasks if task.run_at is not None} - scheduled:
            context.news.ready(queue)
    return [Enqueued(task.id, True) for task in tasks]


def enqueue(tasks: Sequence[NewTask], context: Context) -> Steps[list[Enqueued]]:
    """Store tasks; see :meth:`~omniq.storage.Storage.enqueue`."""
    first: dict[str, NewTask] = {}
    for task in tasks:
        first.setdefault(task.id, task)
    return (yield from enqueue_rest(tasks, first, {}, context))


def enqueue_rest(
    tasks: Sequence[NewTask], first: Mapping[str, NewTask], answers: dict[str, Enqueued], context: Context
) -> Steps[list[Enqueued]]:
    """Store what of some tasks is not stored yet.

    :param tasks: all of them.
    :param first: each of them once, by id.
    :param answers: of those that are settled already.
    :return: one entry for each of ``tasks``, in order.
    """
    open_ones = [task for task in first.values() if task.id not in answers]
    while open_ones:
        rows = yield context.query("enqueue.guarded", *columns_of(open_ones), prepare=len(open_ones) <= FEW)
        yield from settle(open_ones, rows, answers, context)
        # Those whose key was taken by a task that has ended again by now get another try.
        open_ones = [task for task in open_ones if task.id not in answers]
    results = []
    for task in tasks:
        results.append(answers[task.id])
        # Named again, it is there already.
        if answers[task.id].created:
            answers[task.id] = Enqueued(task.id, False)
    return results


def settle(
    tasks: Sequence[NewTask], rows: Iterable[Sequence[Any]], answers: dict[str, Enqueued], context: Context
) -> Steps[None]:
    """Read what became of tasks that were to be stored.

    :param rows: as ``enqueue.guarded`` gives them: id, stored, known before, holder of the key, seconds to ``run_at``.
    :param answers: where it is noted; a task that is not there afterwards can be stored now.
    """
    found = {row[0]: row for row in rows}
    holders: dict[str, str] = {}
    for task in tasks:
        task_id, created, known, holder, seconds = found[task.id]
        if created:
            answers[task_id] = Enqueued(task_id, True)
            context.news.ready(task.queue, seconds)
            if task.unique is not None:
                holders[task.unique] = task_id
        elif known:
            answers[task_id] = Enqueued(task_id, False)
        elif holder is not None:
            answers[task_id] = Enqueued(holder, False)
    for task in tasks:
        if task.id not in answers and task.unique in holders:
            answers[task.id] = Enqueued(holders[task.unique], False)
    left = [task for task in tasks if task.id not in answers]
    if left:
        # They met tasks that were not committed when the statement began; those are to be seen now.
        ids, keys = (
            binary_params.uuids([task.id for task in left]),
            binary_params.texts([key_of(task.unique) for task in left]),
        )
        for task_id, known, holder in (yield context.query("enqueue.found", ids, keys)):
            if known:
                answers[task_id] = Enqueued(task_id, False)
            elif holder is not None:
                answers[task_id] = Enqueued(holder, False)
