"""The backend that Django's tasks framework calls, and what stands around a task of Django that runs."""

from __future__ import annotations

import builtins
import inspect
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields
from datetime import datetime
from importlib import import_module
from typing import Any
from weakref import WeakSet

from attrs import define, field

from omniq import TaskQueue
from omniq._runtime.portal import is_on_running_loop
from omniq.contrib import _needs
from omniq.contrib.django.databases import is_in_memory, url_of
from omniq.errors import ConfigurationError
from omniq.hookspecs import hookimpl
from omniq.storage.ids import new_id
from omniq.task import Ending, Failed, Succeeded, Task, TaskError, TaskState

with _needs("django"):
    from asgiref.sync import ThreadSensitiveContext, sync_to_async
    from django.conf import settings  # type: ignore[import-untyped]  # it brings no types
    from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]  # the same
    from django.db import (  # type: ignore[import-untyped]  # the same
        close_old_connections,
        connections,
        models,
        reset_queries,
        transaction,
    )
    from django.utils import timezone  # type: ignore[import-untyped]  # the same

    try:
        _library = "django.tasks"
        _tasks: Any = import_module(_library)
        _normalize_json: Callable[[Any], Any] = import_module("django.utils.json").normalize_json
    except ImportError:
        _library = "django_tasks"
        _tasks = import_module(_library)
        _normalize_json = import_module("django_tasks.utils").normalize_json
    _base: Any = import_module(f"{_library}.base")
    _signals: Any = import_module(f"{_library}.signals")
    _exceptions: Any = import_module(f"{_library}.exceptions")
    _BaseTaskBackend: Any = import_module(f"{_library}.backends.base").BaseTaskBackend

__all__ = ["OmniQBackend", "backends", "disconnect", "queue_of"]

_InvalidTask: type[Exception] = getattr(_exceptions, "InvalidTask", None) or _exceptions.InvalidTaskError
_TRANSACTIONS = ("join", "on_commit", "now")
_Status = _base.TaskResultStatus
_STATUS = {
    TaskState.RUNNING: _Status.RUNNING,
    TaskState.SUCCEEDED: _Status.SUCCESSFUL,
    TaskState.FAILED: _Status.FAILED,
    TaskState.CANCELLED: _Status.FAILED,
}
"""Any other state is READY."""


@define
class _Shared:
    """What the threads of a process share of a backend."""

    options: Mapping[str, Any]
    queue: TaskQueue
    is_in_database: bool
    """Whether it is in a database of the project's because its options name no other place."""
    tasks: dict[str, Any] = field(factory=dict)
    """By the path of its function the task of Django, as it was declared."""

    def register(self, task: Any) -> None:
        """Make a task's function known to workers."""
        self.queue.task(name=task.module_path, queue=task.queue_name)(_runnable(task))
        self.tasks[task.module_path] = task


_shared: dict[str, _Shared] = {}
_lock = threading.RLock()
_of_threads: WeakSet[Any] = WeakSet()
"""The connections with which workers' threads ran tasks: they last longer than the threads (``CONN_MAX_AGE``)."""


def queue_of(alias: str) -> TaskQueue:
    """Return the queue of a backend.

    :param alias: its name in ``TASKS``.
    :raises ConfigurationError: if it is no backend of OmniQ, or there is none of that name.
    """
    try:
        backend = _tasks.task_backends[alias]
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"TASKS[{alias!r}]: {error}") from error
    if not isinstance(backend, OmniQBackend):
        raise ConfigurationError(
            f"TASKS[{alias!r}] is a {type(backend).__name__}: its BACKEND must be omniq.contrib.django.OmniQBackend"
        )
    return backend.queue


def backends() -> Iterator[OmniQBackend]:
    """Yield the backends of OmniQ that the settings name."""
    for alias in getattr(settings, "TASKS", ()):
        backend = _tasks.task_backends[alias]
        if isinstance(backend, OmniQBackend):
            yield backend


def disconnect() -> None:
    """Close the connections that are left of queues in a database of Django's, and of the threads of their workers.

    Not while one of them works. Who needs a connection again makes a new one.
    """
    for shared in [*_shared.values()]:
        if shared.is_in_database:
            shared.queue.close()
    for wrapper in [*_of_threads]:
        wrapper.inc_thread_sharing()
        wrapper.close()


class OmniQBackend(_BaseTaskBackend):  # type: ignore[misc]  # Django brings no types
    """Keeps the tasks of Django in a store of OmniQ: ``"BACKEND": "omniq.contrib.django.OmniQBackend"`` in ``TASKS``.

    ``OPTIONS`` are those of :class:`~omniq.TaskQueue`, and two more: ``database``, the alias in ``DATABASES`` of the
    database whose transactions count, and ``transaction``, what a task has to do with one that is open when it is
    enqueued: ``"join"`` stores it in that transaction, which must be one of the queue's own database; ``"on_commit"``
    stores it after the commit; ``"now"`` stores it at once. Not given it is ``"join"`` where a ``database`` is named,
    and ``"on_commit"`` where none is. Without a ``url`` a queue that joins is in that database, in tests in Django's
    test database.

    Django makes an object for each thread; they share one queue.

    :param alias: the name in ``TASKS``.
    :param params: what ``TASKS`` says of it.
    :raises ImproperlyConfigured: if an option cannot be used.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        options = dict(self.options)
        database = options.pop("database", None)
        self._transaction = options.pop("transaction", "on_commit" if database is None else "join")
        self._database = "default" if database is None else database
        where = f"TASKS[{alias!r}]['OPTIONS']"
        if self._transaction not in _TRANSACTIONS:
            raise ImproperlyConfigured(
                f"{where}: 'transaction' must be one of {', '.join(_TRANSACTIONS)}, not {self._transaction!r}"
            )
        if self._transaction == "join" and database is None:
            raise ImproperlyConfigured(
                f"{where}: 'transaction': 'join' needs 'database': the alias in DATABASES of the queue's own database"
            )
        if database is not None and database not in settings.DATABASES:
            raise ImproperlyConfigured(f"{where}: DATABASES has no 'database' {database!r}")
        self._where, self._queue_options = where, options
        self._is_in_database = self._transaction == "join" and options.get("url") is None
        if not (self._is_in_database and is_in_memory(self._database)):
            self._current()

    @property
    def queue(self) -> TaskQueue:
        """The queue, which all threads share. In tests it is another one if it is in a database of Django's."""
        return self._current().queue

    @property
    def own_database(self) -> str | None:
        """The alias of the database that the queue is in because the options name no other place."""
        return self._database if self._is_in_database else None

    def _current(self) -> _Shared:
        options = self._queue_options
        if self._is_in_database:
            options = {**options, "url": url_of(self._database)}
        with _lock:
            before = _shared.get(self.alias)
            if before is not None and before.options == options:
                return before
            shared = _Shared(options, _queue(self._where, self.alias, options), self._is_in_database)
            for task in () if before is None else before.tasks.values():
                shared.register(task)
            _shared[self.alias] = shared
        return shared

    def validate_task(self, task: Any) -> None:
        """Check that a task can be enqueued here, and make its function known to workers of this process.

        :param task: the task of Django.
        :raises InvalidTask: if it cannot.
        """
        super().validate_task(task)
        shared = self._current()
        with _lock:
            known = shared.tasks.get(task.module_path)
            if known is not None and known.func is task.func:
                return
            try:
                shared.register(task)
            except (TypeError, ValueError) as error:
                raise _InvalidTask(str(error)) from error

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Hand a task to the queue.

        :param task: the task of Django.
        :param args: its positional arguments: what JSON can hold.
        :param kwargs: its keyword arguments.
        :return: its ``TaskResult``.
        :raises TypeError: if the function cannot take the arguments, or one of them is a model instance or something
            else that JSON cannot hold.
        :raises StorageUnavailable: if the store cannot take it.
        """
        self.validate_task(task)
        for argument in (*args, *kwargs.values()):
            _refuse_models(task.module_path, argument)
        result = _base.TaskResult(
            task=task,
            id=new_id(),
            status=_Status.READY,
            enqueued_at=None,
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=list(args),
            kwargs=dict(kwargs),
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        run_at = task.run_after
        if run_at is not None and timezone.is_naive(run_at):  # USE_TZ is off
            run_at = timezone.make_aware(run_at)
        function = self.queue.functions[task.module_path].using(
            queue=task.queue_name, priority=task.priority, run_at=run_at
        )
        call = function.call(*result.args, **result.kwargs)
        order = self.queue.order(call, id=result.id)

        def store(connection: object = None) -> None:
            if connection is not None:
                call.function = function.using(connection=connection)
            self.queue.submit(call, order)
            object.__setattr__(result, "enqueued_at", _local(datetime.now().astimezone()))
            _signals.task_enqueued.send(type(self), task_result=result)

        if self._transaction == "now" or not connections[self._database].in_atomic_block:
            store()
        elif self._transaction == "join":
            store(connections[self._database])
        else:
            transaction.on_commit(store, using=self._database)
        return result

    def get_result(self, result_id: str) -> Any:
        """Return a task's ``TaskResult`` as it stands now.

        :param result_id: the task's id.
        :raises TaskResultDoesNotExist: if the store has no such task, or this process does not know its function.
        """
        return self._result(result_id, self.queue.get(result_id))

    async def aget_result(self, result_id: str) -> Any:
        """Return a task's ``TaskResult``; see :meth:`get_result`.

        :param result_id: the task's id.
        """
        return self._result(result_id, await self.queue.aget(result_id))

    def _result(self, result_id: str, record: Task | None) -> Any:
        if record is None:
            raise _exceptions.TaskResultDoesNotExist(result_id)
        tasks = self._current().tasks
        if record.name not in tasks:
            # What the store says is never imported.
            raise _exceptions.TaskResultDoesNotExist(
                f"{result_id}: no module that this process has imported declares its task {record.name}"
            )
        return _result_of(record, tasks[record.name], self.alias)


def _queue(where: str, alias: str, given: Mapping[str, Any]) -> TaskQueue:
    options = dict(given)
    plugins = options.pop("plugins", ())
    try:
        return TaskQueue(options.pop("url", None), plugins=[*plugins, _AroundTasks(alias)], **options)
    except (TypeError, ValueError, ConfigurationError) as error:
        raise ImproperlyConfigured(f"{where}: {error}") from error


def _refuse_models(name: str, argument: Any) -> None:
    if isinstance(argument, models.Model):
        kind = type(argument).__name__
        raise TypeError(
            f"{name} was given a {kind} as an argument, and a task cannot keep a model instance: pass its pk "
            f"({argument.pk!r}), and read it in the task with {kind}.objects.get(pk=…)"
        )
    if isinstance(argument, Mapping):
        argument = [*argument.values()]
    if isinstance(argument, list | tuple):
        for item in argument:
            _refuse_models(name, item)


# Results


def _local(moment: datetime | None) -> datetime | None:
    if moment is None or settings.USE_TZ:
        return moment
    naive: datetime = timezone.make_naive(moment)
    return naive


def _result_of(record: Task, declared: Any, alias: str) -> Any:
    """Return the TaskResult of a record."""
    over = [attempt for attempt in record.history if attempt.worker is not None]
    workers, starts = [attempt.worker for attempt in over], [attempt.started_at for attempt in over]
    if record.state is TaskState.RUNNING:
        workers.append(record.worker)
        starts.append(record.started_at)
    # The record is exact of its latest attempt; what is kept of those that are over is rounded.
    starts[-1:] = [record.started_at]
    errors = [attempt.error for attempt in record.history if attempt.error is not None]
    if record.state is TaskState.FAILED and record.error is not None:
        # With the whole of its traceback; and of a task that failed without an attempt, such as one that expired.
        errors[-1:] = [record.error]
    elif record.state is TaskState.CANCELLED:
        errors.append(TaskError(type="TaskCancelled", message="it was cancelled"))
    deferred = record.attempt == 0 and record.run_at > record.created_at
    result = _base.TaskResult(
        task=_as_enqueued(
            declared,
            priority=record.priority,
            queue_name=record.queue,
            run_after=_local(record.run_at) if deferred else None,
        ),
        id=record.id,
        status=_STATUS.get(record.state, _Status.READY),
        enqueued_at=_local(record.created_at),
        started_at=_local(starts[0]),
        finished_at=_local(record.finished_at),
        last_attempted_at=_local(starts[-1]),
        args=list(record.args),
        kwargs=dict(record.kwargs),
        backend=alias,
        errors=[_error(error) for error in errors],
        worker_ids=workers,
    )
    if record.state is TaskState.SUCCEEDED:
        object.__setattr__(result, "_return_value", record.result)
    return result


def _as_enqueued(declared: Any, **changes: Any) -> Any:
    # Not dataclasses.replace: a task is read also if the settings do not allow its queue any more.
    task = object.__new__(type(declared))
    for one in fields(declared):
        object.__setattr__(task, one.name, changes.get(one.name, getattr(declared, one.name)))
    return task


def _error(error: TaskError) -> Any:
    path = error.type
    if "." not in path:
        path = f"{'builtins' if hasattr(builtins, path) else 'omniq.errors'}.{path}"
    return _base.TaskError(exception_class_path=path, traceback=error.traceback or f"{error.type}: {error.message}\n")


# Running


@define
class _Attempt:
    """The attempt that runs in a context."""

    record: Task
    worker: str
    alias: str
    result: Any = None
    """Its TaskResult, once the function is called."""


_attempt: ContextVar[_Attempt] = ContextVar("omniq_django_attempt")


def _runnable(task: Any) -> Callable[..., Any]:
    """Return what a worker calls: the function of a task, with what Django promises it.

    It has no annotations: arguments are what JSON makes of them, as with every backend of Django.
    """
    func, takes_context = task.func, task.takes_context

    def begin() -> tuple[Any, ...]:
        attempt = _attempt.get()
        attempt.result = _result_of(attempt.record, task, attempt.alias)
        _signals.task_started.send_robust(OmniQBackend, task_result=attempt.result)
        return (_base.TaskContext(task_result=attempt.result),) if takes_context else ()

    def end(value: Any) -> Any:
        value = _normalize_json(value)
        object.__setattr__(_attempt.get().result, "_return_value", value)
        return value

    run: Any
    if inspect.iscoroutinefunction(func):

        async def run_on_loop(*args: Any, **kwargs: Any) -> Any:
            # As around a request: what it does with the database is done on a thread of its own, with connections of
            # its own.
            async with ThreadSensitiveContext():
                try:
                    return end(await func(*await sync_to_async(begin)(), *args, **kwargs))
                finally:
                    await sync_to_async(connections.close_all)()

        run = run_on_loop
    else:

        def run_on_thread(*args: Any, **kwargs: Any) -> Any:
            return end(func(*begin(), *args, **kwargs))

        run = run_on_thread
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(run, name, getattr(func, name))
    parameters = [*inspect.signature(func).parameters.values()][1 if takes_context else 0 :]
    run.__signature__ = inspect.Signature([one.replace(annotation=one.empty) for one in parameters])
    run.__annotations__ = {}
    result: Callable[..., Any] = run
    return result


class _AroundTasks:
    """Keeps connections fit for the threads on which tasks run, and sends ``task_finished``.

    :param alias: of the backend.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias

    @hookimpl
    def omniq_around_task(self, task: Task, worker: str) -> Generator[None, Ending, None]:
        """Stand around one attempt.

        :param task: what runs.
        :param worker: the worker's id.
        :return: the steps of a hook that stands around a task.
        """
        on_thread = not is_on_running_loop()
        attempt = _Attempt(task, worker, self._alias)
        token = _attempt.set(attempt)
        try:
            if on_thread:
                _refresh_connections()
            ending = yield
            result = attempt.result
            if result is None or not ending.taken or not _has_ended(result, ending):
                return
            if on_thread:
                _tell_finished(result)
            else:
                # Receivers may use the database, which Django refuses on a loop.
                threading.Thread(target=_tell_finished, args=(result, True), name="omniq-task-finished").start()
        finally:
            _attempt.reset(token)
            if on_thread:
                _refresh_connections()


def _refresh_connections() -> None:
    # As around a request: a connection that broke, or that has lived for CONN_MAX_AGE, is not used again.
    reset_queries()
    close_old_connections()
    _of_threads.update(connections.all(initialized_only=True))


def _has_ended(result: Any, ending: Ending) -> bool:
    """Write into a TaskResult how its last attempt ended; False if it was not the last."""
    if isinstance(ending.outcome, Failed):
        result.errors.append(_error(ending.outcome.error))
        status = _Status.FAILED
    elif isinstance(ending.outcome, Succeeded):
        status = _Status.SUCCESSFUL
    else:
        return False
    object.__setattr__(result, "status", status)
    object.__setattr__(result, "finished_at", _local(datetime.now().astimezone()))
    return True


def _tell_finished(result: Any, close: bool = False) -> None:
    _signals.task_finished.send_robust(OmniQBackend, task_result=result)
    if close:
        connections.close_all()
