"""One call of a function with what is injected: made before it, and left after it, within its attempt.

A plain factory of a coroutine function runs on a thread, as every plain function of OmniQ does: it may block. Those of
one attempt run in one copy of its context, so that what they set in context variables they can also put back.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from types import TracebackType
from typing import Any

from omniq._runtime.threads import start_thread
from omniq._tasks.definitions import Definition
from omniq._tasks.dependencies import Kind, Provider
from omniq._worker.resources import Resources

__all__ = ["call_async", "call_sync"]


def call_sync(definition: Definition, resources: Resources, /, *args: Any, **kwargs: Any) -> Any:
    """Call a plain function, with everything on the calling thread.

    :raises TypeError: if it cannot take the arguments; then nothing was made.
    :raises: what the function or a dependency raises. A dependency cannot hide an error of the function.
    """
    definition.check_arguments(args, kwargs)
    made: dict[Provider, Any] = {}
    raised: BaseException | None = None
    try:
        with ExitStack() as stack:
            try:
                for name, provider in resources.injection(definition):
                    kwargs[name] = _made(name, provider, resources, made, stack)
                value = definition.function(*args, **kwargs)
            except BaseException as error:
                raised = error
                raise
        if raised is not None:
            raise raised
        return value
    finally:
        del raised  # it holds this frame


def _made(
    name: str, provider: Provider | None, resources: Resources, made: dict[Provider, Any], stack: ExitStack
) -> Any:
    if provider is None:
        return resources.state_for(name)
    if provider in made:
        return made[provider]
    if provider.scope == "worker":
        value = resources.shared(provider)
    else:
        given = {one: _made(one, other, resources, made, stack) for one, other in provider.parameters}
        value = provider.make(**given)
        if provider.kind is Kind.MANAGER:
            value = stack.enter_context(value)
    made[provider] = value
    return value


async def call_async(definition: Definition, resources: Resources, /, *args: Any, **kwargs: Any) -> Any:
    """Call a coroutine function; see :func:`call_sync`."""
    definition.check_arguments(args, kwargs)
    raised: BaseException | None = None
    try:
        async with AsyncExitStack() as stack:
            try:
                making = _Making(resources, stack)
                for name, provider in resources.injection(definition):
                    kwargs[name] = await making.value(name, provider)
                value = await definition.function(*args, **kwargs)
            except BaseException as error:
                raised = error
                raise
        if raised is not None:
            raise raised
        return value
    finally:
        del raised


class _Making:
    """Makes the dependencies of one attempt on the loop."""

    def __init__(self, resources: Resources, stack: AsyncExitStack) -> None:
        self._resources = resources
        self._stack = stack
        self._made: dict[Provider, Any] = {}
        self._context = contextvars.copy_context()

    async def value(self, name: str, provider: Provider | None) -> Any:
        if provider is None:
            return self._resources.state_for(name)
        if provider not in self._made:
            shared = provider.scope == "worker"
            self._made[provider] = await (self._resources.ashared(provider) if shared else self._make(provider))
        return self._made[provider]

    async def _make(self, provider: Provider) -> Any:
        given = {name: await self.value(name, other) for name, other in provider.parameters}
        match provider.kind:
            case Kind.COROUTINE:
                return await provider.make(**given)
            case Kind.ASYNC_MANAGER:
                return await self._stack.enter_async_context(provider.make(**given))
            case Kind.PLAIN:
                return await self._on_thread(partial(provider.make, **given))
            case Kind.MANAGER:
                manager = provider.make(**given)

                async def leave(
                    kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
                ) -> bool | None:
                    suppresses: bool | None = await self._on_thread(partial(manager.__exit__, kind, error, traceback))
                    return suppresses

                return await self._on_thread(manager.__enter__, lambda: self._stack.push_async_exit(leave))

    async def _on_thread(self, call: Callable[[], Any], then: Callable[[], object] = lambda: None) -> Any:
        """Call on a thread, and wait until it is done whatever happens: what was entered must be left.

        :param then: called as soon as the call has succeeded.
        """
        calling = asyncio.wrap_future(start_thread(partial(self._context.run, call)))
        cancelled: asyncio.CancelledError | None = None
        while not calling.done():
            try:
                await asyncio.wait([calling])
            except asyncio.CancelledError as error:
                cancelled = error
        if calling.exception() is None:
            then()
        if cancelled is not None:
            raise cancelled
        return calling.result()
