"""What each verb of the contract means, written once: pure functions over a few primitives of a transaction.

A store that can run Python inside its transaction runs these, through :class:`~omniq.storage.SimpleStorage`; one that
does its verbs in another language (SQL, Lua) does what these do. Which records qualify and who loses a race is said in
:class:`~omniq.storage.Storage`, whose methods these functions are named after; here it can be read as code. The verbs
of flows are in :mod:`~omniq.storage.flow_transitions`, which these call for whatever they do to a task of a flow, and
what limits ask of them in :mod:`~omniq.storage.limit_transitions`.

Nothing here does I/O or looks at a clock of its own: the primitives do, and ``tx.now`` is the store's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import evolve

from omniq.flow import Flow, NewFlow
from omniq.schedule import Schedule
from omniq.storage.flow_transitions import (
    adopt_flow,
    count_ends,
    doubt,
    enqueue_into_flow,
    opened_flows,
    prune_flows,
    settle,
)
from omniq.storage.limit_transitions import claim_lines, give_back, is_lined, lock_limits, moved, prune_lines
from omniq.storage.primitives import ClaimTransaction, FlowTransaction, Transaction
from omniq.storage.states import (
    anew_task,
    answered_task,
    changed_task,
    claimed_task,
    ended_task,
    holds_key,
    is_held,
    later,
    stored_task,
    taken_back_task,
    waiting_task,
)
from omniq.storage.validation import check_adoptable
from omniq.storage.values import Adoption, Enqueued, Lease, LeaseState, Salvaged
from omniq.task import NewTask, Outcome, Progress, Released, StoredTask, TaskError, TaskState

__all__ = [
    "adopt",
    "cancel",
    "claim",
    "delete",
    "delete_schedule",
    "enqueue",
    "finish",
    "fire",
    "heartbeat",
    "prune",
    "purge",
    "put_schedule",
    "recover",
    "retry",
    "run_now",
    "set_progress",
]


def _save(tx: FlowTransaction, tasks: Sequence[StoredTask]) -> None:
    """Save tasks that were not final before, and count in their flows those that are now."""
    if any(map(is_lined, tasks)):
        lock_limits(tx)  # first: a claim that holds this lock would wait for the rows and counts that are changed here
    tx.save(tasks)
    moved(tx, tasks)
    _count_ended(tx, tasks)


def _count_ended(tx: FlowTransaction, tasks: Sequence[StoredTask]) -> None:
    """Count in their flows those of some tasks that have just ended."""
    members = [task for task in tasks if task.flow is not None and task.state.is_final]
    if members:
        count_ends(tx, members)


def enqueue(tx: FlowTransaction, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
    if flow is not None:
        return enqueue_into_flow(tx, tasks, flow)
    members = [task for task in tasks if task.flow is not None]
    others = [task for task in tasks if task.flow is None]
    if members:
        tx.flows(sorted({task.flow for task in members if task.flow is not None}))  # locked before all else
    if any(task.key is not None or task.limit is not None or task.debounce is not None for task in others):
        lock_limits(tx)  # two that take one key's place would each wait for what the other has locked
    superseded, new, answers = _plan(tx, others, {task.id for task in members})

    def store() -> None:
        tx.save(superseded)  # they are of no flow, and were never started: no line waits for what they held
        tx.insert(new)
        moved(tx, new)  # a store may have had to wait for a key, which holds up no claim before this

    if not members:
        store()
        return answers
    added, rest = iter(enqueue_into_flow(tx, members, None, store)), iter(answers)
    return [next(rest if task.flow is None else added) for task in tasks]


def _plan(
    tx: FlowTransaction, tasks: Sequence[NewTask], beside: Iterable[str]
) -> tuple[list[StoredTask], list[StoredTask], list[Enqueued]]:
    """Make all records of tasks to be stored, and write nothing: a store may have no way back from half of a call.

    :param beside: the ids of those of the same call that are stored elsewhere.
    :return: the stored tasks that are ended, as others take their places; the new ones; and the answers.
    """
    known = {*tx.load(task.id for task in tasks), *beside}
    holders = tx.holders({task.unique for task in tasks if task.unique is not None})
    debounced = {task.unique for task in tasks if task.debounce is not None}
    old = tx.load(holder for key, holder in holders.items() if key in debounced) if debounced else {}
    new: dict[str, StoredTask] = {}
    superseded: dict[str, StoredTask] = {}
    answers = []
    for task in tasks:
        holder = None if task.unique is None else holders.get(task.unique)
        first_at = None
        if holder is not None and task.debounce is not None and task.id not in known:
            waiting = new.get(holder) or old.get(holder)
            if waiting is None or not holds_key(waiting):
                first_at = tx.now  # it was started meanwhile
            elif waiting.first_at is not None:
                first_at = waiting.first_at
                error = TaskError(type=SUPERSEDED, message=f"task {task.id} ({task.name}) took its place")
                ended = ended_task(waiting, TaskState.CANCELLED, tx.now, error=error)
                (new if holder in new else superseded)[holder] = ended
        if task.id in known:
            answers.append(Enqueued(task.id, False))
        elif holder is not None and first_at is None:
            answers.append(Enqueued(holder, False))
        else:
            known.add(task.id)
            if task.unique is not None:
                holders[task.unique] = task.id
            new[task.id] = stored_task(task, tx.now, first_at)
            answers.append(Enqueued(task.id, True))
    return list(superseded.values()), list(new.values()), answers


SUPERSEDED = "Superseded"
"""The type of the error with which a debounced task ends whose place another takes."""


def claim(
    tx: ClaimTransaction, demand: Mapping[str, int], worker: str, lease: float, limit: int | None
) -> list[StoredTask]:
    settle(tx, SETTLED)
    paused, claimed = tx.paused(), []
    lanes = tx.lanes(demand)
    if lanes:
        lock_limits(tx)
    left = sum(demand.values()) if limit is None else limit
    until = later(tx.now, lease)
    for queue, most in demand.items():
        if queue in paused:
            continue
        wanted = min(most, left)
        lined = tx.promote(queue, max(PROMOTED, 2 * wanted))
        if lined:
            moved(tx, lined)
        if lined or queue in lanes:
            taken = claim_lines(tx, queue, wanted, worker, until, lambda tasks: _save(tx, tasks))
            claimed += taken
            left -= len(taken)
            continue
        while wanted > 0 and (found := tx.ready(queue, wanted)):
            changed = [claimed_task(task, worker, tx.now, until) for task in found]
            tx.save(changed)
            taken = [task for task in changed if task.state is TaskState.RUNNING]
            if len(taken) < len(changed):  # others had expired, or cannot be read
                _count_ended(tx, changed)
            claimed += taken
            is_all = len(found) < wanted
            left, wanted = left - len(taken), wanted - len(taken)
            if is_all:
                break  # to ask for more would be a query in vain
    return claimed


SETTLED = 1000
"""Tasks of flows that a claim or a recover moves for others at most."""
PROMOTED = 1000
"""Scheduled tasks that one claim makes ready at most, unless it takes more itself."""


def finish(tx: Transaction, outcomes: Sequence[Outcome]) -> list[bool]:
    tasks = tx.load(outcome.id for outcome in outcomes)
    answers = []
    changed: dict[str, StoredTask] = {}
    released = []
    for outcome in outcomes:
        task = tasks.get(outcome.id)
        answers.append(is_held(task, outcome))
        if task is not None and answers[-1]:
            tasks[outcome.id] = changed[outcome.id] = answered_task(task, outcome, tx.now)
            if isinstance(outcome, Released):
                released.append(task)
    _save(tx, list(changed.values()))
    if released:
        give_back(tx, released)
    return answers


def heartbeat(
    tx: Transaction, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
) -> list[LeaseState]:
    tx.seen(worker, lease, about)
    tasks, until = tx.load(one.id for one in leases), later(tx.now, lease)
    states = []
    extended = {}
    for one in leases:
        task = tasks.get(one.id)
        if task is None or not is_held(task, one):
            states.append(LeaseState.LOST)
            continue
        states.append(LeaseState.CANCEL_REQUESTED if task.cancel_requested else LeaseState.HELD)
        extended[one.id] = changed_task(task, lease_until=until)
    tx.save(list(extended.values()))
    return states


def recover(tx: Transaction, limit: int) -> list[StoredTask]:
    lost = [taken_back_task(task, tx.now) for task in tx.lapsed(limit)]
    _save(tx, lost)
    if limit > len(lost):
        _save(tx, [ended_task(task, TaskState.CANCELLED, tx.now) for task in tx.expired(limit - len(lost))])
    settle(tx, SETTLED)
    return lost


def cancel(tx: Transaction, ids: Sequence[str]) -> list[bool]:
    def change(task: StoredTask) -> StoredTask | None:
        if task.state is TaskState.RUNNING:
            return changed_task(task, cancel_requested=True)
        return None if task.state.is_final else ended_task(task, TaskState.CANCELLED, tx.now)

    return _each(tx, ids, change)


def retry(tx: FlowTransaction, ids: Sequence[str]) -> list[bool]:
    tasks = tx.load(ids)
    holders = tx.holders({task.unique for task in tasks.values() if task.unique is not None})
    flows = opened_flows(tx, [task for task in tasks.values() if task.flow is not None])

    def change(task: StoredTask) -> StoredTask | None:
        if task.state not in (TaskState.FAILED, TaskState.CANCELLED):
            return None
        if task.unique in holders and holds_key(changed_task(task, state=TaskState.READY)):
            return None
        if isinstance(task, Salvaged):
            return None
        if task.flow is not None:
            step = flows.get(task.flow)
            return step.revived(task) if step is not None and step.can_retry(task) else None
        new = anew_task(task, tx.now)
        if task.unique is not None and holds_key(new):
            holders[task.unique] = task.id
        return new

    answers = _each(tx, ids, change)
    for step in flows.values():
        step.close()
    return answers


def run_now(tx: Transaction, ids: Sequence[str]) -> list[bool]:
    def change(task: StoredTask) -> StoredTask | None:
        is_later = task.state is TaskState.SCHEDULED and task.run_at > tx.now
        return waiting_task(task, tx.now, 0) if is_later else None

    return _each(tx, ids, change)


def _each(tx: FlowTransaction, ids: Sequence[str], change: Callable[[StoredTask], StoredTask | None]) -> list[bool]:
    """Change tasks one after the other, so that one that is named twice is changed by the second as the first left it.

    :param change: returns the new record, or None if the task stays as it is.
    """
    tasks = tx.load(ids)
    answers = []
    changed: dict[str, StoredTask] = {}
    for task_id in ids:
        new = change(tasks[task_id]) if task_id in tasks else None
        answers.append(new is not None)
        if new is not None:
            tasks[task_id] = changed[task_id] = new
    _save(tx, list(changed.values()))
    return answers


def delete(tx: FlowTransaction, ids: Sequence[str]) -> list[bool]:
    tasks = tx.load(ids)
    answers = []
    removed = []
    for task_id in ids:
        task = tasks.pop(task_id, None)
        answers.append(task is not None and task.state is not TaskState.RUNNING)
        if task is not None and answers[-1]:
            removed.append(task)
    _remove(tx, removed)
    return answers


def _remove(tx: FlowTransaction, tasks: Sequence[StoredTask]) -> None:
    """Remove tasks that are not running, and count those that were live as cancelled."""
    tx.remove([task.id for task in tasks])
    members = [task for task in tasks if task.flow is not None and not task.state.is_final]
    if members:
        count_ends(tx, [ended_task(task, TaskState.CANCELLED, tx.now) for task in members])
    doubt(tx, [task for task in tasks if isinstance(task, Salvaged)])


def purge(tx: Transaction, queue: str, states: Sequence[TaskState], limit: int) -> int:
    tasks = tx.in_states(queue, states, limit)
    _remove(tx, tasks)
    return len(tasks)


def prune(tx: Transaction, limit: int) -> int:
    tasks = tx.dropped(limit)
    tx.remove([task.id for task in tasks])
    prune_lines(tx, limit)
    return len(tasks) + prune_flows(tx, limit - len(tasks))


def set_progress(tx: Transaction, updates: Mapping[Lease, Progress]) -> None:
    tasks = tx.load(lease.id for lease in updates)
    tx.save(
        [
            changed_task(tasks[lease.id], progress=progress)
            for lease, progress in updates.items()
            if is_held(tasks.get(lease.id), lease)
        ]
    )


def put_schedule(tx: Transaction, schedule: Schedule, expected: int | None) -> Schedule | None:
    revision = tx.revision(schedule.id) or 0
    if expected is not None and expected != revision and (expected != 0 or tx.schedule(schedule.id) is not None):
        return None
    new = evolve(schedule, revision=1 + (revision or tx.revision_floor()))
    tx.store_schedule(new)
    return new


def delete_schedule(tx: Transaction, schedule_id: str) -> bool:
    revision = tx.revision(schedule_id)
    if revision is None:
        return False
    # So that no revision is ever used again: one who read it before would take its successor for it.
    tx.raise_revision_floor(max(tx.revision_floor(), revision))
    tx.remove_schedule(schedule_id)
    return True


def fire(tx: Transaction, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
    if schedule.revision == 0 or tx.revision(schedule.id) != schedule.revision:
        return None
    answers = enqueue(tx, tasks)  # first: it may refuse them, and a store may have no way back
    put_schedule(tx, schedule, schedule.revision)
    return answers


def adopt(tx: FlowTransaction, tasks: Sequence[StoredTask], flows: Sequence[Flow] = ()) -> list[Adoption]:
    check_adoptable(tasks)
    named = {task.flow for task in tasks if task.flow is not None} | {flow.id for flow in flows}
    if named:
        tx.flows(sorted(named))  # all are locked, in one order everywhere, before the first of them is changed
    answers = [adopt_flow(tx, flow) for flow in flows]
    steps = opened_flows(tx, tasks)
    known = set(tx.load(task.id for task in tasks))
    holders = tx.holders({task.unique for task in tasks if task.unique is not None})
    new = []
    for task in tasks:
        key = task.unique if holds_key(task) else None
        if task.id in known:
            answers.append(Adoption.PRESENT)
        elif task.flow is not None and task.flow not in steps:
            answers.append(Adoption.NO_FLOW)
        elif key is not None and key in holders:
            answers.append(Adoption.KEY_TAKEN)
        else:
            known.add(task.id)
            if key is not None:
                holders[key] = task.id
            new.append(task)
            answers.append(Adoption.STORED)
    tx.insert(new)
    moved(tx, new)
    for task in new:
        if task.flow is not None:
            steps[task.flow].adopt(task)
    for step in steps.values():
        step.close()
    return answers
