"""The inside of a child process for CPU-bound tasks; :mod:`omniq._worker.processes` is the worker's side of it.

The worker hands over several tasks at a time, and for each a ticket: a byte in a pipe. The child takes the ticket of a
task before it starts it. The worker can take back what tickets are left, and knows that those tasks have not been
started, and never will be.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Self, TypeAlias
from weakref import WeakKeyDictionary

from attrs import frozen

from omniq._runtime.portal import Portal
from omniq._runtime.signals import STOP_SIGNALS, listening
from omniq._tasks.definitions import Definition
from omniq._tasks.dependencies import Overrides
from omniq._tasks.functions import TaskFunction
from omniq._tasks.options import TaskOptions
from omniq._tasks.payloads import Codec
from omniq._worker.attempt import Attempt, describe_error, failed, run_sync
from omniq._worker.log_forwarding import Outlet, forward_records
from omniq._worker.resources import Resources
from omniq.errors import ConfigurationError
from omniq.plugins import Plugins, default_plugins
from omniq.storage.escaping import get_logger
from omniq.task import Failed, Outcome, Task, TaskError

__all__ = ["Address", "Answer", "Ended", "address_of", "serve"]


@frozen
class ByValue:
    """A function that no module has, and the plugins that its queue was given by hand."""

    function: bytes
    plugins: tuple[tuple[str, bytes], ...]
    """Name and pickled object of each."""


Address: TypeAlias = tuple[str, str] | ByValue
"""Of a function: its module and name; or the function itself, where no module has it."""
_log = get_logger("omniq.worker")

_Run: TypeAlias = Callable[[Task, Outlet], tuple[Outcome, float]]
"""Runs a task, and returns with its outcome for how many seconds."""


@frozen
class Ended:
    """A child's word that a task's function has ended, and that the hooks around it are about to be told."""

    seconds: float
    """For how long the function ran."""


@frozen
class Answer:
    """A child's last word on a task."""

    outcome: Outcome
    seconds: float
    """For how long the function ran."""
    memory: int
    """Bytes that the process takes now; 0 if another task follows."""
    goes_on: bool
    """Whether the child has taken the ticket of the next task."""


def address_of(function: TaskFunction[Any, Any]) -> Address:
    """Return by what a child finds a function.

    :raises ConfigurationError: if it has to travel by value, and cannot.
    """
    definition = function.definition
    if not definition.by_value:
        return definition.function.__module__, definition.function.__qualname__
    import cloudpickle  # type: ignore[import-untyped]  # it has no types

    parts = (definition.function, definition.name, definition.retry_on, function.options, definition.types)
    try:
        dumped: bytes = cloudpickle.dumps(parts)
    except Exception as error:
        raise ConfigurationError(
            f"{definition.name} is defined in no module, and cannot be sent to a process as it is: "
            f"{type(error).__name__}: {error}. Move it into a module, or use nothing in it that cannot be pickled"
        ) from error
    plugins = getattr(function.owner, "plugins", None)
    return ByValue(dumped, () if plugins is None else _by_hand(plugins))


_pickled: WeakKeyDictionary[Plugins, tuple[tuple[str, bytes], ...]] = WeakKeyDictionary()


def _by_hand(plugins: Plugins) -> tuple[tuple[str, bytes], ...]:
    """Return the plugins that were registered by hand as they are at the first call, for children to have them, too."""
    if plugins not in _pickled:
        _pickled[plugins] = tuple(_pickled_plugins(plugins))
    return _pickled[plugins]


def _pickled_plugins(plugins: Plugins) -> Iterator[tuple[str, bytes]]:
    import cloudpickle

    for name, plugin in plugins.by_hand:
        try:
            yield name, cloudpickle.dumps(plugin)
        except Exception as error:  # whatever its class raises
            _log.error(
                "plugin %s cannot be sent to the child process of a function that is in no module, and is not there: "
                "%s: %s; move the function and its queue into a module",
                name,
                type(error).__name__,
                error,
            )


def serve(
    pipe: Connection, tickets: Connection, parent_watch: Connection, settings: dict[str, Any], levels: dict[str, int]
) -> None:
    """Run what comes through the pipe until it closes."""
    # Of its own, so that it can be killed together with what its tasks start.
    os.setpgid(0, 0)
    multiprocessing.current_process().daemon = False  # or its tasks could not use multiprocessing
    # What is to end, and when, is the worker's to say, also if a signal reaches all of its processes. Not SIG_IGN: what
    # the tasks start would inherit that.
    with listening(STOP_SIGNALS, lambda _: None):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        threading.Thread(target=_die_with_parent, args=(parent_watch,), name="omniq-parent-watch", daemon=True).start()
        functions = _Functions(settings)
        outlet = Outlet(pipe)
        forward_records(outlet, levels)
        # Left when the worker has closed the pipe, or is gone.
        with functions, contextlib.suppress(OSError, EOFError):
            while True:
                address, tasks = pipe.recv()
                _serve(outlet, tickets.fileno(), functions, address, tasks)


def _serve(outlet: Outlet, tickets: int, functions: _Functions, address: Address, tasks: Sequence[Task]) -> None:
    own = os.getpid()
    try:
        run = functions.get(address)
    except BaseException as error:  # whatever a module raises on import; a plugin that only the worker has
        run = partial(_fail, describe_error(error))
    starts = _ticket(tickets)
    if starts:
        outlet.send(None)  # the first one starts now
    for index, task in enumerate(tasks, 1):
        if not starts:
            return
        outcome, seconds = run(task, outlet)
        if os.getpid() != own:  # the task has forked, and its child comes back here: it has nothing to say
            os._exit(1)
        starts = index < len(tasks) and _ticket(tickets)
        outlet.send(Answer(outcome, seconds, 0 if starts else _memory(), starts))


def _fail(why: TaskError, task: Task, _: object) -> tuple[Outcome, float]:
    return Failed(id=task.id, delivery=task.delivery, error=why), 0.0


def _run(
    function: TaskFunction[Any, Any], codec: Codec, resources: Resources | BaseException, task: Task, outlet: Outlet
) -> tuple[Outcome, float]:
    if isinstance(resources, BaseException):
        return failed(Attempt(task, function, codec), resources), 0.0
    attempt = _Attempt(task, function, codec, resources, outlet)
    # In a copy of the lifespan's context, as on a thread: what a task sets the next one does not see.
    return resources.context.copy().run(run_sync, attempt), attempt.seconds


class _Attempt(Attempt):
    """An attempt in a child, of which the worker hears as soon as it has decided how it ended."""

    __slots__ = ("_outlet",)

    def __init__(
        self, task: Task, function: TaskFunction[Any, Any], codec: Codec, resources: Resources, outlet: Outlet
    ) -> None:
        super().__init__(task, function, codec, lambda _, progress: outlet.send(progress), resources)
        self._outlet = outlet

    def decide_itself(self) -> bool:
        self._outlet.send(Ended(self.seconds))
        return super().decide_itself()


def _ticket(tickets: int) -> bool:
    try:
        return bool(os.read(tickets, 1))
    except BlockingIOError:
        return False


class _Functions:
    """Finds functions, and makes the worker's codec for each, and what tasks of its queue share.

    It has the plugins of the function's queue, as far as they are known here, and the worker's settings. A context
    manager: leaving it leaves the lifespans.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._codecs: list[tuple[Plugins, Codec]] = []
        self._resources: list[tuple[object, Resources]] = []
        self._portal = Portal()
        self._last: tuple[Address, TaskFunction[Any, Any]] | None = None
        self._owners: dict[tuple[tuple[str, bytes], ...], _Owner] = {}

    def get(self, address: Address) -> _Run:
        """Return what runs tasks of a function."""
        if self._last is None or self._last[0] != address:
            self._last = address, self._carried(address) if isinstance(address, ByValue) else _found(*address)
        function = self._last[1]
        codec = self._codec(getattr(function.owner, "plugins", default_plugins()))
        try:
            resources: Resources | BaseException = self._entered(function.owner)
        except BaseException as error:  # the task is tried again, as after any error of its own
            resources = error
        return partial(_run, function, codec, resources)

    def _entered(self, owner: Any) -> Resources:
        for known, resources in self._resources:
            if known is owner:
                return resources
        resources = Resources(owner)
        resources.enter_blocking(self._portal)
        self._resources.append((owner, resources))
        return resources

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        with contextlib.ExitStack() as stack:
            for _, resources in self._resources:
                stack.callback(resources.leave_blocking, self._portal)

    def _carried(self, address: ByValue) -> TaskFunction[Any, Any]:
        # From the worker, through a pipe that no other process has; never out of the store.
        function, name, retry_on, options, types = pickle.loads(address.function)
        definition = Definition(function, name=name, retry_on=retry_on)
        definition.types = types
        if address.plugins not in self._owners:
            self._owners[address.plugins] = _Owner(address.plugins)
        owner: Any = self._owners[address.plugins]
        assert isinstance(options, TaskOptions)
        return TaskFunction(owner, definition, options)

    def _codec(self, plugins: Plugins) -> Codec:
        for known, codec in self._codecs:
            if known is plugins:
                return codec
        codec = Codec.in_child(plugins, **self._settings)
        self._codecs.append((plugins, codec))
        return codec


class _Owner:
    """What stands for the queue of functions that came by value: its plugins.

    :param by_hand: those that are not installed.
    """

    lifespan = None
    overrides: Overrides = MappingProxyType({})

    def __init__(self, by_hand: tuple[tuple[str, bytes], ...]) -> None:
        self.plugins = default_plugins()
        if by_hand:
            self.plugins = self.plugins.extended(())
        for name, pickled in by_hand:
            self.plugins.register(pickle.loads(pickled), name=name)


def _found(module: str, qualname: str) -> TaskFunction[Any, Any]:
    # An address that the worker's own registry gave; never one out of the store.
    function = attrgetter(qualname)(import_module(module))
    if not isinstance(function, TaskFunction):
        raise TypeError(
            f"{module}.{qualname} is {function!r} in a new process, not the task function; "
            "a task for processes must keep the name that it was defined with"
        )
    return function


def _die_with_parent(parent_watch: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        parent_watch.recv_bytes()  # nothing is ever sent: it returns when the parent is gone
    os.killpg(0, signal.SIGKILL)  # itself, and what its tasks have started


def _memory() -> int:
    """Return the bytes of memory that this process takes now, or its peak where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource  # not there on every system on which this module is imported

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
