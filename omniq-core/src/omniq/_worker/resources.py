"""What the tasks of one worker, or one child process, share: the lifespan's state, and dependencies of scope "worker".

Asynchronous context managers are entered and left by one asyncio task each, so that they may use task groups and
timeouts, whichever task begins and ends the worker and whichever attempt is the first to need a dependency.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack
from functools import partial
from typing import Any, Protocol

from omniq._runtime.portal import Portal
from omniq._runtime.threads import in_thread
from omniq._tasks.definitions import Definition
from omniq._tasks.dependencies import Injection, Kind, Overrides, Provider
from omniq.errors import ConfigurationError
from omniq.storage.escaping import get_logger

__all__ = ["ResourceOwner", "Resources"]

_log = get_logger("omniq.worker")


class ResourceOwner(Protocol):
    """What resources ask of a queue."""

    lifespan: Callable[[Any], Any] | None
    overrides: Overrides


class _Exit(Protocol):
    """How something that was entered is left."""

    async def leave(self) -> None: ...

    def leave_blocking(self, portal: Portal) -> None: ...


class Resources:
    """Enters a queue's lifespan, makes each dependency of scope "worker" once, and leaves them all in reverse.

    :param owner: the queue; None: of a function that has none.
    """

    def __init__(self, owner: ResourceOwner | None) -> None:
        self._owner = owner
        self.state: Any = None
        """What the lifespan yielded."""
        self.context = contextvars.copy_context()
        """With what the lifespan has set in context variables."""
        self._lock = threading.Lock()
        self._made: dict[Provider, Future[Any]] = {}
        self._making: set[asyncio.Task[None]] = set()
        self._exits: list[_Exit] = []
        self._closed = False

    @property
    def has_lifespan(self) -> bool:
        """Whether there is something to enter."""
        return self._owner is not None and self._owner.lifespan is not None

    def injection(self, definition: Definition) -> Injection:
        """Return what a function is to be given now, with what tests have put in the place of dependencies."""
        overrides = None if self._owner is None else self._owner.overrides
        return definition.injection_with(overrides) if overrides else definition.injection

    def state_for(self, parameter: str) -> Any:
        """Return the state, for a parameter that is ``WorkerState()``.

        :raises ConfigurationError: if the queue has no lifespan.
        """
        if not self.has_lifespan:
            raise ConfigurationError(
                f"the parameter {parameter!r} is WorkerState(), and there is no state: give the queue a lifespan=… "
                "that yields it"
            )
        return self.state

    # The lifespan

    async def enter(self, on_lost: Callable[[BaseException | None], None] | None = None) -> None:
        """Enter the lifespan. Cancelled, it is cancelled as well.

        :param on_lost: called if it ends by itself, with its error.
        """
        if not self.has_lifespan:
            return
        manager = self._manager()
        if isinstance(manager, AbstractAsyncContextManager):
            held = _Held(manager, self.context, on_lost)
            self.state = await held.enter()
            self._exits.append(held)
        else:
            self._enter_here(manager)

    async def enter_unless(
        self, stopped: asyncio.Event, who: str, on_lost: Callable[[BaseException | None], None]
    ) -> bool:
        """Enter the lifespan, unless its owner is stopped meanwhile.

        :param stopped: set when the owner is to stop.
        :param who: whom the log names as the owner.
        :param on_lost: called if the lifespan ends by itself, with its error.
        :return: False if the owner was stopped.
        :raises: what the lifespan raises.
        """
        if not self.has_lifespan:
            return True
        entering = asyncio.ensure_future(self.enter(on_lost))
        stopping = asyncio.ensure_future(stopped.wait())
        try:
            await asyncio.wait([entering, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            entering.cancel()  # without effect once it has ended
        await asyncio.wait([entering])
        if entering.cancelled():
            return False
        error = entering.exception()
        if error is not None:
            _log.error("%s does not start: the lifespan failed", who, exc_info=error)
            raise error
        return True

    async def leave_within(self, now: asyncio.Event, patience: float, who: str) -> None:
        """Leave everything; once all is to stop at once, without much patience.

        :param now: set when all is to stop at once.
        :param patience: seconds that leaving may take from then on.
        :param who: whom the log names as the owner.
        """
        leaving = asyncio.ensure_future(self.leave())
        cut_short = asyncio.ensure_future(now.wait())
        try:
            await asyncio.wait([leaving, cut_short], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([leaving], timeout=patience)
        finally:
            cut_short.cancel()
            leaving.cancel()  # without effect once it has ended
        if not leaving.done():
            _log.warning("%s: the lifespan did not end in time; it is cancelled", who)
            await asyncio.wait([leaving], timeout=patience)
        elif not leaving.cancelled():
            leaving.result()

    def enter_blocking(self, portal: Portal) -> None:
        """Enter the lifespan where no loop runs: an asynchronous one on the loop of a portal."""
        if not self.has_lifespan:
            return
        manager = self._manager()
        if isinstance(manager, AbstractAsyncContextManager):

            async def enter() -> _Held:
                held = _Held(manager, self.context)
                self.state = await held.enter()
                return held

            self._exits.append(portal.run(enter()))
        else:
            self._enter_here(manager)

    def _manager(self) -> object:
        assert self._owner is not None
        assert self._owner.lifespan is not None
        manager = self._owner.lifespan(self._owner)
        if not isinstance(manager, (AbstractAsyncContextManager, AbstractContextManager)):
            raise TypeError(
                f"lifespan must return a context manager, not {manager!r}: decorate it with @asynccontextmanager or "
                "@contextmanager"
            )
        return manager

    def _enter_here(self, manager: Any) -> None:
        # On the thread that will leave it: some of what is opened may be closed by the thread that opened it alone.
        self.state = self.context.run(manager.__enter__)
        self._exits.append(_Call(partial(self.context.run, manager.__exit__, None, None, None), hop=False))

    # Dependencies of scope "worker"

    def shared(self, provider: Provider) -> Any:
        """Return what a plain provider makes, once for all: on this thread, or on another one, for which it waits."""
        cell, is_first = self._cell(provider)
        if is_first:
            try:
                value, leave = self._made_here(provider)
                self._keep(leave)
            except BaseException as error:  # it is of those who need it
                self._forget(provider, cell, error)
            else:
                cell.set_result(value)
        return cell.result()

    async def ashared(self, provider: Provider) -> Any:
        """Return what a provider makes, once for all. An attempt that is cancelled meanwhile takes it from no other."""
        cell, is_first = self._cell(provider)
        if is_first:
            making = asyncio.get_running_loop().create_task(self._make(provider, cell), context=self.context.copy())
            self._making.add(making)
            making.add_done_callback(self._making.discard)
        return await asyncio.wrap_future(cell)

    def _cell(self, provider: Provider) -> tuple[Future[Any], bool]:
        with self._lock:
            cell = self._made.get(provider)
            if cell is not None:
                return cell, False
            cell = self._made[provider] = Future()
            cell.set_running_or_notify_cancel()  # who waits for it no longer cannot cancel it
            return cell, True

    def _forget(self, provider: Provider, cell: Future[Any], error: BaseException) -> None:
        with self._lock:
            del self._made[provider]  # the next attempt tries again
        cell.set_exception(error)

    def _made_here(self, provider: Provider) -> tuple[Any, _Exit | None]:
        given = {name: self.state_for(name) if one is None else self.shared(one) for name, one in provider.parameters}
        context = self.context.copy()
        if provider.kind is Kind.PLAIN:
            return context.run(partial(provider.make, **given)), None
        manager = provider.make(**given)
        return context.run(manager.__enter__), _Call(partial(context.run, manager.__exit__, None, None, None))

    async def _make(self, provider: Provider, cell: Future[Any]) -> None:
        try:
            given = {
                name: self.state_for(name) if one is None else await self.ashared(one)
                for name, one in provider.parameters
            }
            context, value = self.context.copy(), None
            leave: _Exit | None = None
            match provider.kind:
                case Kind.COROUTINE:
                    value = await provider.make(**given)
                case Kind.ASYNC_MANAGER:
                    held = leave = _Held(provider.make(**given), context)
                    value = await held.enter()
                case Kind.MANAGER:
                    manager = provider.make(**given)
                    value = await in_thread(partial(context.run, manager.__enter__))
                    leave = _Call(partial(context.run, manager.__exit__, None, None, None))
                case Kind.PLAIN:
                    value = await in_thread(partial(context.run, partial(provider.make, **given)))
            self._keep(leave)
        except BaseException as error:  # it is of those who need it
            self._forget(provider, cell, error)
        else:
            cell.set_result(value)

    def _keep(self, leave: _Exit | None) -> None:
        if leave is None:
            return
        with self._lock:
            if not self._closed:
                self._exits.append(leave)
                return
        raise RuntimeError("the worker has stopped")

    # Leaving

    async def leave(self) -> None:
        """Leave everything, the latest first.

        :raises: the last error of those that come meanwhile.
        """
        exits = self._close()
        making = list(self._making)
        for one in making:
            one.cancel()
        if making:
            await asyncio.wait(making)
        async with AsyncExitStack() as stack:
            for leave in exits:
                stack.push_async_callback(leave.leave)

    def leave_blocking(self, portal: Portal) -> None:
        """Leave everything on the thread that has entered it; see :meth:`leave`."""
        with ExitStack() as stack:
            for leave in self._close():
                stack.callback(leave.leave_blocking, portal)

    def _close(self) -> list[_Exit]:
        with self._lock:
            self._closed = True
            exits, self._exits = self._exits, []
        return exits


class _Call:
    """Leaves by a call: on a thread of its own, or where the call to leave is made."""

    def __init__(self, call: Callable[[], object], *, hop: bool = True) -> None:
        self._call = call
        self._hop = hop

    async def leave(self) -> None:
        if self._hop:
            await in_thread(self._call)
        else:
            self._call()

    def leave_blocking(self, portal: Portal) -> None:
        self._call()


class _Held:
    """An asynchronous context manager that is entered and left by an asyncio task of its own.

    :param on_lost: called if it ends by itself, with its error.
    """

    def __init__(
        self,
        manager: AbstractAsyncContextManager[Any],
        context: contextvars.Context,
        on_lost: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self._manager = manager
        self._on_lost = on_lost
        self._entered = asyncio.Event()
        self._told = asyncio.Event()
        self._error: BaseException | None = None
        self._value: Any = None
        self._task = asyncio.get_running_loop().create_task(self._hold(), context=context)

    async def _hold(self) -> None:
        try:
            async with self._manager as self._value:
                self._entered.set()
                await self._told.wait()
        except BaseException as error:  # a SystemExit must not go through the loop
            self._error = error
        lost = self._entered.is_set() and not self._told.is_set()
        self._entered.set()
        if lost and self._on_lost is not None:
            self._on_lost(self._error)

    async def enter(self) -> Any:
        try:
            await self._entered.wait()
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        if self._error is not None:
            raise self._error
        return self._value

    async def leave(self) -> None:
        self._told.set()
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if self._error is not None:
            raise self._error

    def leave_blocking(self, portal: Portal) -> None:
        portal.run(self.leave())
