"""Signals that ask a process to stop, handled so that they stay with the process that received them.

A handler of asyncio's (``loop.add_signal_handler``) acts on what the interpreter writes to the wake-up descriptor. A
forked child has inherited handler and descriptor: a signal that is sent to the child alone would reach the parent's
loop, and the child would ignore it. Here the handler itself, which runs in the receiving process only, tells the loop,
and a forked child begins with the system's default handlers, and knows by :data:`forks` that it is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeAlias

from omniq.storage.posix import IS_POSIX, at_fork

__all__ = ["STOP_AT_ONCE", "STOP_SIGNALS", "call_on_signal", "is_urgent", "listening", "noting_ctrl_c"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOP_AT_ONCE: frozenset[signal.Signals] = frozenset({signal.SIGQUIT} if IS_POSIX else ())
"""What a supervisor says instead of a second stop signal."""

forks = 0
"""How many forks made this process what it is: to look at that costs a task less than to ask for the process id."""

Listener: TypeAlias = Callable[[signal.Signals], None]

_listeners: list[tuple[frozenset[signal.Signals], Listener, bool]] = []
_kept: list[signal.Signals] = []
"""What only those heard that watch, for the first that acts."""
_replaced: dict[signal.Signals, Any] = {}
"""What handled each of the signals before."""
_mask_before_fork = threading.local()


def _handle(number: int, _: FrameType | None) -> None:
    is_acted_on = False
    for numbers, listener, watches in tuple(_listeners):
        if number in numbers:
            listener(signal.Signals(number))
            is_acted_on |= not watches
    if not is_acted_on:
        _kept.append(signal.Signals(number))


@contextlib.contextmanager
def noting_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Return what tells whether a ``KeyboardInterrupt`` was Ctrl-C, rather than raised by the code that runs inside.

    Where no signal raises it, such as on another thread than the main one or in a worker, none was.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    pressed: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    with listening((signal.SIGINT,), interrupt):
        yield lambda: bool(pressed)


def is_urgent(number: signal.Signals, *, again: bool, supervised: bool) -> bool:
    """Tell whether a signal means to stop at once.

    :param number: the signal.
    :param again: whether it is not the first one.
    :param supervised: whether a supervisor passes signals on. The one that it received may have been sent to the whole
        group, and is received twice then: it means no haste, however often it comes. SIGQUIT does.
    """
    return number in STOP_AT_ONCE or (again and not supervised)


@contextlib.contextmanager
def listening(numbers: Iterable[signal.Signals], listener: Listener, *, watches: bool = False) -> Iterator[None]:
    """Call a function for each of these signals, on the main thread and in the middle of whatever runs there.

    Off the main thread, where Python handles no signals, this does nothing.

    :param numbers: the signals.
    :param listener: must be quick, and take no lock.
    :param watches: whether it only looks on. The next listener that does not is called for what came meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    entry = (frozenset(numbers), listener, watches)
    _listeners.append(entry)
    for number in entry[0] - _replaced.keys():
        _replaced[number] = signal.signal(number, _handle)
    try:
        for number in () if watches else [number for number in _kept if number in entry[0]]:
            _kept.remove(number)
            listener(number)
        yield
    finally:
        _listeners.remove(entry)
        if not _listeners:
            _kept.clear()
        still = frozenset().union(*(numbers for numbers, *_ in _listeners))
        for number in _replaced.keys() - still:
            before = _replaced.pop(number)
            if signal.getsignal(number) is _handle:  # else someone took it over meanwhile
                signal.signal(number, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def call_on_signal(numbers: Iterable[signal.Signals], callback: Listener) -> Iterator[None]:
    """Call a function on the running loop for each of these signals.

    Off the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def tell(number: signal.Signals) -> None:
        loop.call_soon_threadsafe(callback, number)

    with _woken(loop), listening(numbers, tell):
        yield


@contextlib.contextmanager
def _woken(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    if not IS_POSIX:  # the loop there is woken by signals as it is
        yield
        return
    # Python runs handlers on the main thread alone, and only once it wakes up. The system may have any thread receive
    # the signal; what is then written here wakes the loop, and means nothing more, whichever process writes it.
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)

    def drain() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(reading, 4096)

    loop.add_reader(reading, drain)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        if signal.set_wakeup_fd(-1) != writing:  # someone else's by now
            before = -1
        signal.set_wakeup_fd(before)
        loop.remove_reader(reading)
        os.close(reading)
        os.close(writing)


def _before_fork() -> None:
    # Until the child has its own handlers it receives nothing, or it would answer as the parent does.
    _mask_before_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _replaced) if _replaced else None


def _after_fork_in_parent() -> None:
    mask = _mask_before_fork.mask
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    global forks  # it is the process's own
    forks += 1
    mask = _mask_before_fork.mask
    if mask is None:
        return
    signal.set_wakeup_fd(-1)
    for number in _replaced:
        # Not Python's own for SIGINT: the KeyboardInterrupt of one that comes now would be lost in a hook such as this.
        signal.signal(number, signal.SIG_DFL)
    _replaced.clear()
    _listeners.clear()
    _kept.clear()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
