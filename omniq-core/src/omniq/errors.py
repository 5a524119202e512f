"""Every error that OmniQ raises, so that one ``except OmniQError`` catches them all.

::

    OmniQError
    ├── ConfigurationError            a URL, option or plugin that cannot be used (also a ValueError)
    │   ├── UnknownScheme             no installed storage answers to the URL's scheme
    │   ├── UnknownPlugin             no installed plugin has that name (serializer, retry policy, trigger)
    │   └── PluginConflict            two distributions claim one name
    ├── SerializationError            a value cannot be encoded or decoded; names the path to it
    │   ├── PayloadTooLarge           it can, but is over the limit
    │   └── ArgumentsMismatch         arguments can be read, but do not fit the function
    ├── PayloadRejected               a stored task that a worker must not decode
    ├── UnknownTask                   no function is registered under that name
    ├── TaskNotFound                  no task with that id (also a LookupError)
    ├── TaskFailed                    the task ended in failure; ``.error`` holds the rest
    ├── TaskCancelled                 the task was cancelled before it had a result
    ├── UpstreamFailed                a task of a flow cannot run, as one that it needs did not succeed
    ├── ResultGone                    the result that a task of a flow needs is not stored any more
    ├── FlowClosed                    nothing can be added to this place of a flow any more
    ├── FlowNotFound                  no flow with that id (also a LookupError)
    ├── TaskTimeout                   the task ran longer than its ``timeout`` (also a TimeoutError)
    ├── WorkerLost                    the worker that ran the task died or lost its lease
    ├── LeaseLost                     a task completed itself that is not this worker's any more: roll back
    ├── NotCommitted                  a task completed itself in a transaction that was not committed
    ├── ResultTimeout                 the task has not ended yet (also a TimeoutError)
    ├── InvalidTrigger                a schedule that can never fire (also a ValueError)
    ├── ScheduleNotFound              no schedule with that id (also a LookupError)
    └── StorageError                  the store could not do what was asked
        ├── StorageUnavailable        it cannot be reached, is full, read-only or locked; try again later
        ├── SchemaMismatch            it was written by another version of OmniQ, or is no store of ours
        └── CorruptRecord             a record in it cannot be read
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniq.task import TaskError

if vars(sys.modules["omniq"]).get("_DISTRIBUTION") != "omniq-core":
    # Said here, as every other module imports this one first. Whichever of two projects was installed last has its
    # files in this folder, and an uninstallation takes them away for both.
    raise ImportError(
        f"omniq/__init__.py beside {__file__} is missing, or of another project: the package index has one named "
        "'omniq', which installs into the same folder. OmniQ's own distributions are omniq-core, omniq-local, "
        "omniq-redis, omniq-postgres and omniq-nats. Type: pip uninstall -y omniq, then "
        "pip install --force-reinstall --no-deps omniq-core"
    )

__all__ = [
    "ArgumentsMismatch",
    "ConfigurationError",
    "CorruptRecord",
    "FlowClosed",
    "FlowNotFound",
    "InvalidTrigger",
    "LeaseLost",
    "NotCommitted",
    "OmniQError",
    "PayloadRejected",
    "PayloadTooLarge",
    "PluginConflict",
    "ResultGone",
    "ResultTimeout",
    "ScheduleNotFound",
    "SchemaMismatch",
    "SerializationError",
    "StorageError",
    "StorageUnavailable",
    "TaskCancelled",
    "TaskFailed",
    "TaskNotFound",
    "TaskTimeout",
    "UnknownPlugin",
    "UnknownScheme",
    "UnknownTask",
    "UpstreamFailed",
    "WorkerLost",
]


class OmniQError(Exception):
    """The base of every error in this module.

    The ``args`` of each are the parameters of its class, from which pickle and copy make it anew.
    """


class ConfigurationError(OmniQError, ValueError):
    """A URL, an option or a plugin that cannot be used."""


class UnknownScheme(ConfigurationError):
    """No installed storage answers to the URL's scheme; the message names the extra to install."""


class UnknownPlugin(ConfigurationError):
    """No installed plugin provides the serializer, retry policy or trigger of that name."""


class PluginConflict(ConfigurationError):
    """Two distributions claim the same name; the message names both."""


class SerializationError(OmniQError):
    """A value cannot be encoded or decoded.

    :param message: what is wrong with the value.
    :param path: where the value stands, such as ``args[0].items[3].when``; empty if it is the whole.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message, path)
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class PayloadTooLarge(SerializationError):
    """The encoded arguments or result are larger than the limit."""


class ArgumentsMismatch(SerializationError):
    """The arguments of a task can be read, but do not fit the function as this program has it.

    Another version of the program may take them: a worker puts the task back, as one whose function it does not know.
    """


class PayloadRejected(OmniQError):
    """What a store handed out must not be decoded here: of a serializer not accepted, too large, unsigned or altered.

    A task ends so, with its bytes kept; a result or a schedule raises it for each caller that asks for it.
    """


class UnknownTask(OmniQError):
    """No function is registered under the name that a task carries."""


class TaskNotFound(OmniQError, LookupError):
    """No task with that id is in the store: it never was, was deleted, or its result's time is over."""

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return f"no task {self.task_id!r} in this store: it was deleted, its result_ttl is over, or it never was"


class TaskFailed(OmniQError):
    """The task ended in failure.

    :param task_id: the task's id.
    :param error: type, message and the worker's traceback.
    """

    def __init__(self, task_id: str, error: TaskError) -> None:
        super().__init__(task_id, error)
        self.task_id = task_id
        self.error = error

    def __str__(self) -> str:
        text = f"{self.error.type}: {self.error.message} (task {self.task_id})"
        if self.error.traceback:
            text += f"\n\nThe worker's traceback:\n{self.error.traceback.rstrip()}"
        return text


class TaskCancelled(OmniQError):
    """The task was cancelled, or expired, before it had a result.

    :param task_id: the task's id.
    :param error: the task's error. It is kept where another task was the reason: one that this one needed did not
        succeed (``UpstreamFailed``), or took the place of this debounced one (``Superseded``). That of an earlier
        attempt is dropped, since it does not tell why the task was cancelled.
    """

    def __init__(self, task_id: str, error: TaskError | None = None) -> None:
        error = error if error is not None and error.type in ("UpstreamFailed", "Superseded") else None
        super().__init__(task_id, error)
        self.task_id = task_id
        self.error = error

    def __str__(self) -> str:
        why = "" if self.error is None else f", as {self.error.message}"
        return f"task {self.task_id} was cancelled{why}"


class UpstreamFailed(OmniQError):
    """A task of a flow cannot run, as one whose success it needs did not succeed."""


class ResultGone(OmniQError):
    """The result that a task of a flow needs is not stored any more: the task that returned it was deleted."""


class FlowClosed(OmniQError):
    """Nothing can be added to this place of a flow any more: the gate has opened or is broken, or it is cancelled."""


class FlowNotFound(OmniQError, LookupError):
    """No flow with that id is in the store."""

    def __init__(self, flow_id: str) -> None:
        super().__init__(flow_id)
        self.flow_id = flow_id

    def __str__(self) -> str:
        return f"no flow {self.flow_id!r} in this store: its result_ttl is over, or it never was"


class TaskTimeout(OmniQError, TimeoutError):
    """The task ran longer than its ``timeout``."""


class WorkerLost(OmniQError):
    """The worker that ran the task died, or lost its lease, in the last attempt that was left."""


class LeaseLost(OmniQError):
    """The task completed itself in the caller's transaction, but is not this worker's any more.

    Its lease was lost, or it has ended already. Nothing was recorded; the transaction is to be rolled back.
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return f"task {self.task_id} is not this worker's any more: its lease was lost, or it has ended; roll back"


class NotCommitted(OmniQError):
    """The task completed itself in a transaction of its own that was not committed, and then returned."""

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return (
            f"complete_in was called for task {self.task_id} but its transaction was not committed: "
            "whatever the task did in it is undone"
        )


class ResultTimeout(OmniQError, TimeoutError):
    """The task has not ended within the time that the caller was ready to wait. The task itself goes on."""


class InvalidTrigger(OmniQError, ValueError):
    """A trigger that can never fire, or whose text cannot be read."""


class ScheduleNotFound(OmniQError, LookupError):
    """No schedule with that id is in the store."""

    def __init__(self, schedule_id: str) -> None:
        super().__init__(schedule_id)
        self.schedule_id = schedule_id

    def __str__(self) -> str:
        return f"no schedule {self.schedule_id!r} in this store"


class StorageError(OmniQError):
    """The store could not do what was asked."""


class StorageUnavailable(StorageError):
    """The store cannot be reached, is full, read-only or locked. Nothing was stored; try again later."""


class SchemaMismatch(StorageError):
    """The store was written by another version of OmniQ, or is no store of OmniQ at all."""


class CorruptRecord(StorageError):
    """A record in the store cannot be read.

    :param message: which, and why.
    :param kind: what it is: ``"task"``, ``"schedule"``; empty if that is not known.
    :param name: its id or name; None if that is not known.
    :param place: where it stands in the store.
    """

    def __init__(self, message: str, *, kind: str = "", name: str | None = None, place: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.name = name
        self.place = place
