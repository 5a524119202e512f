"""The caller's own transaction: what is enqueued or finished through it exists if and only if the caller commits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncRawCursor, RawCursor
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row

from omniq.flow import NewFlow
from omniq.storage import Enqueued
from omniq.storage.transactions import CallerTransaction
from omniq.task import NewTask, Outcome
from omniq_postgres import binary_params, flows
from omniq_postgres.driver_adapters import Driver, DriverAdapter, recognise
from omniq_postgres.enqueueing import enqueue
from omniq_postgres.errors import translated
from omniq_postgres.finishing import finish
from omniq_postgres.notifier import notify
from omniq_postgres.operations import Context, Job, News, Query, Rows, Steps
from omniq_postgres.settings import Settings
from omniq_postgres.statements import Statements

__all__ = ["join"]

R = TypeVar("R")


def join(connection: object, settings: Settings, statements: Statements) -> CallerTransaction:
    """Take part in the caller's transaction; see :meth:`~omniq.storage.Storage.join`.

    :raises TypeError: if the connection is of no kind that is known here.
    :raises ValueError: if it leads to another database.
    """
    caller = recognise(connection)
    driver = caller.at_hand()
    if driver is not None:
        _check_database(driver, settings)
    return _Joined(caller, settings, statements)


def _check_database(driver: Driver, settings: Settings) -> None:
    if driver.closed:
        return
    host, port, database = _place_of(settings)
    info = driver.info
    # Of different names for a server nothing can be told.
    same_place = info.host == host and str(info.port) == str(port)
    if same_place and database is not None and info.dbname != database:
        raise ValueError(
            f"the connection leads to the database {info.dbname!r}, the tasks of {settings.shown} are in "
            f"{database!r}: one transaction cannot span both"
        )


def _place_of(settings: Settings) -> tuple[Any, Any, Any]:
    # The other parameters, of which one is the password, are in no variable where an error is raised.
    ours = conninfo_to_dict(settings.dsn, **settings.parameters)
    return ours.get("host"), ours.get("port", 5432), ours.get("dbname")


def _told(job: Job[R]) -> Job[R]:
    """Have a job's news told by the same transaction: it is heard once that is committed."""

    def steps(context: Context) -> Steps[R]:
        result = yield from job(context)
        yield from notify(context.news, context)
        return result

    return steps


def _enqueued(tasks: Sequence[NewTask]) -> Job[list[Enqueued]]:
    return partial(flows.enqueue, tasks, None) if flows.belong_to_flows(tasks, None) else partial(enqueue, tasks)


class _Joined(CallerTransaction):
    """The caller's connection, of whichever kind."""

    def __init__(self, caller: DriverAdapter, settings: Settings, statements: Statements) -> None:
        self._caller = caller
        self.is_async = caller.is_async
        self._settings = settings
        self._statements = statements

    def enqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        return self._run(_enqueued(tasks), "aenqueue") if tasks else []

    async def aenqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        return await self._arun(_enqueued(tasks)) if tasks else []

    def enqueue_flow(self, tasks: Sequence[NewTask], flow: NewFlow | None) -> list[Enqueued]:
        return self._run(partial(flows.enqueue, tasks, flow), "aenqueue_flow") if tasks else []

    async def aenqueue_flow(self, tasks: Sequence[NewTask], flow: NewFlow | None) -> list[Enqueued]:
        return await self._arun(partial(flows.enqueue, tasks, flow)) if tasks else []

    def finish(self, outcome: Outcome) -> bool:
        return self._run(partial(finish, [outcome]), "afinish")[0]

    async def afinish(self, outcome: Outcome) -> bool:
        return (await self._arun(partial(finish, [outcome])))[0]

    def _steps(self, job: Job[R]) -> Steps[R]:
        return _told(job)(Context(self._statements, News(), joined=True))

    def _translated(self, error: psycopg.Error, driver: Driver) -> Exception:
        # The caller's connection may lead to another database than the store is in.
        return translated(error, self._settings.shown, "" if driver.closed else driver.info.dbname)

    def _run(self, job: Job[R], twin: str) -> R:
        if self._caller.is_async:
            raise TypeError(
                f"this connection is of an asynchronous driver ({self._caller.name}): use the method's twin, {twin}"
            )
        driver = self._caller.connect()
        steps = self._steps(job)
        try:
            query = next(steps)
            while True:
                query = steps.send(_rows(driver, query))
        except StopIteration as done:
            result: R = done.value
            return result
        except psycopg.Error as error:
            raise self._translated(error, driver) from error

    async def _arun(self, job: Job[R]) -> R:
        driver = await self._caller.aconnect()
        steps = self._steps(job)
        try:
            query = next(steps)
            while True:
                rows = await _arows(driver, query) if self._caller.is_async else _rows(driver, query)
                query = steps.send(rows)
        except StopIteration as done:
            result: R = done.value
            return result
        except psycopg.Error as error:
            raise self._translated(error, driver) from error


# A cursor of ours: what the caller's connection does with rows and values is the caller's, and stays.


def _rows(driver: Any, query: Query) -> Rows:
    found: Rows = []
    for one in (*query.lead, query):
        with RawCursor(driver, row_factory=tuple_row) as cursor:
            binary_params.register(cursor.adapters)
            cursor.execute(one.text, one.parameters, binary=True)
            found += cursor.fetchall() if cursor.description else []
    return found


async def _arows(driver: Any, query: Query) -> Rows:
    found: Rows = []
    for one in (*query.lead, query):
        async with AsyncRawCursor(driver, row_factory=tuple_row) as cursor:
            binary_params.register(cursor.adapters)
            await cursor.execute(one.text, one.parameters, binary=True)
            found += await cursor.fetchall() if cursor.description else []
    return found
