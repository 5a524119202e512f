"""Makes messages of what a step of flows has changed, to be stored all or none."""

from __future__ import annotations

import json
import secrets
from collections import defaultdict
from collections.abc import Mapping

from attrs import define, field

from omniq.flow import GateState, StoredFlow
from omniq.storage import flow_transitions
from omniq.storage.states import holds_key
from omniq.storage.values import Salvaged
from omniq.task import NewTask, StoredTask, TaskState
from omniq_nats.entries import Entry, Tombstone, entry_in_overflow
from omniq_nats.flow_records import GATES, FlowRecord, GatePage, encode_flow, encode_gates, encode_roster
from omniq_nats.flow_tasks import Held
from omniq_nats.flow_tx import FlowTx
from omniq_nats.lanes import Usage
from omniq_nats.names import APART, BLOCKED_LINE, DUE_LINE, LARGE, SHARED, SINGLE, group_in, group_of, line_of, token
from omniq_nats.queue_state import CANCELLED_AHEAD, REMOVED_AHEAD, QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.results import ROOM, EndRecord, inline_of, kept_record
from omniq_nats.task_batches import LARGE_BODY, Page, check_new, encode_batch, guard_body
from omniq_nats.times import micros
from omniq_nats.transport import Write

__all__ = ["Changes", "changes_of", "limited_queues", "lines_of"]

BLOCKED, READY, SCHEDULED, RUNNING = TaskState.BLOCKED, TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING
TOLD = 4096
SHARE = 0.5
"""How much of the largest message a queue's state may take for more tasks with keys to be enqueued: the rest is for
those that run, and for what becomes of them."""
WORD_SECONDS = int(2 * flow_transitions.AUDIT_SECONDS)
"""After which the word that a flow has ended is gone: what was last known of the flow is to be looked after by then."""


@define(eq=False)
class Changes:
    """What is to be stored in one step, and what is to be done once it is."""

    before: list[Write] = field(factory=list)
    """New tasks and rosters, and pages of gates."""
    queue_states: list[QueueState] = field(factory=list)
    flows: list[FlowRecord] = field(factory=list)
    after: list[Write] = field(factory=list)
    """The flows."""
    ended: dict[str, str] = field(factory=dict)
    """The queues of tasks that have ended, or are gone, by their ids."""
    woken: dict[str, int] = field(factory=dict)
    """By queue: when a task is ready, the earliest; 0: at once."""
    removed_flows: list[FlowRecord] = field(factory=list)
    share: float = 1.0
    """How much of the largest message the states of queues may take, see :meth:`.QueueStateStore.change`."""

    @property
    def is_none(self) -> bool:
        """Whether nothing changes."""
        return not (self.before or self.queue_states or self.flows or self.removed_flows or self.after)

    def wake(self, queue: str, at: int) -> None:
        self.woken[queue] = min(self.woken.get(queue, at), at)


async def changes_of(
    state_store: QueueStateStore, tx: FlowTx, new: Mapping[str, NewTask | StoredTask], name: str
) -> Changes:
    """Return what a transaction changes.

    :param new: the tasks that it may have inserted, by their ids.
    :param name: of this change.
    """
    maker = _Maker(state_store, tx, name)
    if tx.inserted:
        maker.insert(new)
    await maker.move()
    maker.line_up()
    maker.made.share = SHARE if limited_queues(tx) else 1.0
    maker.gates()
    maker.flows()
    maker.made.after += tx.also
    return maker.made


class _Maker:
    def __init__(self, state_store: QueueStateStore, tx: FlowTx, name: str) -> None:
        self.made = Changes()
        self._state_store = state_store
        self._names = state_store.names
        self._tx = tx
        self._name = name
        self._blocked: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        """By flow and queue: how many more tasks are blocked."""
        self._places: dict[tuple[str, int], int] = {}
        """By flow and gate: the rank up to which its tasks have been moved; 0: it is to be begun anew."""
        self._rosters: set[str] = set()
        self._lined: list[Page] = []
        self._pages: dict[str, set[int]] = {}

    # New tasks

    def insert(self, new: Mapping[str, NewTask | StoredTask]) -> None:
        writes = self.made.before
        rows: defaultdict[str, list[tuple[str, str, int, list[int | None]]]] = defaultdict(list)
        nonce = secrets.token_hex(8)
        keys: list[Write] = []
        for page in _pages(self._tx, new):
            if group_in(page.line):
                self._lined.append(page)
            offset = len(writes)
            body = encode_batch(page, at=self._tx.micros, behind=offset, nonce=nonce)
            batch = self._write_page(page, body)
            if page.apart is not None:
                writes.append(Write(self._names.body(page.tasks[0][0].id), page.apart))
            if page.flow is not None:
                rows[page.flow].append((page.queue, batch, offset, [behind for behind, _, _ in page.ties]))
                if page.line == BLOCKED_LINE:
                    self._blocked[page.flow][page.queue] += len(page.tasks)
            for task, _, _, _ in page.tasks:
                if task.unique is not None and holds_key(self._tx.inserted[task.id]):
                    seq = self._tx.snapshot.keys[task.unique][1]
                    keys.append(Write(self._names.key(task.unique), json.dumps([task.id]).encode(), expected=seq))
            if page.line != BLOCKED_LINE:
                for task, _, run_at, _ in page.tasks:
                    if not self._tx.inserted[task.id].state.is_final:
                        self.made.wake(page.queue, run_at or 0)
        writes += keys
        for flow_id, some in rows.items():
            record = self._tx.snapshot.flow(flow_id)
            number = 0 if record is None else record.rosters
            here = len(writes)
            body = encode_roster((queue, batch, here - offset, behind) for queue, batch, offset, behind in some)
            writes.append(Write(self._names.roster(flow_id, number), body))
            self._rosters.add(flow_id)

    def _write_page(self, page: Page, body: bytes) -> str:
        names, writes = self._names, self.made.before
        first = page.tasks[0][0]
        if len(page.tasks) == 1:
            # No worker is to be woken for one that is blocked, or that a limit may hold back.
            is_told = page.line != BLOCKED_LINE and not group_in(page.line)
            kind = SINGLE if is_told and len(body) <= TOLD else LARGE
            if page.apart is not None:
                kind = APART
            batch = f"{page.line}-{kind}-{token(first.id)}"
            writes.append(Write(names.batch(page.queue, batch), body, expected=0, among=names.anywhere(first.id)))
            return batch
        batch = f"{page.line}-{SHARED}-{secrets.token_hex(8)}"
        writes.append(Write(names.batch(page.queue, batch), body, expected=0))
        for index, (task, _, _, _) in enumerate(page.tasks):
            guard = names.guard(page.queue, page.line, task.id)
            writes.append(Write(guard, guard_body(batch, index), expected=0, among=names.anywhere(task.id)))
        return batch

    def line_up(self) -> None:
        """Have the states of queues name the lines of new tasks that have keys or named limits."""
        for page in self._lined:
            limited = page.limited[page.tasks[0][0].id]
            states = {queue_state.queue: queue_state for queue_state in self.made.queue_states}
            states[page.queue].line_up(page.line, (limited.key, limited.limit), len(page.tasks))

    # Tasks that were there

    async def move(self) -> None:
        tx = self._tx
        tasks = tx.tasks.held
        changed = {task_id: task for task_id, task in tx.saved.items() if task_id in tasks}
        gone = [tasks[task_id] for task_id in tx.removed if task_id in tasks]
        left = {
            task_id: _left(tasks[task_id], tx.tasks.original(tasks[task_id]), task) for task_id, task in changed.items()
        }
        most = self._state_store.transport.max_payload
        large = {
            task_id: one.fitted(most - ROOM) for task_id, one in left.items() if one is not tasks[task_id].end_record
        }
        await self._state_store.set_apart(large, {}, inline_of(most))
        left |= large
        touched = {held.batch.queue for held in [*(tasks[task_id] for task_id in changed), *gone]}
        touched |= limited_queues(tx)
        for queue in sorted(touched):
            self.made.queue_states.append(tx.snapshot.queue_states[queue])
        states = {queue_state.queue: queue_state for queue_state in self.made.queue_states}
        usages: dict[str, Usage] = {}  # two queues may share a named limit
        for queue, queue_state in states.items():
            queue_state.also, queue_state.usages, queue_state.roused = [], usages, set()
            if queue in limited_queues(tx):
                queue_state.with_lane()
            wanted = {
                held.place: entry_in_overflow(held.batch, held.index, held.end_record).key
                for held in [*(tasks[task_id] for task_id in changed), *gone]
                if held.how == "overflow" and held.batch.queue == queue
            }
            if wanted:
                await self._state_store.overflow.take_out(queue_state, wanted)
        for queue_state in states.values():
            given_back = [
                entry
                for task_id, task in changed.items()
                if (entry := queue_state.running.get(task_id)) is not None
                and not task.state.is_final
                and task.attempt < entry.attempt
            ]
            await self._state_store.limits.give_back(queue_state, given_back)
        for task_id, task in changed.items():
            held = tasks[task_id]
            self._change(states[held.batch.queue], held, task, left[task_id])
        for held in gone:
            self._remove(states[held.batch.queue], held)

    def _change(self, queue_state: QueueState, held: Held, task: StoredTask, left: EndRecord) -> None:
        now = self._tx.micros
        if task.state is RUNNING:
            queue_state.running[task.id].cancel = task.cancel_requested
            return
        entry = self._taken(queue_state, held, CANCELLED_AHEAD)
        entry.cancel = False
        self._count(held, task)
        if task.state.is_final:
            queue_state.end(entry, queue_state.end_record_of(entry, task.state, now, known=left))
            self.made.ended[task.id] = queue_state.queue
            return
        entry.at = micros(task.run_at)
        entry.attempt = task.attempt
        if task.expires_at is None and entry.expires is not None:
            entry.expires, entry.expired_order = None, True
        if task.state is BLOCKED:
            queue_state.note(entry, queue_state.end_record_of(entry, BLOCKED, now, known=left))
            return
        # That it waits since another time than it was enqueued for, or was made ready again, an end record tells.
        is_told = left.has_left or held.how == "ended" or (held.how == "blocked" and held.end_record is not None)
        entry.has_fate = is_told or entry.has_fate or entry.at != held.batch.run_at(held.index)
        queue_state.keep_error(entry, now, left if is_told else None)
        entry.has_error = left.has_left
        queue_state.put_back(entry)
        self.made.wake(queue_state.queue, 0 if entry.at <= now else entry.at)

    def _taken(self, queue_state: QueueState, held: Held, why: str) -> Entry:
        """Take a task from where it stands; return its entry."""
        batch, index = held.batch, held.index
        task_id = held.id
        if held.how == "running":
            entry = queue_state.running[task_id]
            queue_state.stop(entry)
            return entry
        if task_id in queue_state.waiting:
            entry = queue_state.waiting[task_id]
            queue_state.withdraw(entry)
            return entry
        if held.how == "ended":
            assert held.end_record is not None
            queue_state.uncount(batch, index, held.end_record)
        if queue_state.is_ahead(batch.line, batch.seq, index):
            queue_state.leave_out(batch, index, why)
        entry = entry_in_overflow(batch, index, held.end_record)
        if entry.expired_order:
            entry.expires = None
        return entry

    def _count(self, held: Held, task: StoredTask | None) -> None:
        flow_id, (behind, _, _) = held.batch.flow, held.batch.ties[held.index] if held.batch.ties else (None, (), None)
        if flow_id is None:
            return
        if held.how == "blocked":
            self._blocked[flow_id][held.batch.queue] -= 1
            if behind is not None and task is not None and _is_in_order(task):
                self._places[flow_id, behind] = max(self._places.get((flow_id, behind), 0), held.rank + 1)
        if task is not None and task.state is BLOCKED:
            self._blocked[flow_id][held.batch.queue] += 1
            if behind is not None:
                self._places[flow_id, behind] = 0

    def _remove(self, queue_state: QueueState, held: Held) -> None:
        batch, index = held.batch, held.index
        self._taken(queue_state, held, REMOVED_AHEAD)
        self._count(held, None)
        row = batch.rows[index]
        queue_state.doom(
            Tombstone(row[0], batch.name, index, batch.seq, len(batch), batch.ttl, self._tx.micros, row[4])
        )
        self.made.ended[row[0]] = queue_state.queue

    # Flows

    def gates(self) -> None:
        tx = self._tx
        pages: dict[tuple[str, int], GatePage] = {}

        def page_of(flow_id: str, n: int) -> GatePage:
            where = flow_id, n // GATES
            if where not in pages:
                known = tx.snapshot.gates.get(where) or GatePage()
                pages[where] = GatePage(dict(known.gates), dict(known.places))
            return pages[where]

        for flow_id, gates in tx.changed_gates.items():
            for n, gate in gates.items():
                page_of(flow_id, n).gates[n] = gate
        for (flow_id, n), place in self._places.items():
            page = page_of(flow_id, n)
            if n in page.gates:
                is_open = page.gates[n].state is GateState.OPEN
                page.places[n] = max(page.places.get(n, 0), place) if place or is_open else 0
        for (flow_id, number), page in sorted(pages.items()):
            if page.gates:
                self._pages.setdefault(flow_id, set()).add(number)
                self.made.before.append(Write(self._names.gates(flow_id, number), encode_gates(page)))

    def flows(self) -> None:
        tx, names = self._tx, self._names
        for flow_id in sorted(tx.changed_flows.keys() | self._blocked.keys() | self._pages.keys()):
            record = tx.snapshot.flow(flow_id)
            flow = tx.changed_flows.get(flow_id) or (None if record is None else record.flow)
            if flow is None:
                continue  # it cannot be read
            made = self._record(flow, record)
            self.made.flows.append(made)
            goes_on = flow.finished_at is None and (record is None or record.flow.finished_at is not None)
            if goes_on and flow.unique is not None:
                seq = tx.snapshot.flow_keys[flow.unique][1]
                told = json.dumps([flow_id]).encode()
                self.made.before.append(Write(names.flow_key(flow.unique), told, expected=seq))
            subject = names.flow(flow_id) if flow.finished_at is None else names.ended_flow(flow_id)
            expected = 0 if record is None else record.last
            self.made.after.append(
                Write(subject, encode_flow(made), expected=expected, among=names.either_flow(flow_id))
            )
            if flow.finished_at is not None and (record is None or record.flow.finished_at is None):
                # Those who know of flows that go on hear by it that this one does not.
                made.has_word = True
                self.made.after.append(Write(names.flow(flow_id), b"", ttl=WORD_SECONDS))
        for flow_id in tx.removed_flows:
            record = tx.snapshot.flow(flow_id)
            if record is not None:
                self.made.removed_flows.append(record)

    def _record(self, flow: StoredFlow, record: FlowRecord | None) -> FlowRecord:
        known = record or FlowRecord(flow)
        blocked = dict(known.blocked)
        for queue, number in self._blocked[flow.id].items():
            blocked[queue] = max(0, blocked.get(queue, 0) + number)
        moves = known.seq and known.flow.finished_at is not None and flow.finished_at is None
        return FlowRecord(
            flow,
            strays=(*known.strays, known.seq) if moves else known.strays,
            recent=[*known.recent[-7:], self._name],
            blocked={queue: number for queue, number in blocked.items() if number},
            rosters=known.rosters + (flow.id in self._rosters),
            pages=sorted({*known.pages, *self._pages.get(flow.id, ())}),
        )


def _is_in_order(task: StoredTask) -> bool:
    """Return whether a blocked task was moved as its gate opened or broke: that goes through all behind it in order."""
    if task.state is TaskState.CANCELLED:
        return task.error is not None and task.error.type == "UpstreamFailed"
    return not task.state.is_final


def _left(held: Held, old: StoredTask, task: StoredTask) -> EndRecord:
    """Return an end record that has what is to be kept of a task: error, result and attempt log."""
    is_same = (task.error, task.attempt_log, task.result_payload) == (old.error, old.attempt_log, old.result_payload)
    if is_same and held.end_record is not None and not isinstance(task, Salvaged):
        return held.end_record
    return kept_record(task.delivery, task.error, task.attempt_log, task.result_payload)


def _line_of(tx: FlowTx, task: StoredTask) -> str:
    if task.state is BLOCKED:
        return BLOCKED_LINE
    if tx.pasts is not None:
        return DUE_LINE  # there each is sorted in, or what has become of it is, wherever it stands
    return (
        DUE_LINE
        if task.run_at > tx.now or task.expires_at is not None
        else line_of(task.priority, group_of(task.key, task.limit))
    )


def limited_queues(tx: FlowTx) -> set[str]:
    """Return the queues of new tasks with keys, named limits or a debounce: their states are changed in the step."""
    return {task.queue for task in tx.inserted.values() if task.limited is not None}


def lines_of(tx: FlowTx) -> set[tuple[str, str]]:
    """Return the queues and lines of new tasks to which claims are to come."""
    lines = {(task.queue, _line_of(tx, task)) for task in tx.inserted.values()}
    return {(queue, line) for queue, line in lines if line != BLOCKED_LINE and not group_in(line)}


def _pages(tx: FlowTx, new: Mapping[str, NewTask | StoredTask]) -> list[Page]:
    """Put new tasks into batches, such that those of one line, and of one gate, stay in order."""
    pages: list[Page] = []
    current: dict[tuple[str, str, str | None, int | None], Page] = {}
    for number, task in enumerate(tx.inserted.values()):
        run_at = micros(task.run_at) if task.run_at > tx.now or tx.pasts is not None else None
        expires = None if task.expires_at is None else micros(task.expires_at)
        line = _line_of(tx, task)
        order = new[task.id]
        check_new(order)
        past = None if tx.pasts is None else tx.pasts[task.id]
        size = len(order.body) + 256 + (0 if past is None else len(past.text))
        key = task.queue, line, task.flow, task.behind if line == BLOCKED_LINE else None
        page = current.get(key)
        is_large = len(order.body) > LARGE_BODY
        if page is None or page.ttl != order.result_ttl or is_large or not page.takes(size):
            page = current[key] = Page(task.queue, line, float(order.result_ttl), flow=task.flow)
            pages.append(page)
        page.tasks.append((order, number, run_at, expires))
        if task.limited is not None:
            page.limited[task.id] = task.limited
        page.size += size
        if is_large:
            page.apart = order.body
        if past is not None:
            page.pasts.append((micros(task.created_at), past))
        if task.flow is not None:
            page.ties.append((task.behind, task.feeds, task.opening_delay))
    return pages
