"""What the verbs of the contract mean for flows: gates open or break, and what waits behind them moves.

What becomes of a task behind a gate is done a bounded number at a time, so that no step is long; what is left stands on
the flow's agenda, which any claim, recover or settle works off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from attrs import asdict, evolve

from omniq.errors import FlowClosed
from omniq.flow import Flow, Gate, GateState, NewFlow, NewGate, StoredFlow, StoredGate
from omniq.storage.limit_transitions import moved
from omniq.storage.primitives import FlowTransaction
from omniq.storage.states import anew_task, changed_task, ended_task, later, stored_task
from omniq.storage.values import Adoption, Enqueued, Salvaged
from omniq.task import NewTask, StoredTask, TaskError, TaskState

__all__ = [
    "FlowStep",
    "adopt_flow",
    "cancel_flow",
    "count_ends",
    "doubt",
    "enqueue_into_flow",
    "get_flows",
    "opened_flows",
    "prune_flows",
    "release_hold",
    "retry_flow",
    "settle",
]

SETTLED_AT_ONCE = 200
"""Tasks behind gates that are moved in the step that opens or breaks them, at most."""
LOCKED_SECONDS = 1.0
"""After which those of a cancelled flow are looked for again that another transaction was changing."""
AUDIT_SECONDS = 300.0
"""After which a flow that has not ended is looked at again: whether it waits for what cannot come."""
_WAITING = (TaskState.BLOCKED, TaskState.READY, TaskState.SCHEDULED)
_MOVING = (TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING)
_RETRIED = (TaskState.FAILED, TaskState.CANCELLED)
_UPSTREAM = "UpstreamFailed"
_MISSED = "a task that it waits for is not in the store, or cannot be read"
_ABANDONED = "the flow was not built to its end: what built it died, or took longer than its hold"
_CANCELLED_FLOW = "the flow was cancelled"


class FlowStep:
    """One flow within one transaction: what was read of it, and what is to be saved."""

    def __init__(self, tx: FlowTransaction, flow: StoredFlow) -> None:
        self.flow = flow
        self._tx = tx
        self._gates: dict[int, StoredGate] = {}
        self._changed: dict[int, StoredGate] = {}
        self._has_missed = False

    # Gates

    def read(self, numbers: Iterable[int]) -> None:
        """Read gates together that are going to be asked for."""
        wanted = [n for n in dict.fromkeys(numbers) if n not in self._gates]
        if wanted:
            found = self._tx.gates(self.flow.id, wanted)
            self._gates.update(found)
            for gate in found.values():
                if gate.state is GateState.BROKEN and not gate.failed and not self.flow.cancelled:
                    self.count(gate, 0)  # a cancellation that was taken back had broken it

    def gate(self, n: int) -> StoredGate | None:
        self.read([n])
        return self._gates.get(n)

    def add(self, new: NewGate) -> None:
        gate = StoredGate(n=new.n, rank=new.rank, unmet=int(new.hold), holds=int(new.hold))
        self._gates[new.n] = self._changed[new.n] = gate
        self.flow.held += gate.holds

    def count(self, gate: StoredGate, step: int, failures: int = 0, error: str = "") -> None:
        """Count inputs of a gate that come (1) or go (-1), and failures with them; and see what becomes of it."""
        gate.unmet += step
        gate.failed += failures
        gate.error = gate.error or error
        self._changed[gate.n] = gate
        if gate.state is GateState.BROKEN and not gate.failed:
            gate.state, gate.error, gate.revives = GateState.SHUT, "", True
            self.flow.agenda[gate.n] = None
        self.look(gate)

    def look(self, gate: StoredGate) -> None:
        flow = self.flow
        if gate.state is GateState.SHUT and (gate.failed or not gate.unmet):
            if gate.failed:
                gate.state = GateState.BROKEN
            elif flow.cancelled:
                # Were it open, those behind it would not wait for what a retry of the flow runs again.
                gate.state, gate.error = GateState.BROKEN, gate.error or _CANCELLED_FLOW
            elif not flow.retrying:
                gate.state = GateState.OPEN
            self._changed[gate.n] = gate
            flow.agenda[gate.n] = None

    def _fed(self, task: StoredTask) -> list[tuple[StoredGate, bool]]:
        """Return the gates that count a task, and whether each needs its success. An open one has counted all."""
        self.read(feed.gate for feed in task.feeds)
        found = [(self._gates.get(feed.gate), feed.needs_success) for feed in task.feeds]
        return [(gate, needs) for gate, needs in found if gate is not None and gate.state is not GateState.OPEN]

    # Tasks

    def end(self, task: StoredTask) -> None:
        """Count the end of a task."""
        self.flow.live -= 1
        if isinstance(task, Salvaged):
            self.flow.doubtful = True  # the gates that it feeds may be among what cannot be read
        for gate, needs_success in self._fed(task):
            fails = needs_success and task.state is not TaskState.SUCCEEDED
            self.count(gate, -1, int(fails), _reason(task) if fails else "")

    def revived(self, task: StoredTask) -> StoredTask:
        """Return a task that had failed or was cancelled as it waits again."""
        self.flow.live += 1
        self.flow.finished_at = None
        for gate, needs_success in self._fed(task):
            self.count(gate, 1, -int(needs_success))
        own = None if task.behind is None else self.gate(task.behind)
        new = anew_task(task, self._tx.now)
        if _is_upstream(task):
            new = changed_task(new, error=None)
        if own is None or (own.state is GateState.OPEN and task.started_at is not None):
            return new
        if own.state is GateState.OPEN:
            return self._released(changed_task(new, run_at=task.run_at))
        if own.state is GateState.BROKEN:
            self.flow.agenda[own.n] = None
        return changed_task(new, state=TaskState.BLOCKED, run_at=task.run_at)

    def can_retry(self, task: StoredTask) -> bool:
        return not self.flow.cancelled and not _is_upstream(task) and not self.has_lost_key()

    def has_lost_key(self) -> bool:
        """Return whether the flow has ended and another has its unique key by now: then it cannot go on."""
        flow = self.flow
        if flow.unique is None or flow.finished_at is None:
            return False
        return self._tx.flow_of_key(flow.unique) not in (None, flow.id)

    def _released(self, task: StoredTask) -> StoredTask:
        now = self._tx.now
        if isinstance(task, Salvaged) or (task.expires_at is not None and task.expires_at <= now):
            return ended_task(task, TaskState.CANCELLED, now)
        run_at = task.run_at if task.opening_delay is None else later(now, task.opening_delay)
        return changed_task(task, state=TaskState.SCHEDULED if run_at > now else TaskState.READY, run_at=run_at)

    # What follows

    def settle(self, limit: int) -> int:
        """Do what follows from gates that opened or broke, and from a cancellation; return how many tasks moved."""
        moved = 0
        while moved < limit and self.flow.is_due:
            if self.flow.cancelling:
                step = self._cancel(limit - moved)
            elif self.flow.retrying:
                step = self._retry(limit - moved)
            else:
                step = self._work_off(next(iter(self.flow.agenda)), limit - moved)
            moved += step or 1  # a gate without tasks behind it takes its part of the step, too
        return moved

    def _cancel(self, limit: int) -> int:
        tx = self._tx
        waiting = tx.members(self.flow.id, None, _WAITING, limit)
        self._save_moved([ended_task(task, TaskState.CANCELLED, tx.now) for task in waiting])
        if len(waiting) < limit:
            # Nothing waits any more: what runs now is all that can still run.
            running = tx.members(self.flow.id, None, (TaskState.RUNNING,), None)
            tx.save([changed_task(task, cancel_requested=True) for task in running if not task.cancel_requested])
            self.flow.cancelling = False
            # A store may pass by those that another transaction is changing: what comes of it may go on.
            self._has_missed = tx.count_members(self.flow.id).get(TaskState.RUNNING, 0) > len(running)
        return len(waiting)

    def adopt(self, task: StoredTask) -> None:
        """Note what has still to follow for a task that another store had. The gates and the flow have counted it."""
        flow, gate = self.flow, None if task.behind is None else self.gate(task.behind)
        if flow.is_over and not task.state.is_final:
            # An audit has not waited for what had not come yet.
            flow.live, flow.finished_at = sum(self._live_members()), None
        if flow.cancelled and task.state in _WAITING:
            flow.cancelling = True
        if gate is None:
            return
        if _is_upstream(task) and gate.state is not GateState.BROKEN:
            gate.revives = True
            self._changed[gate.n] = gate
            flow.agenda[gate.n] = None
        elif task.state is TaskState.BLOCKED and gate.state is not GateState.SHUT:
            flow.agenda[gate.n] = None

    def _live_members(self) -> Iterable[int]:
        return (n for state, n in self._tx.count_members(self.flow.id).items() if not state.is_final)

    def retried(self, limit: int | None = None) -> list[StoredTask]:
        """Return the tasks that a retry of the flow has still to retry."""
        return self._first(
            None, _RETRIED, limit, lambda task: not isinstance(task, Salvaged) and not _is_upstream(task)
        )

    def _first(
        self,
        behind: int | None,
        states: Sequence[TaskState],
        limit: int | None,
        is_wanted: Callable[[StoredTask], bool],
    ) -> list[StoredTask]:
        """Return the first members that are wanted. No more are read than it takes, as a step is one of many."""
        read = limit
        while True:
            found = self._tx.members(self.flow.id, behind, states, read)
            wanted = [task for task in found if is_wanted(task)]
            if limit is None or read is None or len(wanted) >= limit or len(found) < read:
                return wanted if limit is None else wanted[:limit]
            read *= 4

    def _retry(self, limit: int) -> int:
        tasks = self.retried(limit)
        self.read(feed.gate for task in tasks for feed in task.feeds)
        revived = [self.revived(task) for task in tasks]
        self._tx.save(revived)
        moved(self._tx, revived)
        self.flow.retrying = len(tasks) == limit
        return len(tasks)

    def _save_moved(self, tasks: Sequence[StoredTask]) -> None:
        self._tx.save(tasks)
        moved(self._tx, tasks)
        self.read(feed.gate for task in tasks for feed in task.feeds)
        for task in tasks:
            if task.state.is_final:
                self.end(task)

    def _work_off(self, n: int, limit: int) -> int:
        tx, gate = self._tx, self.gate(n)
        if gate is not None:
            self.look(gate)
        blocked: list[StoredTask] = []
        dead: list[StoredTask] = []
        if gate is not None and gate.state is not GateState.SHUT:
            blocked = tx.members(self.flow.id, n, (TaskState.BLOCKED,), limit)
            if gate.state is GateState.OPEN:
                self._save_moved([self._released(task) for task in blocked])
            else:
                error = TaskError(type=_UPSTREAM, message=gate.error)
                self._save_moved([ended_task(task, TaskState.CANCELLED, tx.now, error=error) for task in blocked])
        if gate is not None and gate.state is not GateState.BROKEN and gate.revives:
            dead = self._first(n, (TaskState.CANCELLED,), limit - len(blocked), _is_upstream)
            self._save_moved([self.revived(task) for task in dead])
        if len(blocked) + len(dead) < limit:
            self.flow.agenda.pop(n, None)
            if gate is not None and gate.revives:
                gate.revives = False
                self._changed[n] = gate
        return len(blocked) + len(dead)

    def _audit(self) -> None:
        """Break the gates that can never open, as a record was damaged: those of a flow in which nothing can run.

        Each end is counted in its step. So a task that waits while nothing is left that could end waits for one whose
        end was not counted: its record did not tell of which flow it was, or which gates it feeds.
        """
        tx, flow = self._tx, self.flow
        flow.audit_at = later(tx.now, AUDIT_SECONDS)
        if flow.is_due or flow.held:
            return
        counts = tx.count_members(flow.id)
        if any(counts.get(state) for state in _MOVING):
            return
        flow.live = counts.get(TaskState.BLOCKED, 0)
        for n, stored in tx.gates(flow.id, None).items():
            gate = self._gates.setdefault(n, stored)
            if gate.state is GateState.SHUT:
                self.count(gate, 0, 1, _MISSED)

    def break_held(self) -> None:
        """Break the gates whose holds have run out."""
        for n, gate in self._tx.gates(self.flow.id, None).items():
            if gate.holds:
                self._gates[n] = gate
                self.release(gate, failures=1)

    def release(self, gate: StoredGate, failures: int = 0) -> None:
        holds, gate.holds = gate.holds, 0
        self.flow.held -= holds
        self.count(gate, -holds, failures, _ABANDONED if failures else "")

    def close(self, limit: int | None = None) -> int:
        """Do what follows, as far as the step reaches, and save everything; return how many tasks were moved."""
        flow = self.flow
        limit = SETTLED_AT_ONCE if limit is None else limit
        is_time = flow.audit_at is None or flow.audit_at <= self._tx.now
        flow.cancelling = flow.cancelling or (flow.cancelled and is_time)
        moved = self.settle(limit)
        if not flow.is_over and (flow.doubtful or is_time):
            self._audit()
            moved += self.settle(limit - moved)
        if self._has_missed:
            flow.audit_at = later(self._tx.now, LOCKED_SECONDS)
        if not flow.held:
            flow.hold_until = None
        if flow.is_over:
            flow.agenda, flow.cancelling = {}, False
            flow.finished_at = flow.finished_at or self._tx.now
        self._tx.save_gates(flow.id, self._changed.values())
        self._tx.save_flow(flow)
        return moved


def _is_upstream(task: StoredTask) -> bool:
    """Return whether a task was ended as its gate broke. The gate of one that was ever started is open."""
    ended = task.state is TaskState.CANCELLED and task.started_at is None
    return ended and task.error is not None and task.error.type == _UPSTREAM


def _reason(task: StoredTask) -> str:
    """Return what became of a task without success, for those that needed it."""
    if _is_upstream(task) and task.error is not None:
        return task.error.message  # where it began says more than what came of it on the way
    what = f"task {task.id} ({task.name})"
    if task.state is TaskState.CANCELLED or task.error is None:
        return f"{what} was cancelled"
    return f"{what} failed: {task.error.type}: {task.error.message[:_LONGEST_REASON]}"


_LONGEST_REASON = 1000
"""Characters of an error that those who needed the task's success are told."""


def opened_flows(tx: FlowTransaction, members: Sequence[StoredTask]) -> dict[str, FlowStep]:
    """Return a step for each flow that these tasks are of and that can be read, by its id."""
    ids = {task.flow for task in members if task.flow is not None}
    return {flow_id: FlowStep(tx, flow) for flow_id, flow in tx.flows(sorted(ids)).items()} if ids else {}


def count_ends(tx: FlowTransaction, members: Sequence[StoredTask]) -> None:
    """Count in their flows tasks that have just ended; all verbs that end tasks come here."""
    flows = opened_flows(tx, members)
    for flow_id, step in flows.items():
        mine = [task for task in members if task.flow == flow_id]
        step.read(feed.gate for task in mine for feed in task.feeds)
        for task in mine:
            step.end(task)
        step.close()


def doubt(tx: FlowTransaction, members: Sequence[StoredTask]) -> None:
    """Look whether flows still get what they wait for, now that tasks of them are gone whose ends may be uncounted."""
    for step in opened_flows(tx, members).values():
        step.flow.doubtful = True
        step.close()


def enqueue_into_flow(
    tx: FlowTransaction, tasks: Sequence[NewTask], new: NewFlow | None, store: Callable[[], None] = lambda: None
) -> list[Enqueued]:
    """Add tasks to the flow that they name, and the flow with its gates if it is new.

    :param new: the flow with which they come; None: it is there already.
    :param store: stores what else the call stores; called once nothing can be refused any more.
    :raises ValueError: if they are not of one flow, or it has not what they name.
    :raises FlowClosed: if they come too late.
    """
    flow_id = _flow_named(tasks, new)
    stored = tx.flows([flow_id]).get(flow_id)
    if stored is None:
        if new is None:
            raise ValueError(f"there is no flow {flow_id!r} in this store to which a task could be added")
        holder = None if new.unique is None else tx.flow_of_key(new.unique)
        if holder is not None:
            return [Enqueued(holder, False) for _ in tasks]
        stored = StoredFlow(id=new.id, unique=new.unique, created_at=tx.now, result_ttl=new.result_ttl)
        stored.audit_at = later(tx.now, AUDIT_SECONDS)
    step = FlowStep(tx, stored)
    known = set(tx.load(task.id for task in tasks))
    fresh: dict[str, NewTask] = {}
    for task in tasks:
        if task.id not in known:
            fresh.setdefault(task.id, task)
    gates = {gate.n: gate for gate in (() if new is None else new.gates)}
    step.read([*gates, *(n for task in fresh.values() for n in _gates_of(task))])
    fresh_gates = [gate for gate in gates.values() if step.gate(gate.n) is None]
    _check_members(step, fresh.values(), {gate.n: gate for gate in fresh_gates})
    if stored.cancelled and (fresh or fresh_gates):
        raise FlowClosed(f"flow {flow_id} was cancelled; nothing can be added to it")
    if fresh and step.has_lost_key():
        raise FlowClosed(f"flow {flow_id} has ended, and another has its unique key; nothing can be added to it")
    for gate in fresh_gates:
        step.add(gate)
    if new is not None and stored.held:
        stored.hold_until = later(tx.now, new.hold_ttl)
    new_members = [_stored_member(step, task, tx.now) for task in fresh.values()]
    store()
    if new is not None and new.unique is not None:
        tx.save_flow(stored)  # a store may have to wait for its key, which is to hold up no claim
    tx.insert(new_members)
    moved(tx, new_members)
    for gate in fresh_gates:
        added = step.gate(gate.n)
        assert added is not None
        step.look(added)
    if fresh:
        stored.finished_at = None
    step.close()
    created = set(fresh)
    answers = []
    for task in tasks:
        answers.append(Enqueued(task.id, task.id in created))
        created.discard(task.id)
    return answers


def _flow_named(tasks: Sequence[NewTask], new: NewFlow | None) -> str:
    """Return the id of the one flow to which all tasks of a call are added."""
    named = {task.flow for task in tasks if task.flow is not None} | ({new.id} if new is not None else set())
    if len(named) > 1:
        raise ValueError(f"one call adds to one flow, not to {len(named)}")
    (flow_id,) = named
    if any(task.flow is None for task in tasks):
        raise ValueError(f"one of the tasks is not of the flow {flow_id!r} with which it is enqueued")
    return flow_id


def _gates_of(task: NewTask) -> list[int]:
    fed = [feed.gate for feed in task.feeds]
    return fed if task.behind is None else [task.behind, *fed]


def _check_members(step: FlowStep, tasks: Iterable[NewTask], new: Mapping[int, NewGate]) -> None:
    """Refuse tasks that cannot be added to a flow.

    :param new: the gates that come with them.
    """
    for task in tasks:
        if task.unique is not None:
            raise ValueError(f"task {task.id} ({task.name}) of a flow has a unique key; only the flow can have one")
        found: dict[int, StoredGate | NewGate] = {}
        for n in _gates_of(task):
            gate = step.gate(n) or new.get(n)
            if gate is None:
                raise ValueError(f"flow {step.flow.id} has no gate {n}, which task {task.id} ({task.name}) names")
            found[n] = gate
        for feed in task.feeds:
            gate = found[feed.gate]
            if task.behind is not None and not found[task.behind].rank < gate.rank:
                raise ValueError(
                    f"task {task.id} ({task.name}) would stand behind gate {task.behind} and feed gate {feed.gate}, "
                    "which does not rank after it: a flow has no cycles"
                )
            if isinstance(gate, StoredGate) and gate.state is not GateState.SHUT:
                raise FlowClosed(
                    f"gate {gate.n} of flow {step.flow.id} is {gate.state}; task {task.id} ({task.name}) can no longer "
                    "be one of those that it waits for"
                )


def _stored_member(step: FlowStep, new: NewTask, now: datetime) -> StoredTask:
    """Return a new task of a flow as it is stored, and count it in the gates that it feeds."""
    step.flow.live += 1
    for feed in new.feeds:
        fed = step.gate(feed.gate)
        assert fed is not None
        step.count(fed, 1)
    own = None if new.behind is None else step.gate(new.behind)
    if own is None or own.state is GateState.OPEN:
        return stored_task(new, now)
    # Its place is that of its enqueueing, so that those of older flows come first when they are released.
    delay = max(0.0, new.run_at.total_seconds()) if isinstance(new.run_at, timedelta) else None
    task = stored_task(new if delay is None else evolve(new, run_at=None), now)
    if own.state is GateState.BROKEN:
        step.flow.agenda[own.n] = None
    return changed_task(task, state=TaskState.BLOCKED, opening_delay=delay)


def release_hold(tx: FlowTransaction, flow_id: str, n: int) -> bool:
    flow = tx.flows([flow_id]).get(flow_id)
    if flow is None:
        return False
    step = FlowStep(tx, flow)
    gate = step.gate(n)
    if gate is None or not gate.holds:
        return False
    step.release(gate)
    step.close()
    return True


def get_flows(tx: FlowTransaction, ids: Sequence[str]) -> list[Flow | None]:
    stored = tx.flows(sorted(set(ids)))
    shown = {flow_id: _shown(tx, flow) for flow_id, flow in stored.items()}
    return [shown.get(flow_id) for flow_id in ids]


def _shown(tx: FlowTransaction, flow: StoredFlow) -> Flow:
    gates = sorted(tx.gates(flow.id, None).values(), key=lambda gate: gate.n)
    return Flow(
        id=flow.id,
        unique=flow.unique,
        created_at=flow.created_at,
        finished_at=flow.finished_at,
        cancelled=flow.cancelled,
        hold_until=flow.hold_until,
        counts=dict.fromkeys(TaskState, 0) | dict(tx.count_members(flow.id)),
        gates=tuple(
            Gate(
                n=gate.n,
                rank=gate.rank,
                state=gate.state,
                unmet=gate.unmet,
                failed=gate.failed,
                error=gate.error,
                holds=gate.holds,
            )
            for gate in gates
        ),
        result_ttl=flow.result_ttl,
    )


def adopt_flow(tx: FlowTransaction, flow: Flow) -> Adoption:
    """Store a flow that another store had, with its gates and what they have counted."""
    if tx.flows([flow.id]):
        return Adoption.PRESENT
    if flow.unique is not None and flow.finished_at is None and tx.flow_of_key(flow.unique) is not None:
        return Adoption.KEY_TAKEN
    stored = StoredFlow(
        id=flow.id,
        unique=flow.unique,
        created_at=flow.created_at,
        result_ttl=flow.result_ttl,
        live=sum(n for state, n in flow.counts.items() if not state.is_final),
        held=sum(gate.holds for gate in flow.gates),
        hold_until=flow.hold_until,
        finished_at=flow.finished_at,
        cancelled=flow.cancelled,
        audit_at=later(tx.now, AUDIT_SECONDS),
    )
    gates = [StoredGate(**asdict(gate)) for gate in flow.gates]
    tx.save_gates(flow.id, gates)
    tx.save_flow(stored)
    return Adoption.STORED


def cancel_flow(tx: FlowTransaction, flow_id: str) -> bool:
    flow = tx.flows([flow_id]).get(flow_id)
    if flow is None or flow.cancelled or flow.is_over:
        return False
    flow.cancelled = flow.cancelling = flow.doubtful = True
    flow.retrying = False
    step = FlowStep(tx, flow)
    if flow.held:
        step.break_held()
    step.close()
    return True


def retry_flow(tx: FlowTransaction, flow_id: str) -> int:
    flow = tx.flows([flow_id]).get(flow_id)
    if flow is None or (step := FlowStep(tx, flow)).has_lost_key():
        return 0
    if flow.cancelled:
        running = tx.members(flow_id, None, (TaskState.RUNNING,), None)
        tx.save([changed_task(task, cancel_requested=False) for task in running if task.cancel_requested])
    flow.cancelled = flow.cancelling = flow.doubtful = False
    count = len(step.retried())
    flow.retrying = count > 0
    step.close()
    return count


def settle(tx: FlowTransaction, limit: int) -> int:
    settled = 0
    while settled < limit and (due := tx.due_flows(False, 1)):
        flow = tx.flows(due).get(due[0])
        if flow is None:
            break
        step = FlowStep(tx, flow)
        if flow.hold_until is not None and flow.hold_until <= tx.now:
            step.break_held()
        settled += step.close(limit - settled) or 1
    return settled


def prune_flows(tx: FlowTransaction, limit: int) -> int:
    """Remove flows that are over with their tasks, so many tasks at most; return how many."""
    removed = 0
    for flow_id in tx.due_flows(True, limit):
        if removed >= limit:
            break
        members = tx.members(flow_id, None, tuple(TaskState), limit - removed)
        tx.remove([task.id for task in members])
        removed += len(members)
        if removed < limit:
            tx.remove_flow(flow_id)
    return removed
