"""Opens storages on the store under test, the way a queue does: by URL, through the installed plugins."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from attrs import evolve

from omniq.plugins import default_plugins
from omniq.storage import Capability, Storage, StorageLimits
from omniq.storage.urls import parse_url

__all__ = ["Stores"]

R = TypeVar("R")


class Stores:
    """Opens storages on one store, and closes them all in the end.

    :param url: the store's URL.
    :param runner: the test's event loop.
    """

    def __init__(self, url: str, runner: asyncio.Runner) -> None:
        self.url = url
        self._runner = runner
        self._opened: list[Storage] = []
        self._numbers = itertools.count(1)
        self._prototype = self.make()

    @property
    def capabilities(self) -> Set[Capability]:
        """What the store says it can do beyond the contract."""
        return self._prototype.capabilities

    @property
    def limits(self) -> StorageLimits:
        """How far the store goes."""
        return self._prototype.limits

    @property
    def adopts(self) -> bool:
        """Whether it adopts the records of other stores."""
        return type(self._prototype).adopt is not Storage.adopt

    def run(self, coroutine: Coroutine[Any, Any, R], patience: float) -> R:
        """Run a coroutine on the test's event loop; fail if it takes longer than some seconds.

        :param coroutine: what to run.
        :param patience: seconds.
        :return: what the coroutine returns.
        """

        async def bounded() -> R:
            limit = asyncio.timeout(patience)
            try:
                async with limit:
                    return await coroutine
            except TimeoutError:
                if not limit.expired():
                    raise
                raise AssertionError(f"not done after {patience:g} s; something waits for ever") from None

        return self._runner.run(bounded())

    def make(self, namespace: str | None = None) -> Storage:
        """Return an unopened storage, as a program that knows nothing but the URL has it.

        :param namespace: None: the URL's own.
        """
        config = parse_url(self.url)
        if namespace is not None:
            config = evolve(config, namespace=namespace)
        return default_plugins().open_storage(config)

    def new_namespace(self) -> str:
        """Return the name of a namespace that is empty: the URL's own, a hyphen and a number."""
        return f"{parse_url(self.url).namespace}-{next(self._numbers)}"

    async def open(self, namespace: str | None = None) -> Storage:
        """Return an open storage of its own; it is closed when the test is over.

        :param namespace: None: the test's own.
        """
        return await self._open(self.make(namespace))

    async def open_sibling(self, storage: Storage) -> Storage:
        """Return an open sibling of a storage; it is closed when the test is over.

        :param storage: an open storage.
        """
        return await self._open(storage.sibling())

    async def _open(self, storage: Storage) -> Storage:
        self._opened.append(storage)
        await storage.open()
        return storage

    async def close(self) -> None:
        """Close every storage that was opened here; those closed already are closed again, which must do no harm."""
        while self._opened:
            await self._opened.pop().close()

    async def in_threads(
        self, storage: Storage, actors: Iterable[Callable[[Storage], Awaitable[R]]], *, at_once: bool = True
    ) -> list[R]:
        """Run coroutine functions at the same time, each in a thread with a loop and a sibling of its own.

        :param storage: whose siblings they get.
        :param actors: called with the open sibling.
        :param at_once: whether none begins before all have opened theirs.
        :return: what they gave, in order.
        """
        actors = list(actors)
        barrier = threading.Barrier(len(actors) if at_once else 1, timeout=60)

        async def act(actor: Callable[[Storage], Awaitable[R]]) -> R:
            sibling = storage.sibling()
            try:
                await sibling.open()
                barrier.wait()
                return await actor(sibling)
            except BaseException:
                with contextlib.suppress(threading.BrokenBarrierError):
                    barrier.abort()
                raise
            finally:
                await sibling.close()

        with ThreadPoolExecutor(len(actors), thread_name_prefix="contract") as pool, _hurried_threads():
            loop = asyncio.get_running_loop()
            return await asyncio.gather(*(loop.run_in_executor(pool, asyncio.run, act(actor)) for actor in actors))


@contextlib.contextmanager
def _hurried_threads() -> Iterator[None]:
    """Let Python change threads all the time, so that what is not guarded against it shows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
