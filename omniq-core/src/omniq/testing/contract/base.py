"""How the kit's tests are run: each on an event loop of its own, with storages that are closed afterwards."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, ClassVar, TypeAlias, TypeVar

import pytest

from omniq.storage import Capability, Storage
from omniq.testing.contract.stores import Stores

__all__ = [
    "Contract",
    "Deafen",
    "deviates",
    "needs",
    "needs_fixtures",
    "patient",
    "with_adoption",
    "with_flows",
    "with_limits",
]

F = TypeVar("F", bound=Callable[..., Any])
KIT = "omniq.testing.contract"
Deafen: TypeAlias = Callable[[Storage], Awaitable[None]]


def deviates(reason: str) -> Callable[[F], F]:
    """Mark a test that replaces a standard one of the kit, and say why. Without it, replacing one is an error.

    :param reason: why this storage cannot, or need not, do what the standard test asks.
    :return: the decorator.
    :raises ValueError: if the reason is empty.
    """
    if not reason.strip():
        raise ValueError('say why: @deviates("this store has no …")')

    def mark(test: F) -> F:
        test.__dict__["deviates"] = reason
        return test

    return mark


def needs(*capabilities: Capability) -> Callable[[F], F]:
    """Mark a test that only storages with some capabilities can be asked to pass.

    Whether one has them is known only once its URL is, so for one that has not the test ends at once and passes; the
    reason is recorded as a property of the test (``--junit-xml`` shows it).

    :param capabilities: all that the test needs.
    :return: the decorator.
    """

    def mark(test: F) -> F:
        test.__dict__["needs"] = frozenset(capabilities)
        return test

    return mark


def needs_fixtures(*names: str) -> Callable[[F], F]:
    """Mark a test that is asked only where some fixtures of the class, which may be None, are not.

    :param names: of the fixtures: parameters of the test.
    :return: the decorator.
    """

    def mark(test: F) -> F:
        test.__dict__["needs_fixtures"] = names
        return test

    return mark


def with_flows(test: F) -> F:
    """Mark a test that only storages that hold flows can be asked to pass."""
    test.__dict__["needs_flows"] = True
    return test


def with_adoption(test: F) -> F:
    """Mark a test that only storages that adopt the records of others can be asked to pass."""
    test.__dict__["needs_adoption"] = True
    return test


def with_limits(test: F) -> F:
    """Mark a test that only storages that hold limits can be asked to pass."""
    test.__dict__["needs_limits"] = True
    return test


def patient(seconds: float) -> Callable[[F], F]:
    """Mark a test that may take longer than others before it fails.

    :param seconds: the least; :attr:`Contract.patience` may allow more.
    """

    def mark(test: F) -> F:
        test.__dict__["patience"] = seconds
        return test

    return mark


class Contract:
    """Tests that are given a storage, written as coroutines, and run without any plugin of pytest.

    Each test has an event loop of its own. Its fixtures: ``store``, an open storage; ``stores``, a :class:`Stores` that
    opens more of them.
    """

    patience: ClassVar[float] = 60.0
    """Seconds after which a test that has not ended fails."""

    _stores: Stores
    _request: pytest.FixtureRequest

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, test in list(vars(cls).items()):
            if name.startswith("test") and inspect.iscoroutinefunction(test):
                setattr(cls, name, _on_a_loop(test))
        if not cls.__module__.startswith(KIT):
            _check_deviations(cls)

    @pytest.fixture(autouse=True)
    def stores(self, storage_url: str, request: pytest.FixtureRequest) -> Iterator[Stores]:
        """Yield the opener of storages on the store of this test."""
        with asyncio.Runner() as runner:
            stores = self._stores = Stores(storage_url, runner)
            self._request = request
            try:
                yield stores
            finally:
                stores.run(stores.close(), self.patience)

    @pytest.fixture
    def deafen(self) -> Deafen | None:
        """Return what keeps notifications from an open storage, or None; override it to have that tested.

        What it gives is called with a storage that waits for work, and keeps the storage from hearing of what others
        do from then on, as if the notifications were lost.
        """
        return None

    @pytest.fixture
    def store(self, stores: Stores) -> Storage:
        """Return an open storage on the store of this test."""
        return stores.run(stores.open(), self.patience)

    def not_asked(self, reason: str) -> None:
        """Record as a property of the test that it ends without having asked the storage anything.

        :param reason: what the storage, or its tests, lack.
        """
        self._request.node.user_properties.append(("omniq: not asked of this storage", reason))


def _on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    needed: frozenset[Capability] = getattr(test, "needs", frozenset())
    least: float = getattr(test, "patience", 0.0)
    needs_flows: bool = getattr(test, "needs_flows", False)
    needs_adoption: bool = getattr(test, "needs_adoption", False)
    needs_limits: bool = getattr(test, "needs_limits", False)
    fixtures: tuple[str, ...] = getattr(test, "needs_fixtures", ())

    @functools.wraps(test)
    def run(self: Contract, *args: Any, **kwargs: Any) -> None:
        if needs_flows and not self._stores.limits.flows:
            self.not_asked("this storage holds no flows")
            return
        if needs_adoption and not self._stores.adopts:
            self.not_asked("this storage adopts no records of others")
            return
        if needs_limits and not self._stores.limits.task_limits:
            self.not_asked("this storage holds no limits")
            return
        missing = needed - self._stores.capabilities
        if missing:
            self.not_asked("this storage is not " + ", ".join(sorted(missing)))
            return
        absent = [name for name in fixtures if kwargs[name] is None]
        if absent:
            self.not_asked("it has no fixture " + ", ".join(absent))
            return
        self._stores.run(test(self, *args, **kwargs), max(self.patience, least))

    return run


def _check_deviations(cls: type[Contract]) -> None:
    for standard in cls.__mro__:
        if not standard.__module__.startswith(KIT):
            continue
        for name, test in vars(standard).items():
            if not name.startswith("test"):
                continue
            chosen = inspect.getattr_static(cls, name)
            if chosen is not test and not getattr(chosen, "deviates", ""):
                raise TypeError(
                    f"{cls.__qualname__} replaces {name}, a standard test of the conformance kit, without a reason; "
                    f'give it with @omniq.testing.deviates("why"), or give your test another name'
                )
