"""What a worker says of itself when it starts: what it runs, on which store, and how much at once."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from omniq._client.queue import TaskQueue
from omniq._worker.worker import Worker
from omniq.cli.failures import suggestion
from omniq.cli.wording import plural

__all__ = ["introduction", "undeclared_queues"]

MOST_NAMES = 8
"""So many tasks are named at most."""


def introduction(queue: TaskQueue, worker: Worker, *, processes: int = 1) -> Iterator[str]:
    """Return lines that say what begins to work here, and on what.

    :param worker: made with the options of those that will work, and not started.
    :param processes: how many of them.
    """
    namespace = f", namespace {queue.namespace}" if queue.namespace else ""
    yield f"OmniQ {version('omniq-core')}, Python {platform.python_version()}: store {queue.url}{namespace}"
    names = sorted(queue.functions)
    named = ", ".join(names[:MOST_NAMES]) + (", …" if names[MOST_NAMES:] else "")
    yield f"{plural(len(names), 'task')}{': ' if names else ''}{named}"
    each = "" if processes == 1 else f"{processes} processes, in each "
    yield (
        f"{each}{worker.concurrency} tasks at once, of them {worker.threads} on threads and {worker.processes} in "
        f"processes of their own; lease {worker.lease:g} s, grace {worker.grace:g} s"
    )


def undeclared_queues(queue: TaskQueue, served: Iterable[str]) -> Iterator[str]:
    """Return a line for each queue that a worker is to serve and that no task of its application is declared for."""
    declared = {function.options.queue for function in queue.functions.values()}
    for name in served:
        if name not in declared:
            hint = suggestion(name, declared) or f"; they are declared for {', '.join(sorted(declared)) or 'none'}"
            yield f"no task is declared for queue {name}: it has tasks only of using(queue=…){hint}"
