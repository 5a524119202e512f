"""What users hold: a queue on some store, named by a URL.

Every method has an asynchronous form, ``aenqueue``, and a synchronous one without the ``a``, which runs the same
coroutine on a background loop. There is one implementation of each.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Unpack

from omniq._client.declared import DeclaredSchedule
from omniq._client.producer import Producer
from omniq._runtime.connections import Connections
from omniq._runtime.portal import refuse_on_running_loop
from omniq._tasks.dependencies import Overrides, stand_in
from omniq._tasks.functions import TaskFunction
from omniq._tasks.options import Duration, TaskOptions, check_count
from omniq._tasks.payloads import Codec, FunctionDecoder
from omniq._tasks.pickled_functions import Runnable, carriers
from omniq.errors import ConfigurationError
from omniq.limit import Limit
from omniq.plugins import Plugins, default_plugins
from omniq.retry import Exponential, RetryPolicy
from omniq.serialization.signing import make_signer
from omniq.storage import Capability, Storage
from omniq.storage.urls import parse_url

if TYPE_CHECKING:
    from omniq._worker.worker import Worker, WorkerOptions

__all__ = ["TaskQueue"]

Lifespan: TypeAlias = Callable[["TaskQueue"], AbstractAsyncContextManager[Any] | AbstractContextManager[Any]]

DEFAULT_URL = "sqlite:///omniq.db"
_SHARED = frozenset({Capability.SHARED_BETWEEN_PROCESSES, Capability.SHARED_BETWEEN_MACHINES, Capability.DURABLE})


class TaskQueue(Producer):
    """A queue of tasks on a store. Constructing it does no I/O; it connects at the first use.

    Thread-safe, fork-safe, and usable from any number of event loops. A context manager, synchronous and asynchronous.

    :param url: where the tasks are kept, such as ``sqlite:///jobs.db`` or ``memory://``; None: the environment's
        ``OMNIQ_URL``, else ``sqlite:///omniq.db``. A :class:`~omniq.storage.Storage` is taken as well.
    :param namespace: keeps applications apart that share a store.
    :param serializer: the name of the serializer for arguments and results.
    :param accept: the names of the serializers that a worker may decode; None: ``serializer`` alone.
    :param signing_key: one key or several, text or bytes: the first signs, all verify, and what is unsigned or altered
        is rejected unread; None: the environment's ``OMNIQ_SIGNING_KEY`` (several separated by commas), else nothing is
        signed.
    :param max_retries: for its tasks: how often they may run again after their first attempt.
    :param retry: for its tasks: how long to wait before each; None: ``Exponential()``.
    :param timeout: for its tasks: seconds (or a timedelta) that one attempt may take; None: no limit.
    :param result_ttl: for its tasks: seconds (or a timedelta) to keep the record and result after the end.
    :param max_payload: the most bytes of encoded arguments, and of a result.
    :param plugins: plugins of this queue alone, beside the installed ones: modules, instances or classes whose
        functions carry ``@omniq.hookimpl``. Or a :class:`~omniq.plugins.Plugins`, which is all that it uses.
    :param lifespan: a function that takes the queue and returns a context manager, such as one decorated with
        ``@asynccontextmanager`` or ``@contextmanager``. Each worker, and each child process of ``executor="process"``,
        enters it before its first task and leaves it after its last one; what it yields is given to parameters that
        default to ``WorkerState()``. If it raises, the worker does not start.
    :raises TypeError: if one of the plugins can be none.
    :raises UnknownScheme: if no installed storage opens the URL; the message names what to install.
    :raises ConfigurationError: if the URL is empty, or it, an option of it, a key or a plugin cannot be used; or if a
        serializer that runs code, such as ``cloudpickle``, is given a store that others can reach, and no
        ``signing_key``.
    """

    url = ""
    """Where the tasks are kept, without a password."""

    def __init__(
        self,
        url: str | Storage | None = None,
        *,
        namespace: str | None = None,
        serializer: str = "json",
        accept: Iterable[str] | None = None,
        signing_key: str | bytes | Iterable[str | bytes] | None = None,
        max_retries: int = 3,
        retry: RetryPolicy | None = None,
        timeout: Duration | None = None,
        result_ttl: Duration = 86400.0,
        max_payload: int = 1 << 20,
        plugins: Plugins | Iterable[object] | None = None,
        lifespan: Lifespan | None = None,
    ) -> None:
        if isinstance(accept, str):
            raise TypeError(f"accept must be a list of names, not the string {accept!r}; write [{accept!r}]")
        check_count(max_payload, "max_payload")
        self.lifespan = _checked_lifespan(lifespan)
        self.overrides: Overrides = {}
        """Which factories stand in for which others at the moment, see :meth:`override`."""
        try:
            signer = make_signer(signing_key, os.environ)
            place = url if isinstance(url, Storage) else parse_url(_chosen_url(url), namespace)
        except (ConfigurationError, TypeError) as error:
            raise error.with_traceback(None) from None
        finally:
            # Trackers of errors capture the variables of every frame that an error has come through: no password and no
            # key is to be in one of them.
            url = signing_key = None
        self.plugins = _plugins(plugins)
        if isinstance(place, Storage):
            self.url = f"<{type(place).__name__}>"
            self.namespace = ""  # known to the storage alone
            storage = place
            private = not place.capabilities & _SHARED
        else:
            self.url = place.redacted
            self.namespace = place.namespace
            storage = self.plugins.open_storage(place)
            private = place.scheme == "memory"
        accepted = (serializer,) if accept is None else tuple(dict.fromkeys((serializer, *accept)))
        self.codec = Codec(
            self.plugins,
            serializer=serializer,
            accept=accepted,
            max_payload=max_payload,
            signer=signer,
        )
        self.codec.check_trust(private=private)
        self.options = TaskOptions(
            max_retries=max_retries,
            timeout=timeout,
            result_ttl=result_ttl,
            retry=Exponential() if retry is None else retry,
        )
        self.functions: dict[str, TaskFunction[Any, Any]] = {}
        self.declared: dict[str, DeclaredSchedule] = {}
        self.declared_limits: dict[str, Limit] = {}
        carried = carriers(self, self.options) if self.codec.runs_carried else {}
        self.runnable: Mapping[str, TaskFunction[Any, Any]] = Runnable(self.functions, carried, self.flows.starter())
        """What a worker can run; beyond the registered functions, where accepted, those that come in payloads."""
        self.connections = Connections(storage)
        self.decoder = FunctionDecoder(self.codec, self._types)
        self._enqueued = self.plugins.event("omniq_task_enqueued")

    def __repr__(self) -> str:
        return f"TaskQueue({self.url!r})"

    # Working

    def worker(self, **options: Unpack[WorkerOptions]) -> Worker:
        """Return a worker that runs this queue's tasks inside ``async with``; leaving it drains what runs.

        :param options: as for :class:`~omniq.Worker`: ``queues``, ``concurrency``, ``threads``, ``lease``, ``grace``,
            ``recover_every``.
        """
        from omniq._worker.worker import Worker  # imported late: a process that only enqueues needs nothing of it

        return Worker(self, **options)

    def run_worker(self, **options: Unpack[WorkerOptions]) -> None:
        """Run this queue's tasks until SIGTERM or SIGINT. The first lets running tasks end, a second stops at once.

        The process is taken to be the worker's: a task that then still blocks the event loop is ended with it, and
        until this returns the garbage collector leaves alone what was there when the worker had started.

        :param options: as for :class:`~omniq.Worker`.
        :raises RuntimeError: on a thread whose event loop runs; write ``await queue.arun_worker()`` there.
        """
        from omniq._worker.worker_process import run_as_process

        refuse_on_running_loop("await ….arun_worker(…)")
        worker = self.worker(**options)

        async def work() -> None:
            async with self:
                await worker.run(own_process=True)

        run_as_process(work, grace=worker.grace)

    async def arun_worker(self, **options: Unpack[WorkerOptions]) -> None:
        """Run this queue's tasks until cancelled, or until SIGTERM or SIGINT if this is the main thread.

        The first signal lets running tasks end, a second stops at once, as cancelling does. The process goes on.

        :param options: as for :class:`~omniq.Worker`.
        """
        await self.worker(**options).run()

    # Testing

    @contextlib.contextmanager
    def override(self, stand_ins: Mapping[Callable[..., Any], Any]) -> Iterator[None]:
        """Put others in the place of dependencies for a while: in trials, and in workers of this process.

        Overrides may be nested. Child processes of ``executor="process"`` know nothing of them.

        :param stand_ins: for each factory another one, which may have dependencies of its own; or the value itself that
            is to be injected, if that cannot be called.
        :return: a context manager.
        :raises TypeError: if one cannot take the place of the other in a task of this queue.
        """
        usual = self.overrides
        overrides = {**usual, **{factory: stand_in(value) for factory, value in stand_ins.items()}}
        for function in [*self.functions.values()]:
            function.definition.injection_with(overrides)
        self.overrides = overrides
        try:
            yield
        finally:
            self.overrides = usual

    # Life

    async def aclose(self) -> None:
        """Disconnect. The queue can be used again afterwards: it then connects anew."""
        await self.connections.close()

    def close(self) -> None:
        """Disconnect, for synchronous callers; see :meth:`aclose`."""
        self.connections.close_blocking()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _plugins(given: Plugins | Iterable[object] | None) -> Plugins:
    if isinstance(given, Plugins):
        return given
    # Without any the installed ones are shared by all queues, with what they have loaded.
    return default_plugins() if given is None else default_plugins().extended(given)


def _checked_lifespan(lifespan: Lifespan | None) -> Lifespan | None:
    if lifespan is not None and not callable(lifespan):
        raise TypeError(f"lifespan must be a function of the queue, not {lifespan!r}")
    if inspect.isasyncgenfunction(lifespan) or inspect.isgeneratorfunction(lifespan):
        kind = "asynccontextmanager" if inspect.isasyncgenfunction(lifespan) else "contextmanager"
        raise TypeError(f"lifespan must return a context manager: decorate {lifespan!r} with @{kind}")
    return lifespan


def _chosen_url(url: str | None) -> str:
    # An empty text is a variable that was not set where the program runs: the default would be another store than the
    # one meant, without a word.
    if url is None:
        url = os.environ.get("OMNIQ_URL")
        if url == "":
            raise ConfigurationError(
                "OMNIQ_URL is set, and empty: give it the URL of a store such as redis://localhost, or remove it from "
                f"the environment, which means {DEFAULT_URL}"
            )
        return DEFAULT_URL if url is None else url
    if url == "":
        raise ConfigurationError(
            "the URL of the store is empty: was the variable set that it comes from? Give one such as "
            f"redis://localhost, or None, which means OMNIQ_URL, or else {DEFAULT_URL}"
        )
    return url
