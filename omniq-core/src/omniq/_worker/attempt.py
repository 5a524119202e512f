"""From one claimed task to one outcome: decode, call, encode, and ask the retry policy. No I/O of ours happens here."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum, auto
from functools import partial
from typing import Any, TypeAlias

from attrs import evolve

from omniq._hook_calls import Around, Entered
from omniq._tasks.context import CurrentTask, FailSignal, RetrySignal, TaskSignal, running
from omniq._tasks.functions import TaskFunction
from omniq._tasks.payloads import Admitted, Codec, FunctionDecoder
from omniq._worker.injection import call_async, call_sync
from omniq._worker.releasing import put_back
from omniq._worker.resources import Resources
from omniq.errors import (
    ArgumentsMismatch,
    NotCommitted,
    PayloadRejected,
    ResultGone,
    SerializationError,
    TaskTimeout,
    UpstreamFailed,
    WorkerLost,
)
from omniq.retry import Exponential
from omniq.storage.durations import duration
from omniq.storage.escaping import get_logger
from omniq.task import Cancelled, Ending, Failed, Outcome, Progress, Released, Retry, StoredTask, Task, TaskError

__all__ = [
    "Attempt",
    "Interruption",
    "about",
    "describe_error",
    "failed",
    "interrupted",
    "rejected",
    "run_async",
    "run_sync",
    "timed_out",
]

_log = get_logger("omniq.task")

LONGEST_MESSAGE = 10_000
LONGEST_TRACEBACK = 50_000
_OUR_FILES = (__file__, call_sync.__code__.co_filename)
_UNCONTESTED: list[None] = []
_Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class Interruption(Enum):
    """Why an attempt was told to stop."""

    CANCEL = auto()
    """The task was cancelled."""
    SHUTDOWN = auto()
    """The worker stops and the grace period is over; the task goes back."""
    LEASE_LOST = auto()
    """The task may run elsewhere by now; what it does here will not be recorded."""


class Attempt:
    """One run of one claimed task.

    :param task: as claimed, and admitted by the codec.
    :param function: the registered function of that name.
    :param codec: decodes its arguments and encodes its result.
    :param on_progress: is told of ``current_task().progress(…)``.
    :param resources: what it shares with others of its worker; None: nothing.
    """

    __slots__ = (
        "_undecided",
        "codec",
        "context",
        "decided",
        "ended_at",
        "error",
        "function",
        "given",
        "interruption",
        "loop_task",
        "on_interrupt",
        "queued_at",
        "resources",
        "settled",
        "started_at",
    )

    def __init__(
        self,
        task: Task | Admitted,
        function: TaskFunction[Any, Any],
        codec: Codec,
        on_progress: Callable[[Task, Progress], None] | None = None,
        resources: Resources | None = None,
    ) -> None:
        self.given = task
        """The task as it was given, of which most needs no more than both have."""
        self.function = function
        self.codec = codec
        self.resources = resources
        self.context = CurrentTask(task, function, codec, on_progress)
        if resources is not None:
            self.context.state = resources.state
        self.interruption: Interruption | None = None
        self.decided = False
        """Whether its own run has decided how it ended, see :meth:`decide`."""
        self.settled = False
        """Whether its outcome was taken; what it still returns plays no part."""
        self._undecided: list[None] = _UNCONTESTED
        self.loop_task: asyncio.Task[None] | None = None
        """What runs it on the loop; None again as soon as it has ended there."""
        self.on_interrupt: Callable[[], None] | None = None
        """How its executor stops it, where that can be done from outside; must be quick."""
        self.error: BaseException | None = None
        """What its function raised in this process, or why its arguments or its result could not be read or written."""
        self.queued_at = 0.0
        self.started_at = 0.0
        self.ended_at = 0.0

    @property
    def task(self) -> Task:
        """The task."""
        given = self.given
        return given if isinstance(given, Task) else given.task

    @property
    def seconds(self) -> float:
        """For how many seconds it ran, or has run until now; 0 if it has not been started."""
        return (self.ended_at or time.perf_counter()) - self.started_at if self.started_at else 0.0

    @property
    def held_seconds(self) -> float:
        """For how many seconds it ran, and waited for a thread before; 0 if it has not been started."""
        began = self.queued_at or self.started_at
        return (self.ended_at or time.perf_counter()) - began if began else 0.0

    def note_end(self) -> None:
        """Stop the clock of :attr:`seconds`: what is still to do, such as telling the store, is not the task's."""
        if not self.ended_at:
            self.ended_at = time.perf_counter()

    def contest(self) -> None:
        """Have one of several decide how it ended, see :meth:`decide`; to be called before any of them can."""
        self._undecided = [None]

    def decide(self) -> bool:
        """Take it upon oneself to say how it ended. Callable from any thread.

        :return: False if that was done before: of its thread and its timeout, which may come at once, one decides.
        """
        try:
            self._undecided.pop()  # one step, which no two threads can both take
        except IndexError:
            return False
        return True

    def decide_itself(self) -> bool:
        """Have its own run decide, before the hooks around it are told.

        :return: False if its ending plays no part: its timeout has decided, or the worker has given it up.
        """
        self.decided = self._undecided is _UNCONTESTED or self.decide()
        return self.decided and not self.settled

    def interrupt(self, why: Interruption) -> None:
        """Stop it: a coroutine by ``CancelledError``, a process by a kill, a thread by asking (``cancelled``)."""
        if self.interruption is None:
            self.interruption = why
            self.context.ask_to_stop()
            # Cancelled before its first step a loop's task would take none at all, and its end would not be reported.
            if self.loop_task is not None and self.started_at:
                self.loop_task.cancel()
            if self.on_interrupt is not None:
                self.on_interrupt()


def about(task: StoredTask) -> dict[str, str]:
    """Return what every log record of a task carries."""
    return {"task_id": task.id, "task_name": task.name, "task_queue": task.queue}


async def run_async(attempt: Attempt, loop_ends: Callable[[], bool] = lambda: False) -> Outcome:
    """Run a coroutine function to its outcome, on the running loop.

    :param loop_ends: tells whether a cancellation is that of everything at the loop's end.
    """
    if attempt.interruption is not None:
        return interrupted(attempt)
    if attempt.loop_task is None:
        attempt.loop_task = asyncio.current_task()
    token = running.set(attempt.context)
    around = attempt.codec.plugins.around_task
    entered = None if around is None else _enter(attempt, around)
    attempt.started_at = time.perf_counter()
    call: _Arguments | None = None
    try:
        args, kwargs = call = attempt.codec.decode_arguments(attempt.given, attempt.function.definition.types[0])
        definition = attempt.function.definition
        function = definition.function if not definition.injection else _injecting(call_async, attempt)
        timeout = attempt.given.timeout
        if timeout is None:
            value = await function(*args, **kwargs)
        else:
            value = await _within(timeout, attempt, function(*args, **kwargs))
        outcome = _succeeded(attempt, value)
    except BaseException as error:  # a task's SystemExit is the task's, not the worker's
        attempt.note_end()
        if isinstance(error, asyncio.CancelledError) and loop_ends():
            _heed_end_of_loop(attempt)
        attempt.error = error
        outcome = _ended_by(attempt, error, call)
    attempt.note_end()
    # An interruption that comes from here on must not cancel what the executor still has to do.
    attempt.loop_task = None
    if entered is not None:
        _leave(attempt, entered, outcome)
    running.reset(token)
    return outcome


def _heed_end_of_loop(attempt: Attempt) -> None:
    if attempt.interruption is None:
        attempt.interruption = Interruption.LEASE_LOST  # the worker ends, too; that is no failure of the task's


def _injecting(call: Callable[..., Any], attempt: Attempt) -> Callable[..., Any]:
    """Return an attempt's function as one that takes the arguments alone."""
    return partial(call, attempt.function.definition, attempt.resources or Resources(None))


async def _within(timeout: float, attempt: Attempt, work: Awaitable[Any]) -> Any:
    bound = asyncio.timeout(timeout)
    try:
        async with bound:
            return await work
    except TimeoutError:
        if bound.expired():
            raise _timeout_error(attempt.task) from None
        raise


def run_sync(attempt: Attempt) -> Outcome:
    """Run a plain function to its outcome, on the calling thread."""
    if attempt.interruption is not None:
        return interrupted(attempt)
    token = running.set(attempt.context)
    around = attempt.codec.plugins.around_task
    entered = None if around is None else _enter(attempt, around)
    attempt.started_at = time.perf_counter()
    call: _Arguments | None = None
    try:
        args, kwargs = call = attempt.codec.decode_arguments(attempt.given, attempt.function.definition.types[0])
        definition = attempt.function.definition
        function = definition.function if not definition.injection else _injecting(call_sync, attempt)
        value = function(*args, **kwargs)
        outcome = _succeeded(attempt, value)
    except BaseException as error:  # a task's SystemExit is the task's, not the worker's
        attempt.note_end()
        attempt.error = error
        outcome = _ended_by(attempt, error, call)
    attempt.note_end()
    if entered is not None:
        _leave(attempt, entered, outcome)
    running.reset(token)
    return outcome


def _enter(attempt: Attempt, around: Around) -> Entered:
    """Enter the hooks around an attempt, in the context in which its function is about to run."""
    types = attempt.function.definition.types
    # One that can be asked for its arguments.
    task = evolve(attempt.task, decoder=FunctionDecoder(attempt.codec, lambda _: types))
    return around(task=task, worker=task.worker or "")


def _leave(attempt: Attempt, entered: Entered, outcome: Outcome) -> None:
    """Leave the hooks around an attempt, of which the outcome is known and not recorded yet."""
    if attempt.context.is_forked:
        return  # it is about to be ended: the hooks are left where they were entered
    error = attempt.error
    if error is not None and _signal(error) is not None:
        error = None
    entered.leave(Ending(outcome=outcome, error=error, seconds=attempt.seconds, taken=attempt.decide_itself()))


def timed_out(attempt: Attempt) -> Outcome:
    """Return the outcome of an attempt on a thread, which nothing can stop, once its timeout is over."""
    return failed(attempt, _timeout_error(attempt.task))


def rejected(task: StoredTask, error: PayloadRejected) -> Failed:
    """Return the outcome of a task of which nothing may be read. Its record keeps the bytes."""
    described = TaskError(type=type(error).__name__, message=_shorten(str(error), LONGEST_MESSAGE))
    return Failed(id=task.id, delivery=task.delivery, error=described)


def _timeout_error(task: Task) -> TaskTimeout:
    return TaskTimeout(f"{task.name} took longer than its timeout of {task.timeout:g} s")


def _succeeded(attempt: Attempt, value: Any) -> Outcome:
    task = attempt.given
    if attempt.interruption is not None and attempt.context.stop_seen:
        return interrupted(attempt)
    if attempt.context.completed:
        # Only the store knows whether that was committed. If it was, this outcome is refused, see completer.py.
        return failed(attempt, NotCommitted(task.id))
    try:
        return attempt.codec.success(task, value, attempt.function.definition.types[1])
    except SerializationError as error:
        # The work is done; doing it again would end the same way.
        attempt.error = error
        return Failed(id=task.id, delivery=task.delivery, error=describe_error(error))


def _ended_by(attempt: Attempt, error: BaseException, call: _Arguments | None) -> Outcome:
    if attempt.interruption is not None and (isinstance(error, asyncio.CancelledError) or attempt.context.stop_seen):
        return interrupted(attempt)
    mismatch = _mismatch(attempt, error, call)
    return failed(attempt, error) if mismatch is None else put_back(attempt.task, mismatch)


def _mismatch(attempt: Attempt, error: BaseException, call: _Arguments | None) -> ArgumentsMismatch | None:
    """Return why the function as it is here cannot take the arguments; None if the error has another reason."""
    if call is None:
        return error if isinstance(error, ArgumentsMismatch) else None
    if type(error) is TypeError:
        # Looked at only now: whether a call fits takes longer to find out than most calls take.
        try:
            attempt.function.definition.check_arguments(*call)
        except TypeError as told:
            return ArgumentsMismatch(str(told))
    return None


def interrupted(attempt: Attempt) -> Outcome:
    """Return the outcome of an attempt that was interrupted and has stopped."""
    task = attempt.given
    if attempt.interruption is Interruption.CANCEL:
        return Cancelled(id=task.id, delivery=task.delivery)
    return Released(id=task.id, delivery=task.delivery)


def failed(attempt: Attempt, error: BaseException) -> Outcome:
    """Return the outcome of an attempt that ended with an error: a retry, or failure for good."""
    task = attempt.task
    attempt.error = error
    described = describe_error(error)
    signal = _signal(error)
    if signal is not None and signal is not error:
        # A child of the task's asked for it: the group of its task group is only how that came here.
        described = evolve(describe_error(signal), traceback=described.traceback)
    delay = _retry_delay(attempt, error if signal is None else signal)
    if delay is None:
        return Failed(id=task.id, delivery=task.delivery, error=described)
    return Retry(id=task.id, delivery=task.delivery, delay=delay, error=described)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors within a group of errors and the groups in it; of any other error itself."""
    found = [error]
    while found:
        error = found.pop()
        if isinstance(error, BaseExceptionGroup):
            found.extend(error.exceptions)
        else:
            yield error


def _signal(error: BaseException) -> TaskSignal | None:
    """Return what the task asked for, itself or in a task group: failure for good before another attempt."""
    signals = [leaf for leaf in _leaves(error) if isinstance(leaf, TaskSignal)]
    return min(signals, key=lambda signal: not isinstance(signal, FailSignal), default=None)


def _is_retried(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    # Of a group all count: one that would fail the task alone would be raised again, and fail it then.
    leaves = list(_leaves(error))
    if any(isinstance(leaf, (SerializationError, PayloadRejected, UpstreamFailed, ResultGone)) for leaf in leaves):
        return False
    return isinstance(error, kinds) or all(isinstance(leaf, kinds) for leaf in leaves)


def _retry_delay(attempt: Attempt, error: BaseException) -> float | None:
    task = attempt.task
    if task.attempt > task.max_retries or isinstance(error, FailSignal):
        return None
    if isinstance(error, RetrySignal):
        if error.delay is not None:
            return error.delay
    elif not _is_retried(error, (*attempt.function.definition.retry_on, TaskTimeout, WorkerLost, NotCommitted)):
        return None
    try:
        policy = attempt.codec.load_policy(task.retry_spec) or attempt.function.options.retry
        delay = policy.next_delay(task.attempt, error)
        return None if delay is None else duration(delay, "the delay")
    except BaseException:  # a policy is foreign code, too
        _log.exception(
            "the retry policy of task %s (%s) is broken; the task is tried again after the default delay",
            task.id,
            task.name,
            extra=about(task),
        )
        return Exponential().next_delay(task.attempt, error)


def describe_error(error: BaseException) -> TaskError:
    """Return an error as text, with its traceback from the task's own code on."""
    cls = type(error)
    # Python's own errors and ours are known by their bare names, here and in every store; so are those of no module,
    # such as of a class that code made.
    module: object = cls.__module__
    own = not isinstance(module, str) or module == "builtins" or module.startswith("omniq.")
    name = cls.__qualname__ if own else f"{module}.{cls.__qualname__}"
    message = _shorten(_text(error), LONGEST_MESSAGE)
    return TaskError(type=name, message=message, traceback=_traceback(error, f"{name}: {message}"))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:  # a faulty __str__ must not hide that the task failed
        return f"<no text: str() of the error raised {type(broken).__name__}>"


def _is_huge(error: BaseException) -> bool:
    """Tell whether formatting an error, and those that led to it, would take long and much memory."""
    found: list[BaseException | None] = [error]
    seen: set[int] = set()
    while found:
        one = found.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        notes = getattr(one, "__notes__", ())
        if len(_text(one)) > LONGEST_TRACEBACK or any(len(str(note)) > LONGEST_TRACEBACK for note in notes):
            return True
        found += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
    return False


def _traceback(error: BaseException, summary: str) -> str:
    trace = error.__traceback__
    if trace is None:
        return ""  # nothing was raised in the task's code: its process died, say
    # Our own frames at the top say nothing to the author of the task.
    while trace is not None and trace.tb_frame.f_code.co_filename in _OUR_FILES:
        trace = trace.tb_next
    try:
        if _is_huge(error):
            text = "".join(["Traceback (most recent call last):\n", *traceback.format_tb(trace), summary, "\n"])
        else:
            text = "".join(traceback.format_exception(type(error), error, trace))
    except BaseException as broken:  # likewise
        text = f"<no traceback: formatting it raised {type(broken).__name__}>"
    return _shorten(text, LONGEST_TRACEBACK)


def _shorten(text: str, limit: int) -> str:
    """Return a text that any store can hold, with a part of it left out if it is longer than so many characters."""
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
    # Lone surrogates, such as of undecodable file names, fit into no store.
    return text.encode("utf-8", "backslashreplace").decode()
