"""OmniQ: a task queue that runs real work on the store you already have.

Every public name is here. Each is imported when it is first used, so that ``import omniq`` costs next to nothing: a
process that only enqueues never loads the worker, and a plugin that only needs ``omniq.hookimpl`` loads neither.
"""

# Under private names: whatever is public here is OmniQ's.
import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from omniq._client.audit import acting_as as acting_as
    from omniq._client.explain import Reason as Reason
    from omniq._client.explain import ReasonKind as ReasonKind
    from omniq._client.queue import TaskQueue as TaskQueue
    from omniq._client.selection import Selection as Selection
    from omniq._client.selection import Step as Step
    from omniq._tasks.context import CurrentTask as CurrentTask
    from omniq._tasks.context import current_task as current_task
    from omniq._tasks.dependencies import Depends as Depends
    from omniq._tasks.dependencies import WorkerState as WorkerState
    from omniq._tasks.functions import AsyncTaskFunction as AsyncTaskFunction
    from omniq._tasks.functions import TaskCall as TaskCall
    from omniq._tasks.functions import TaskFunction as TaskFunction
    from omniq._tasks.groups import TaskGroup as TaskGroup
    from omniq._tasks.groups import each as each
    from omniq._tasks.groups import gather as gather
    from omniq._tasks.handle import FlowHandle as FlowHandle
    from omniq._tasks.handle import TaskHandle as TaskHandle
    from omniq._tasks.handle import as_completed as as_completed
    from omniq._tasks.stand_ins import Ended as Ended
    from omniq._worker.worker import Worker as Worker
    from omniq._worker.worker_info import WorkerAbout as WorkerAbout
    from omniq._worker.worker_info import WorkerInfo as WorkerInfo
    from omniq.errors import ArgumentsMismatch as ArgumentsMismatch
    from omniq.errors import ConfigurationError as ConfigurationError
    from omniq.errors import CorruptRecord as CorruptRecord
    from omniq.errors import FlowClosed as FlowClosed
    from omniq.errors import FlowNotFound as FlowNotFound
    from omniq.errors import InvalidTrigger as InvalidTrigger
    from omniq.errors import LeaseLost as LeaseLost
    from omniq.errors import NotCommitted as NotCommitted
    from omniq.errors import OmniQError as OmniQError
    from omniq.errors import PayloadRejected as PayloadRejected
    from omniq.errors import PayloadTooLarge as PayloadTooLarge
    from omniq.errors import PluginConflict as PluginConflict
    from omniq.errors import ResultGone as ResultGone
    from omniq.errors import ResultTimeout as ResultTimeout
    from omniq.errors import ScheduleNotFound as ScheduleNotFound
    from omniq.errors import SchemaMismatch as SchemaMismatch
    from omniq.errors import SerializationError as SerializationError
    from omniq.errors import StorageError as StorageError
    from omniq.errors import StorageUnavailable as StorageUnavailable
    from omniq.errors import TaskCancelled as TaskCancelled
    from omniq.errors import TaskFailed as TaskFailed
    from omniq.errors import TaskNotFound as TaskNotFound
    from omniq.errors import TaskTimeout as TaskTimeout
    from omniq.errors import UnknownPlugin as UnknownPlugin
    from omniq.errors import UnknownScheme as UnknownScheme
    from omniq.errors import UnknownTask as UnknownTask
    from omniq.errors import UpstreamFailed as UpstreamFailed
    from omniq.errors import WorkerLost as WorkerLost
    from omniq.flow import Flow as Flow
    from omniq.flow import Gate as Gate
    from omniq.hookspecs import hookimpl as hookimpl
    from omniq.hookspecs import hookspec as hookspec
    from omniq.limit import Debounce as Debounce
    from omniq.limit import Limit as Limit
    from omniq.limit import Rate as Rate
    from omniq.retry import Exponential as Exponential
    from omniq.retry import Fixed as Fixed
    from omniq.retry import Linear as Linear
    from omniq.retry import RetryPolicy as RetryPolicy
    from omniq.schedule import Misfire as Misfire
    from omniq.schedule import Overlap as Overlap
    from omniq.schedule import Schedule as Schedule
    from omniq.schedule import Trigger as Trigger
    from omniq.storage import QueueStats as QueueStats
    from omniq.task import Attempt as Attempt
    from omniq.task import Progress as Progress
    from omniq.task import Task as Task
    from omniq.task import TaskError as TaskError
    from omniq.task import TaskState as TaskState
    from omniq.triggers import At as At
    from omniq.triggers import Cron as Cron
    from omniq.triggers import Every as Every

_DISTRIBUTION = "omniq-core"  # by which our other modules know that this file is ours, see errors.py

_HOMES = {
    "omniq._tasks.context": ("CurrentTask", "current_task"),
    "omniq.errors": (
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
    ),
    "omniq._tasks.dependencies": ("Depends", "WorkerState"),
    "omniq._tasks.functions": ("AsyncTaskFunction", "TaskCall", "TaskFunction"),
    "omniq._tasks.groups": ("TaskGroup", "each", "gather"),
    "omniq._tasks.stand_ins": ("Ended",),
    "omniq.flow": ("Flow", "Gate"),
    "omniq._tasks.handle": ("FlowHandle", "TaskHandle", "as_completed"),
    "omniq.hookspecs": ("hookimpl", "hookspec"),
    "omniq.limit": ("Debounce", "Limit", "Rate"),
    "omniq._client.explain": ("Reason", "ReasonKind"),
    "omniq._client.audit": ("acting_as",),
    "omniq._client.queue": ("TaskQueue",),
    "omniq._client.selection": ("Selection", "Step"),
    "omniq.retry": ("Exponential", "Fixed", "Linear", "RetryPolicy"),
    "omniq.schedule": ("Misfire", "Overlap", "Schedule", "Trigger"),
    "omniq.storage": ("QueueStats",),
    "omniq.task": ("Attempt", "Progress", "Task", "TaskError", "TaskState"),
    "omniq.triggers": ("At", "Cron", "Every"),
    "omniq._worker.worker": ("Worker",),
    "omniq._worker.worker_info": ("WorkerAbout", "WorkerInfo"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605  # type checkers read the imports above


if not _typing.TYPE_CHECKING:  # a type checker reads the imports above, and tells of names that are not there

    def __getattr__(name: str) -> _typing.Any:
        try:
            home = _HOME_OF[name]
        except KeyError:
            raise AttributeError(f"module 'omniq' has no attribute {name!r}") from None
        value = getattr(_importlib.import_module(home), name)
        globals()[name] = value  # the next use finds it without this detour
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
