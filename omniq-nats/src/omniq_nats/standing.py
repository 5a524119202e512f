"""Says how tasks stand, as far as the queue states and end records tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from omniq.task import TaskState
from omniq_nats.entries import Entry
from omniq_nats.flow_records import is_blocked_at
from omniq_nats.queue_state import REMOVED_AHEAD, QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.results import EndRecord
from omniq_nats.task_batches import TaskBatch
from omniq_nats.task_lookup import Place, Torn
from omniq_nats.transport import Stored

__all__ = ["ENDED", "View", "find_holding", "find_live", "find_living", "stand", "stands", "view"]

MOST_AT_ONCE = 50
"""So many tasks at most are looked at where they were a moment ago, before they are looked for."""

READY, SCHEDULED = TaskState.READY, TaskState.SCHEDULED
ENDED = TaskState.CANCELLED
"""However it ended."""


def stand(queue_state: QueueState, batch: TaskBatch, index: int) -> Entry | TaskState | None:
    """Say how a task stands as far as its queue state tells.

    :return: its entry, if it runs or waits; READY if nothing has happened to it yet; CANCELLED if it has ended, in
        whichever way, or is on an overflow page: its end record tells; None if it was removed.
    """
    if (batch.seq, index) in queue_state.tombstones:
        return None
    entry = queue_state.live(batch.rows[index][0], batch.seq, index)
    if entry is not None:
        return entry
    if queue_state.is_ahead(batch.line, batch.seq, index):
        why = queue_state.left_out(batch.line, batch.seq, index)
        past = batch.past(index)
        if why is None and (past is None or not past.state.is_final):
            return READY
        if why == REMOVED_AHEAD:
            return None
    return ENDED


async def stands(
    state_store: QueueStateStore,
    queue_state: QueueState,
    places: Sequence[Place],
    *,
    with_fates: bool = False,
    pages: Mapping[str, Stored] | None = None,
) -> tuple[list[Entry | TaskState | None], dict[tuple[int, int], EndRecord]]:
    """Say how tasks of a queue stand, as :func:`stand`; SCHEDULED of those that are on an overflow page, or BLOCKED.

    :param with_fates: whether the end records of those that have ended are asked for; otherwise some may be left out.
    :param pages: see :meth:`QueueStateStore.end_records`.
    """
    found = [stand(queue_state, batch, index) for batch, index in places]
    end_records: dict[tuple[int, int], EndRecord] = {}
    gone: set[tuple[int, int]] = set()
    behind = [
        (batch, index)
        for (batch, index), how in zip(places, found, strict=True)
        if how is ENDED and batch.may_be_blocked(index)
    ]
    if with_fates or queue_state.overflow or behind:
        told = [
            place
            for place, how in zip(places, found, strict=True)
            if how is ENDED
            or (with_fates and isinstance(how, Entry) and how.has_error)
            or (with_fates and how is READY and place[0].pasts)
        ]
        end_records = await state_store.end_records(queue_state, told, gone, pages)
    gates = await state_store.task_lookup.gates_of(behind)
    for number, (batch, index) in enumerate(places):
        if found[number] is ENDED and (queue_state.overflow or batch.may_be_blocked(index)):
            end_record = end_records.get((batch.seq, index))
            if (batch.seq, index) in gone:
                found[number] = None
            elif batch.may_be_blocked(index) and (end_record is None or not end_record.state.is_final):
                is_shut = is_blocked_at(gates, batch, index, end_record)
                found[number] = TaskState.BLOCKED if is_shut else SCHEDULED
            elif end_record is None or end_record.state is SCHEDULED:
                found[number] = SCHEDULED
    return found, end_records


@frozen
class View:
    """All that is needed to say how tasks stand."""

    places: dict[str, Place]
    queue_states: dict[str, QueueState]
    torn: Mapping[str, Torn] = field(factory=dict)
    """The tasks that are there and cannot be read."""
    pages: Mapping[str, Stored] | None = None
    """The pages of results, if they were read, too."""

    @property
    def places_by_queue(self) -> dict[str, list[Place]]:
        """Return the places by the tasks' queues."""
        found: defaultdict[str, list[Place]] = defaultdict(list)
        for place in self.places.values():
            found[place[0].queue].append(place)
        return found


async def view(state_store: QueueStateStore, ids: Sequence[str]) -> View:
    """Read what says how tasks stand; with one question, if it is known where they were a moment ago."""
    seen = await _view_again(state_store, ids) if len(ids) <= MOST_AT_ONCE else None
    if seen is not None:
        return seen
    places, torn = await state_store.task_lookup.find(ids)
    return View(places, await state_store.read(list({batch.queue for batch, _ in places.values()})), torn)


async def _view_again(state_store: QueueStateStore, ids: Sequence[str]) -> View | None:
    places: dict[str, Place] = {}
    for task_id in ids:
        place = state_store.task_lookup.remembered(task_id)
        if place is None:
            return None
        places[task_id] = place
    names = state_store.names
    queue_states = {names.queue_state(batch.queue): batch.queue for batch, _ in places.values()}
    pages = {names.results(batch.queue, batch.ttl, batch.name, batch.seq) for batch, _ in places.values()}
    signs = dict(state_store.task_lookup.sign_of(task_id, place) for task_id, place in places.items())
    found = {one.subject: one for one in await state_store.transport.last([*signs, *queue_states, *pages])}
    if any(subject not in found or found[subject].seq != seq for subject, seq in signs.items()):
        return None  # a task was removed, or is elsewhere
    if any(subject not in found for subject in queue_states):
        return None
    return View(
        places,
        {queue: state_store.book_of(queue, found[subject]) for subject, queue in queue_states.items()},
        pages={subject: found[subject] for subject in pages if subject in found},
    )


async def find_live(state_store: QueueStateStore, ids: Sequence[str]) -> set[str]:
    """Say which of some tasks are there and have not ended."""
    return (await find_living(state_store, ids))[0]


async def find_holding(state_store: QueueStateStore, ids: Sequence[str]) -> set[str]:
    """Say which of some tasks have their unique keys: those that have not ended, of debounced ones until the start."""
    seen = await view(state_store, ids)
    holding: set[str] = set()
    for queue, places in seen.places_by_queue.items():
        found, end_records = await stands(state_store, seen.queue_states[queue], places, pages=seen.pages)
        for (batch, index), how in zip(places, found, strict=True):
            limited, end_record = batch.limited(index), end_records.get((batch.seq, index))
            delivery = how.delivery if isinstance(how, Entry) else 0 if end_record is None else end_record.delivery
            has_let_go = limited is not None and limited.first_at is not None and delivery > 0
            if how not in (None, ENDED) and not has_let_go:
                holding.add(batch.rows[index][0])
    return holding


async def find_living(state_store: QueueStateStore, ids: Sequence[str]) -> tuple[set[str], dict[str, int]]:
    """Return which of some tasks are there and have not ended, and how often their queue's state had changed."""
    seen = await view(state_store, ids)
    live: set[str] = set()
    for queue, places in seen.places_by_queue.items():
        found, _ = await stands(state_store, seen.queue_states[queue], places, pages=seen.pages)
        live.update(
            batch.rows[index][0] for (batch, index), how in zip(places, found, strict=True) if how not in (None, ENDED)
        )
    return live, {task_id: seen.queue_states[seen.places[task_id][0].queue].changes for task_id in live}
