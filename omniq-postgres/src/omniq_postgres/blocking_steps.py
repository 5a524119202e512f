"""Code that waits for each answer, run as steps: the shared transitions, on a connection of any kind.

A transition asks its transaction and goes on with the answer, so it cannot yield its queries. It has a thread of its
own, and runs there only while the job waits for its next query: the two take turns, as coroutines do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeAlias, TypeVar

import psycopg
from attrs import frozen

from omniq_postgres.operations import Query, Rows, Steps

__all__ = ["Ask", "in_steps"]

R = TypeVar("R")

Ask: TypeAlias = Callable[[Query], Rows]
"""Runs a query and returns its rows; raises the driver's error."""


class _Abandoned(BaseException):
    """Raised in the thread when its job is dropped in the middle."""


@frozen
class _Returned(Generic[R]):
    result: R


@frozen
class _Raised:
    error: BaseException


def in_steps(work: Callable[[Ask], R]) -> Steps[R]:
    """Run a function as the steps of a job.

    :param work: given what to ask its queries of.
    """
    asked: SimpleQueue[Query | _Returned[R] | _Raised] = SimpleQueue()
    answers: SimpleQueue[Rows | BaseException] = SimpleQueue()

    def ask(query: Query) -> Rows:
        asked.put(query)
        answer = answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def run() -> None:
        try:
            result = work(ask)
        except BaseException as error:
            asked.put(_Raised(error))
        else:
            asked.put(_Returned(result))

    threading.Thread(target=run, name="omniq-postgres-transition", daemon=True).start()
    waits = False
    try:
        while True:
            said = asked.get()
            if isinstance(said, _Returned):
                return said.result
            if isinstance(said, _Raised):
                raise said.error
            waits = True
            try:
                rows = yield said
            except psycopg.Error as error:
                waits = False
                answers.put(error)
            else:
                waits = False
                answers.put(rows)
    finally:
        if waits:
            answers.put(_Abandoned())
