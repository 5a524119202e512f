"""Reading: records, pages, numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from omniq.storage import QueueStats, StoredWorker, TaskPage, TaskQuery
from omniq.storage.paging import CLOCK_SLACK, Pager, slackened
from omniq.storage.times import from_micros, to_micros
from omniq.task import StoredTask, TaskState
from omniq_local.files.maintenance import live_workers
from omniq_local.files.names import HOME_SIZE, about_path, parse_entry
from omniq_local.files.queues import Queue, shelves_of
from omniq_local.files.records import Record
from omniq_local.files.state_folders import StateFolder
from omniq_local.files.transaction import Transaction

__all__ = ["ended", "get", "list_tasks", "stats", "workers"]

T = TypeVar("T")

RUNNING = TaskState.RUNNING.value
SEQUENCE_OF_READY, SEQUENCE = 23, 19
"""Where the sequence number stands in a file's name."""


def get(ids: Sequence[str], transaction: Transaction) -> list[StoredTask | None]:
    """See :meth:`~omniq.storage.Storage.get`."""
    found = (transaction.fetch(task_id) for task_id in ids)
    return [None if record is None else record.task() for record in found]


def ended(ids: Sequence[str], transaction: Transaction) -> set[str]:
    """Return those of some tasks that have ended or are not in the store."""
    return {
        task_id for task_id in ids if (record := transaction.fetch(task_id)) is None or record.finished_at is not None
    }


def stats(transaction: Transaction) -> list[QueueStats]:
    """See :meth:`~omniq.storage.Storage.stats`."""
    queues = (transaction.queue(name) for name in transaction.folder.queue_names())
    return [
        QueueStats(
            queue=queue.name,
            counts={state: sum(queue.counts[shelf] for shelf in shelves_of(state)) for state in TaskState},
            paused=queue.paused,
            oldest_ready=_waited(queue, transaction.now),
        )
        for queue in queues
        if not queue.is_empty
    ]


def _waited(queue: Queue, now: int) -> float | None:
    oldest = [at for shelf in shelves_of(TaskState.READY) if (at := _oldest(queue, shelf)) is not None]
    return max(0, now - min(oldest)) / 1e6 if oldest else None


def _oldest(queue: Queue, shelf: str) -> int | None:
    """Return since when the oldest task of a folder of ready ones is ready."""
    if not queue.counts[shelf]:
        return None
    state_folder = queue.state_folders[shelf]
    first = state_folder.first()
    if first is not None and first[:3] == state_folder.last[:3]:
        # All have one priority, so that the first is the oldest.
        return int(first[4:22])
    return min(_first_of_each_priority(state_folder), default=None)


def _first_of_each_priority(state_folder: StateFolder) -> Iterator[int]:
    seen = ""
    folders = state_folder.folders()
    for position, folder in enumerate(folders):
        following = folders[position + 1][:3] if position + 1 < len(folders) else ""
        if following == seen and seen:
            # All that is in this one has the priority of which the oldest is known.
            continue
        for name in state_folder.names(folder):
            if name[:3] != seen:
                seen = name[:3]
                yield int(name[4:22])


def workers(transaction: Transaction) -> list[StoredWorker]:
    """See :meth:`~omniq.storage.Storage.workers`."""
    alive = live_workers(transaction)
    running: dict[str | None, list[str]] = {}
    for name in transaction.folder.queue_names() if alive else ():
        queue = transaction.queue(name)
        if queue.counts[RUNNING]:
            for path in queue.state_folders[RUNNING].all():
                record = _shown(path, queue.name, transaction)
                if record is not None and record.stand_in is None:
                    running.setdefault(record.worker, []).append(record.order.id)
    return [
        StoredWorker(
            id=worker,
            seen_at=from_micros(seen_at),
            running=tuple(running.get(worker, ())),
            about=_about(worker, transaction),
        )
        for worker, seen_at in sorted(alive.items())
    ]


def _about(worker: str, transaction: Transaction) -> str | None:
    content = transaction.content(about_path(worker))
    return None if content is None else content.decode(errors="replace")


# Pages


def list_tasks(query: TaskQuery, before: int | None, transaction: Transaction) -> TaskPage[StoredTask]:
    """See :meth:`~omniq.storage.Storage.list_tasks`.

    :param before: only tasks with a smaller sequence number.
    """
    upto = transaction.folder.control.sequence + 1 if before is None else before
    pager = Pager(query)
    if query.flow is not None:
        candidates = _of_flow(query.flow, query, upto, transaction)
    elif query.states is None and query.queue is None:
        candidates = _latest(query, upto, transaction)
    else:
        candidates = _named(query, upto, transaction)
    for path, sequence, id_token, queue in candidates:
        task = transaction.fetch_bare(path, sequence, id_token) if query.bare else None
        if task is None:
            record = transaction.fetch_file(path, sequence, id_token, queue)
            if record is None:
                continue
            task = record.task()
        if pager.is_done_with(sequence, task):
            break
    return pager.page()


Candidate = tuple[str, int, str, str]
"""The path of a task's file, its sequence number and id token, and its queue as far as it is known."""


def _latest(query: TaskQuery, upto: int, transaction: Transaction) -> Iterator[Candidate]:
    """Yield all tasks, the latest first, by the folders that they have all their life."""
    tree = transaction.folder.tree
    folders = sorted(name for name in tree.names("tasks") if _is_number(name) and int(name) * HOME_SIZE < upto)
    folders = folders[
        : _end_before(query, folders, lambda folder: next(_in_folder(folder, upto, transaction), None), transaction)
    ]
    for folder in reversed(folders):
        yield from reversed(list(_in_folder(folder, upto, transaction)))


def _in_folder(folder: str, upto: int, transaction: Transaction) -> Iterator[Candidate]:
    for name in sorted(transaction.folder.tree.names(f"tasks/{folder}")):
        number = name[:12]
        if _is_number(number) and int(number) < upto:
            yield f"tasks/{folder}/{name}", int(number), name[13:].removesuffix(".json"), ""


def _of_flow(flow_id: str, query: TaskQuery, upto: int, transaction: Transaction) -> Iterator[Candidate]:
    """Yield the tasks of a flow, the latest first, by the names that they have for it."""
    states = tuple(TaskState) if query.states is None else tuple(query.states)
    found = [(member.sequence, path, member.id_token) for path, member in transaction.flows.names(flow_id, states)]
    for sequence, path, id_token in sorted(found, reverse=True):
        if sequence < upto:
            yield path, sequence, id_token, ""


def _end_before(
    query: TaskQuery, places: Sequence[T], first_of: Callable[[T], Candidate | None], transaction: Transaction
) -> int:
    """Return how many places, in the order of enqueueing, can hold tasks from before the time that is asked for.

    :param first_of: returns the first task of a place.
    """
    if query.enqueued_before is None:
        return len(places)
    moment = to_micros(slackened(query.enqueued_before, CLOCK_SLACK))
    low, high = 0, len(places)
    while low < high:
        middle = (low + high) // 2
        first = first_of(places[middle])
        record = None if first is None else transaction.fetch_file(*first)
        if record is not None and record.stand_in is None and record.created_at >= moment:
            high = middle
        else:
            low = middle + 1
    return low


def _named(query: TaskQuery, upto: int, transaction: Transaction) -> Iterator[Candidate]:
    """Yield the tasks of a queue or a state, the latest first, by the names of their files there."""
    bound = f"{upto:012d}"
    found: list[tuple[str, str, str]] = []
    for queue_name in transaction.folder.queue_names() if query.queue is None else [query.queue]:
        queue = transaction.queue(queue_name)
        for state in TaskState if query.states is None else query.states:
            for shelf in shelves_of(state) if any(queue.counts[shelf] for shelf in shelves_of(state)) else ():
                start = SEQUENCE_OF_READY if state is TaskState.READY else SEQUENCE
                state_folder = queue.state_folders[shelf]
                for folder in state_folder.folders():
                    place = f"{state_folder.path}/{folder}/"
                    found += [
                        (sequence, place + name, queue_name)
                        for name in state_folder.names(folder)
                        if (sequence := name[start : start + 12]) < bound
                    ]
    found.sort()

    def candidate(entry: tuple[str, str, str]) -> Candidate:
        _, path, queue_name = entry
        parsed = parse_entry(path.rpartition("/")[2])
        assert parsed is not None
        return path, parsed.sequence, parsed.id_token, queue_name

    yield from map(candidate, reversed(found[: _end_before(query, found, candidate, transaction)]))


def _shown(path: str, queue_name: str, transaction: Transaction) -> Record | None:
    entry = parse_entry(path.rpartition("/")[2])
    assert entry is not None
    return transaction.fetch_file(path, entry.sequence, entry.id_token, queue_name)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20
