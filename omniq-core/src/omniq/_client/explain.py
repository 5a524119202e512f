"""Why a task is not running: what holds it back, or what has become of it, in words and as values.

:func:`explain` is a pure function of what was read; :func:`explained` reads that from a store.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from attrs import field, frozen

from omniq._tasks.definitions import Executor
from omniq._tasks.pickled_functions import PREFIX, is_carried
from omniq._tasks.scheduled_flows import is_flow_run
from omniq._worker.releasing import PUT_BACK_LIMIT, times_put_back
from omniq._worker.worker_info import WorkerAbout, WorkerInfo, as_worker_info, serves
from omniq.flow import Flow, GateState
from omniq.limit import LimitUsage, Scope, UnreadableLimit
from omniq.schedule import Schedule
from omniq.storage import QueueStats, Storage, TaskQuery
from omniq.storage.body import as_task
from omniq.task import StoredTask, Task, TaskError, TaskState

__all__ = ["Reason", "ReasonKind", "explain", "explained"]

LIVE = frozenset(state for state in TaskState if not state.is_final)
LONGEST_ERROR = 200
"""Characters of an error's message that a reason holds."""
NAMED = 5
"""So many queues, or tasks, are named in a text; ``fields`` has all."""
READ_AT_ONCE, MOST_READ = 25, 500
"""Running tasks that are read in one call, and in all, to see which slots they take."""
INPUTS = 1000
"""The latest tasks that have not ended, among which those are looked for that a blocked one waits for."""
LATEST_LOOK = 1.25
"""A worker looks for lapsed leases not later than after so many of its ``recover_every``."""


class ReasonKind(StrEnum):
    """Of what kind a :class:`Reason` is. Those that hold a task back are looked for in this order."""

    ENDED = "ended"
    DELAYED = "delayed"
    """It waits for its time."""
    RETRYING = "retrying"
    """It waits for its next attempt."""
    PUT_BACK = "put back"
    """A worker could not run it, and it waits to be offered to others."""
    BLOCKED = "blocked"
    """It waits for other tasks of its flow."""
    QUEUE_LIMIT = "queue limit"
    """As many tasks of its queue run, or have started, as may."""
    KEY_LIMIT = "key limit"
    """As many tasks of its key run, or have started, as may."""
    NAMED_LIMIT = "named limit"
    """As many tasks with its named limit run, or have started, as may."""
    PAUSED = "paused"
    NO_WORKER = "no worker"
    QUEUE_NOT_SERVED = "queue not served"
    FUNCTION_UNKNOWN = "function unknown"
    SERIALIZER_NOT_ACCEPTED = "serializer not accepted"
    SLOTS_TAKEN = "slots taken"
    EARLIER_QUEUE = "earlier queue"
    """A queue that its workers serve first has work."""
    TASKS_AHEAD = "tasks ahead"
    NEXT = "next"
    """Nothing holds it back."""
    EXPIRES = "expires"
    RUNNING = "running"
    CANCEL_REQUESTED = "cancel requested"
    """It was asked to stop, and has not done so."""
    LEASE_OVER = "lease over"
    """Its worker died or cannot reach the store."""


@frozen(kw_only=True)
class Reason:
    """One reason why a task does not run, or does not run any more, or what it does."""

    kind: ReasonKind
    text: str
    """A sentence for people."""
    fields: Mapping[str, Any] = field(factory=dict)
    """What the sentence is made of: texts, numbers, datetimes, lists of texts, or None."""

    def __str__(self) -> str:
        return self.text


def explain(
    task: Task,
    *,
    stats: Sequence[QueueStats],
    workers: Sequence[WorkerInfo],
    schedules: Sequence[Schedule] = (),
    limits: Sequence[LimitUsage] = (),
    flows: Sequence[Flow] = (),
    inputs: Sequence[StoredTask] = (),
    executors: Mapping[str, Executor] | None = None,
    now: datetime,
) -> list[Reason]:
    """Return why a task is not running, the reason that is the first to see to first.

    :param task: the task.
    :param stats: the queues in numbers.
    :param workers: the workers that are alive. One that did not tell what it is may be able to do anything.
    :param schedules: of these the one that enqueued the task is named.
    :param limits: how the limits stand that hold for the task.
    :param flows: among them the flow that the task belongs to.
    :param inputs: tasks that have not ended; of these the ones that the task waits for are named.
    :param executors: on which executor the tasks run that workers hold, by the tasks' ids; others count as on none.
    :param now: the store's clock.
    :return: at least one reason.
    """
    if task.state.is_final:
        return [_ended(task, schedules, now)]
    if task.state is TaskState.RUNNING:
        return list(_running(task, workers, now))
    reasons = [_not_due(task, now)] if _is_later(task, now) else []
    if task.state is TaskState.BLOCKED:
        reasons.append(_blocked(task, flows, inputs))
    reasons += _waiting(task, {one.queue: one for one in stats}, workers, limits, executors or {}, now)
    return reasons


async def explained(storage: Storage, task: Task) -> list[Reason]:
    """Return why a task is not running, see :func:`explain`; reads from the store what that takes.

    :param storage: an open storage.
    :param task: the task as it was read from there.
    """
    if task.state.is_final:
        schedules = await storage.get_schedules()
        return explain(task, stats=(), workers=(), schedules=schedules, now=await storage.now())
    workers = [as_worker_info(worker) for worker in await storage.workers()]
    if task.state is TaskState.RUNNING:
        return explain(task, stats=(), workers=workers, now=await storage.now())
    executors: dict[str, Executor] = {}
    for worker in workers:
        if worker.about is not None and len(worker.running) >= worker.about.slots.get(_executor(task, worker.about), 1):
            await _read_executors(storage, worker, worker.about, executors)
    flows: list[Flow] = []
    inputs: tuple[StoredTask, ...] = ()
    if task.state is TaskState.BLOCKED and task.flow is not None:
        flows = [flow for flow in await storage.get_flows([task.flow]) if flow is not None]
        inputs = (await storage.list_tasks(TaskQuery(states=LIVE, bare=True, limit=INPUTS, look_at=INPUTS))).tasks
    return explain(
        task,
        stats=await storage.stats(),
        workers=workers,
        limits=await storage.get_limit_usage(_scopes(task)) if storage.limits.task_limits else (),
        flows=flows,
        inputs=inputs,
        executors=executors,
        now=await storage.now(),
    )


def _scopes(task: Task) -> list[Scope]:
    scopes = [Scope(task.queue)]
    if task.key is not None:
        scopes.append(Scope(task.queue, task.key))
    if task.limit is not None:
        scopes.append(Scope(name=task.limit))
    return scopes


async def _read_executors(
    storage: Storage, worker: WorkerInfo, about: WorkerAbout, executors: dict[str, Executor]
) -> None:
    ids = worker.running[: MOST_READ - len(executors)]
    for start in range(0, len(ids), READ_AT_ONCE):
        for stored in await storage.get(ids[start : start + READ_AT_ONCE]):
            if stored is not None:
                executors[stored.id] = _executor(as_task(stored), about)


# Ended, running


def _ended(task: Task, schedules: Sequence[Schedule], now: datetime) -> Reason:
    expired = (
        task.state is TaskState.CANCELLED
        and task.expires_at is not None
        and task.finished_at is not None
        and task.finished_at >= task.expires_at
    )
    fields: dict[str, Any] = {"state": task.state.value, "at": task.finished_at, "expired": expired}
    text = f"it ended as {task.state}{_at(task.finished_at, now)}"
    if expired:
        text += f": it had not begun when it expired{_at(task.expires_at, now)}"
    elif task.error is not None and task.state is not TaskState.SUCCEEDED:
        text += f": {_error(task.error)}"
    for schedule in schedules:
        if task.id == schedule.last_task or task.id in schedule.live_tasks:
            fields |= {"schedule": schedule.id, "next_run": None if schedule.paused else schedule.next_run}
            text += f"; {_next_run(schedule, now)}"
    return Reason(kind=ReasonKind.ENDED, text=text, fields=fields)


def _next_run(schedule: Schedule, now: datetime) -> str:
    if schedule.paused:
        return f"its schedule {schedule.id!r} is paused"
    if schedule.next_run is None:
        return f"its schedule {schedule.id!r} never runs again"
    return f"the next run of its schedule {schedule.id!r} is due{_at(schedule.next_run, now)}"


def _running(task: Task, workers: Sequence[WorkerInfo], now: datetime) -> Iterator[Reason]:
    left = None
    text = f"it runs on worker {task.worker}{_at(task.started_at, now, 'since')}, attempt {task.attempt} of "
    text += f"{task.max_retries + 1}"
    if task.progress is not None:
        total = "" if task.progress.total is None else f" of {task.progress.total:g}"
        note = f" ({task.progress.note})" if task.progress.note else ""
        text += f"; it has done {task.progress.done:g}{total}{note}"
    if task.timeout is not None and task.started_at is not None:
        left = max(0.0, task.timeout - (now - task.started_at).total_seconds())
        text += f"; {_span(left)} of its timeout are left" if left else "; its timeout is over"
    fields = {
        "worker": task.worker,
        "since": task.started_at,
        "attempt": task.attempt,
        "done": task.progress and task.progress.done,
        "total": task.progress and task.progress.total,
        "timeout_left": left,
    }
    yield Reason(kind=ReasonKind.RUNNING, text=text, fields=fields)
    if task.cancel_requested:
        yield _asked_to_stop(task, workers)
    if task.lease_until is not None and task.lease_until < now:
        yield _lease_over(task, task.lease_until, workers, now)


def _asked_to_stop(task: Task, workers: Sequence[WorkerInfo]) -> Reason:
    abouts = [worker.about for worker in workers if worker.id == task.worker and worker.about is not None]
    executor = _executor(task, *abouts)
    if executor == "thread":
        text = "it was asked to stop, and a thread has to look: it goes on until it reads current_task().cancelled"
    else:
        text = "it was asked to stop, which its worker does with its next heartbeat"
    return Reason(kind=ReasonKind.CANCEL_REQUESTED, text=text, fields={"executor": executor})


def _lease_over(task: Task, since: datetime, workers: Sequence[WorkerInfo], now: datetime) -> Reason:
    every = [worker.about.recover_every for worker in workers if worker.about is not None]
    by = since + timedelta(seconds=LATEST_LOOK * min(every)) if every else None
    text = f"its lease is over{_at(since, now, 'since')}: worker {task.worker} died, or cannot reach the store; "
    if not workers:
        text += "no worker is alive to take it back: start one with omniq worker"
    elif by is None:
        text += "another worker takes it back soon"
    else:
        text += f"another worker takes it back{_at(by, now)} at the latest"
    return Reason(kind=ReasonKind.LEASE_OVER, text=text, fields={"worker": task.worker, "since": since, "by": by})


# Waiting


def _waiting(
    task: Task,
    stats: Mapping[str, QueueStats],
    workers: Sequence[WorkerInfo],
    limits: Sequence[LimitUsage],
    executors: Mapping[str, Executor],
    now: datetime,
) -> Iterator[Reason]:
    is_due = task.state is not TaskState.BLOCKED and not _is_later(task, now)
    own = stats.get(task.queue)
    reasons = [reason for usage in limits if is_due for reason in _held_back(usage, now)]
    if own is not None and own.paused:
        text = f"its queue {task.queue!r} is paused: omniq queues resume lets it go on"
        reasons.append(Reason(kind=ReasonKind.PAUSED, text=text, fields={"queue": task.queue}))
    able, missing = _able(task, workers)
    if missing is not None:
        reasons.append(missing)
    elif is_due:
        reasons.extend(_busy(task, able, stats, executors))
    if is_due:
        # Stores do not count by priority: perhaps it is ahead of some of them.
        ahead = max(0, own.counts.get(TaskState.READY, 0) - 1) if own is not None else 0
        if ahead:
            text = f"up to {_tasks(ahead, 'ready')} of queue {task.queue!r} {'is' if ahead == 1 else 'are'} ahead of it"
            reasons.append(Reason(kind=ReasonKind.TASKS_AHEAD, text=text, fields={"queue": task.queue, "most": ahead}))
        elif not reasons:
            text = "nothing holds it back: a worker claims it next"
            reasons.append(Reason(kind=ReasonKind.NEXT, text=text))
    yield from reasons
    if task.expires_at is not None:
        over = task.expires_at <= now
        text = f"it {'expired' if over else 'expires'}{_at(task.expires_at, now)}"
        text += ": it ends as cancelled" if over else ", and ends as cancelled unless it has begun by then"
        yield Reason(kind=ReasonKind.EXPIRES, text=text, fields={"at": task.expires_at})


def _held_back(usage: LimitUsage, now: datetime) -> Iterator[Reason]:
    scope, limit = usage.scope, usage.limit
    if limit is None:
        return
    if scope.name is not None:
        kind, called = ReasonKind.NAMED_LIMIT, f"limit {scope.name!r}"
    elif scope.key is not None:
        kind, called = ReasonKind.KEY_LIMIT, f"key {scope.key!r} of queue {scope.queue!r}"
    else:
        kind, called = ReasonKind.QUEUE_LIMIT, f"queue {scope.queue!r}"
    fields = {
        **scope._asdict(),
        "running": usage.running,
        "concurrency": limit.concurrency,
        "next_start": usage.next_start,
    }
    if isinstance(limit, UnreadableLimit):
        text = f"the limit of {called} cannot be read, and lets no task start"
        text += ": set it anew (omniq limits set), or delete it (omniq limits delete)"
        yield Reason(kind=kind, text=text, fields=fields)
    elif usage.is_full:
        text = f"{called} is at its concurrency: {usage.running:,} of at most {limit.concurrency:,} run"
        yield Reason(kind=kind, text=text, fields=fields)
    elif usage.next_start is not None and limit.rate is not None:
        text = f"{called} is at its rate of {limit.rate.count:,} in {limit.rate.per:g} s: the next one may start"
        yield Reason(kind=kind, text=text + _at(usage.next_start, now), fields=fields)


def _is_later(task: Task, now: datetime) -> bool:
    return task.state in (TaskState.SCHEDULED, TaskState.BLOCKED) and task.run_at > now


def _blocked(task: Task, flows: Sequence[Flow], inputs: Sequence[StoredTask]) -> Reason:
    own = next((flow for flow in flows if flow.id == task.flow), None)
    gates = [] if own is None else [gate for gate in own.gates if gate.n == task.behind]
    some = [one.id for one in inputs if one.flow == task.flow and any(feed.gate == task.behind for feed in one.feeds)]
    unmet = gates[0].unmet if gates else len(some)
    fields = {"flow": task.flow, "gate": task.behind, "unmet": unmet, "tasks": some}
    if own is not None and own.cancelled:
        text = "its flow is cancelled, and it ends as cancelled soon"
    elif gates and gates[0].state is not GateState.SHUT:
        text = "what it waited for has ended, and it follows soon"
    else:
        text = f"it waits for {_tasks(unmet, 'unfinished')} of its flow"
        text += f": {_names(some)}" if some else ""
        text += "; the flow is still being built" if own is not None and own.hold_until is not None else ""
    return Reason(kind=ReasonKind.BLOCKED, text=text, fields=fields)


def _not_due(task: Task, now: datetime) -> Reason:
    error = task.error
    fields: dict[str, Any] = {"at": task.run_at, "error": error and _error(error)}
    due = f"it is due{_at(task.run_at, now)}"
    if count := times_put_back(error):
        text = (
            f"it was put back {count} of {PUT_BACK_LIMIT} times, as no worker could run it ({fields['error']}); {due}"
        )
        return Reason(kind=ReasonKind.PUT_BACK, text=f"{text}; {due}", fields={**fields, "count": count})
    if task.attempt:
        after = "" if error is None else f" after {fields['error']}"
        text = f"it waits for retry {task.attempt} of {task.max_retries}{after}; {due}"
        fields |= {"retry": task.attempt, "max_retries": task.max_retries}
        return Reason(kind=ReasonKind.RETRYING, text=text, fields=fields)
    return Reason(kind=ReasonKind.DELAYED, text=f"it waits for its time: {due}", fields=fields)


def _able(task: Task, workers: Sequence[WorkerInfo]) -> tuple[list[WorkerInfo], Reason | None]:
    """Return the workers that can run a task, or else why none of them can."""
    if not workers:
        text = "no worker is alive: start one with omniq worker"
        return [], Reason(kind=ReasonKind.NO_WORKER, text=text)
    serving = [worker for worker in workers if serves(worker.about, task.queue)]
    if not serving:
        queues = sorted({name for worker in workers for name in (worker.about and worker.about.queues) or ()})
        text = f"no worker serves queue {task.queue!r}: those that are alive serve {_names(queues)}"
        return [], Reason(
            kind=ReasonKind.QUEUE_NOT_SERVED, text=text, fields={"queue": task.queue, "queues_served": queues}
        )
    knowing = [worker for worker in serving if _knows(worker.about, task.name)]
    if not knowing:
        known = {name for worker in serving if worker.about is not None for name in worker.about.functions}
        near = next(iter(difflib.get_close_matches(task.name, sorted(known), n=1)), None)
        hint = "" if near is None else f": do they know it as {near!r}?"
        text = f"no worker that serves queue {task.queue!r} knows function {task.name!r}"
        return [], Reason(
            kind=ReasonKind.FUNCTION_UNKNOWN, text=f"{text}{hint}", fields={"function": task.name, "near": near}
        )
    accepting = [worker for worker in knowing if _accepts(worker.about, task.serializer)]
    if not accepting:
        accepted = sorted({name for worker in knowing if worker.about is not None for name in worker.about.serializers})
        text = f"no worker that knows its function accepts serializer {task.serializer!r}: accepted are "
        text += f"{_names(accepted)}, and the first that claims the task rejects it"
        return [], Reason(
            kind=ReasonKind.SERIALIZER_NOT_ACCEPTED,
            text=text,
            fields={"serializer": task.serializer, "accepted": accepted},
        )
    return accepting, None


def _knows(about: WorkerAbout | None, name: str) -> bool:
    if about is None or about.function_count > len(about.functions):  # it did not name all that it knows
        return True
    return name in about.functions or is_flow_run(name) or (is_carried(name) and PREFIX in about.functions)


def _accepts(about: WorkerAbout | None, serializer: str) -> bool:
    return about is None or serializer in about.serializers


def _busy(
    task: Task, able: Sequence[WorkerInfo], stats: Mapping[str, QueueStats], executors: Mapping[str, Executor]
) -> Iterator[Reason]:
    abouts = [worker.about for worker in able if worker.about is not None]
    if len(abouts) == len(able) and all(_is_full(worker, task, executors) for worker in able):
        executor = _executor(task, *abouts)
        slots = sum(min(about.concurrency, about.slots.get(executor, about.concurrency)) for about in abouts)
        text = f"every slot of its executor is taken: the workers for it run {_tasks(slots, executor)} at once"
        yield Reason(kind=ReasonKind.SLOTS_TAKEN, text=text, fields={"executor": executor, "slots": slots})
    if len(abouts) < len(able):
        return
    # Of a worker that serves all queues the order is known to itself alone.
    orders = [about.queues[: about.queues.index(task.queue)] for about in abouts if isinstance(about.queues, tuple)]
    if len(orders) < len(able):
        return
    earlier = [[name for name in order if _has_work(stats.get(name))] for order in orders]
    if all(earlier):
        queues = list(dict.fromkeys(name for names in earlier for name in names))
        text = f"the workers for it serve other queues before {task.queue!r}, and there is work in "
        yield Reason(kind=ReasonKind.EARLIER_QUEUE, text=f"{text}{_names(queues)}", fields={"queues": queues})


def _is_full(worker: WorkerInfo, task: Task, executors: Mapping[str, Executor]) -> bool:
    about = worker.about
    if about is None:
        return False
    executor = _executor(task, about)
    taken = sum(executors.get(task_id) == executor for task_id in worker.running)
    return len(worker.running) >= about.concurrency or taken >= about.slots.get(executor, about.concurrency)


def _has_work(stats: QueueStats | None) -> bool:
    return stats is not None and not stats.paused and stats.counts.get(TaskState.READY, 0) > 0


def _executor(task: Task, *abouts: WorkerAbout) -> Executor:
    if task.is_async:
        return "loop"
    return "process" if any(task.name in about.process_functions for about in abouts) else "thread"


# Words


def _at(moment: datetime | None, now: datetime, word: str = "at") -> str:
    if moment is None:
        return ""
    ahead = (moment - now).total_seconds()
    relative = f"in {_span(ahead)}" if ahead > 0 else f"{_span(-ahead)} ago"
    return f" {word} {moment:%Y-%m-%d %H:%M:%S} UTC ({relative})"


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _error(error: TaskError) -> str:
    line = error.message.strip().partition("\n")[0]
    return f"{error.type}: {line if len(line) <= LONGEST_ERROR else f'{line[:LONGEST_ERROR]}…'}"


def _tasks(number: int, kind: str) -> str:
    return f"{number:,} {kind} task{'' if number == 1 else 's'}"


def _names(names: Iterable[str]) -> str:
    texts = [repr(name) for name in names]
    return ", ".join(texts[:NAMED]) + (f" and {len(texts) - NAMED:,} more" if texts[NAMED:] else "")
