"""From what stands on the command line, ``module:attribute`` or a URL, to a TaskQueue."""

from __future__ import annotations

import contextlib
import getpass
import importlib
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from types import ModuleType
from typing import TypeVar

from omniq._client.audit import acting_as
from omniq._client.queue import TaskQueue
from omniq.cli.failures import UsageError, note, suggestion
from omniq.errors import ConfigurationError
from omniq.storage import Capability, Storage
from omniq.storage.posix import IS_POSIX
from omniq.storage.urls import redact, with_slashes

__all__ = [
    "ask",
    "import_module_of",
    "is_shared",
    "load_queue",
    "load_queue_or_url",
    "note_place",
    "now_of",
    "open_queue",
    "place_of",
    "require_shared",
    "store_of",
    "user_name",
]

T = TypeVar("T")

MOST_NAMESPACES = 10
"""So many other namespaces are named at most."""


@contextlib.contextmanager
def open_queue(text: str) -> Iterator[TaskQueue]:
    """Yield the queue of an application, or one on the store of a URL, and disconnect it afterwards.

    :raises UsageError: if it is neither, or its store lives and dies with this process.
    :raises ConfigurationError: if the URL cannot be used.
    """
    queue = load_queue_or_url(text)
    require_shared(queue)
    with queue, acting_as(user_name()):
        yield queue


def user_name() -> str:
    """Return the name of the user whose process this is."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # one without a name, as in a container
        return f"uid {os.getuid()}" if IS_POSIX else "unknown"


async def store_of(queue: TaskQueue) -> Storage:
    """Return the open store of a queue, for what the queue itself does one task at a time."""
    return (await queue.connections.current()).storage


def ask(queue: TaskQueue, question: Callable[[Storage], Awaitable[T]]) -> T:
    """Return what the open store of a queue answers to a question."""

    async def asked() -> T:
        return await question(await store_of(queue))

    return queue.run(asked())


def now_of(queue: TaskQueue) -> datetime:
    """Return the time by the store's clock, to which all of its times belong."""
    return ask(queue, lambda storage: storage.now())


def place_of(queue: TaskQueue) -> str:
    """Return where a command looked: the namespace, the store, and which other namespaces there are in it."""
    if not queue.namespace:  # made with a storage object, which alone knows its own
        return queue.url
    others = [name for name in sorted(ask(queue, lambda storage: storage.namespaces())) if name != queue.namespace]
    named = ", ".join(others[:MOST_NAMESPACES]) + (", …" if others[MOST_NAMESPACES:] else "")
    there = f"; there, too: namespace{'s' if len(others) > 1 else ''} {named} (?namespace=NAME)" if others else ""
    return f"namespace {queue.namespace} of {queue.url}{there}"


def note_place(queue: TaskQueue) -> None:
    """Say on stderr where a command looked that found nothing: perhaps in the wrong place."""
    note(f"looked in {place_of(queue)}")


def load_queue_or_url(text: str) -> TaskQueue:
    """Return the queue of an application, or one on the store of a URL.

    :raises UsageError: if it is neither.
    :raises ConfigurationError: if the URL cannot be used.
    """
    if "://" in text:
        return TaskQueue(text)
    meant = with_slashes(text)
    if meant is not None and ("/" in text or text.endswith((".db", ".sqlite"))):
        raise UsageError(f"{redact(text)!r} is neither a URL nor module:attribute; write {redact(meant)}")
    if ":" not in text and (text.endswith((".db", ".sqlite")) or os.path.isfile(text)) and not text.endswith(".py"):
        raise UsageError(
            f"{text!r} is neither a URL nor module:attribute; for a store in that file write sqlite:///{text}"
        )
    return load_queue(text)


def load_queue(app: str) -> TaskQueue:
    """Import ``module:attribute``, with the current folder on the path, and give the TaskQueue that it names.

    :raises UsageError: if there is none; the message says what is there.
    :raises ConfigurationError: if the queue's URL or options cannot be used.
    """
    name, colon, attribute = app.partition(":")
    if "@" in app and "://" not in app:
        # A URL with a mistake in it, and perhaps with a password: not shown as it was typed.
        raise UsageError(f"{redact(app)!r} is neither a URL such as redis://user:password@host nor module:attribute")
    if "://" in app:
        raise UsageError(f"{redact(app)!r} is the URL of a store; name your TaskQueue as module:attribute")
    if os.sep in name or name.endswith(".py"):
        name = name.removesuffix(".py").strip("./").replace(os.sep, ".")
        raise UsageError(f"{app!r} is not module:attribute; try {name}:{attribute or 'queue'}")
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{app!r} is not module:attribute, such as shop.tasks:queue")
    module = import_module_of(name)
    if not colon or not attribute:
        raise UsageError(f"{app!r} names no attribute{_queues_in(module)}; write {name}:ATTRIBUTE")
    return _find(module, attribute)


def import_module_of(name: str) -> ModuleType:
    """Import a module of an application, with the current folder on the path.

    :raises UsageError: if it is not there or cannot be imported; the message says where it broke.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ConfigurationError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UsageError(_broken(name, error)) from error
        raise UsageError(
            f"there is no module {error.name!r}; "
            f"it is looked for in the current folder ({folder}) and among the installed packages"
        ) from error
    except (Exception, SystemExit) as error:
        raise UsageError(_broken(name, error)) from error


def _broken(name: str, error: BaseException) -> str:
    ours = (__file__, importlib.__file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in ours]
    known = [frame for frame in frames if not frame.filename.startswith("<")]
    # A SyntaxError names its place itself: no frame of the module was ever begun.
    place = f" ({known[-1].filename}, line {known[-1].lineno})" if known else ""
    return f"importing {name} failed: {type(error).__name__}: {error}{place}"


def _find(module: ModuleType, attribute: str) -> TaskQueue:
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            close = suggestion(part, _names_of_queues(module))
            raise UsageError(
                f"module {module.__name__} has no attribute {attribute!r}{close or _queues_in(module)}"
            ) from None
    if not isinstance(found, TaskQueue):
        raise UsageError(
            f"{module.__name__}:{attribute} is not a TaskQueue but of type {type(found).__name__}{_queues_in(module)}"
        )
    return found


def _names_of_queues(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, TaskQueue)]


def _queues_in(module: ModuleType) -> str:
    names = _names_of_queues(module)
    if not names:
        return f"; there is no TaskQueue in {module.__name__}"
    if len(names) == 1:
        return f"; the TaskQueue there is {names[0]}"
    return f"; the TaskQueues there are {', '.join(names)}"


def is_shared(queue: TaskQueue) -> bool:
    """Whether other processes see what this one stores."""
    return Capability.SHARED_BETWEEN_PROCESSES in queue.connections.sibling().capabilities


def require_shared(queue: TaskQueue) -> None:
    """Refuse a store that lives and dies with this process.

    :raises UsageError: if the queue's store is one.
    """
    if not is_shared(queue):
        raise UsageError(
            f"{queue.url} lives inside one process, and a command is a process of its own; "
            "use a store that processes share, such as sqlite:///jobs.db"
        )
