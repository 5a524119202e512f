"""Homes: the messages that hold tasks as they were enqueued, one or several in each, and never change.

A batch's body is one line of JSON, then the bodies of its tasks one after the other. A large task is a batch by itself,
and its body is the message behind that, stored in the same step: where tasks are listed bare, it is not read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import partial
from itertools import accumulate
from typing import Any

from attrs import define, field

from omniq.errors import CorruptRecord
from omniq.limit import Limited
from omniq.storage.corrupt_records import corrupt, salvaged
from omniq.storage.validation import LONGEST_TEXT, UNREADABLE, check_task, is_text
from omniq.task import Feed, LimitedTask, NewTask, Progress, StoredTask, TaskError, TaskState
from omniq_nats.names import (
    APART,
    BLOCKED_LINE,
    DUE_LINE,
    LARGE,
    SHARED,
    SINGLE,
    is_line,
    line_of,
    priority_of,
    readable,
    split_batch,
    token,
    untoken,
)
from omniq_nats.results import MOST_TASKS, EndRecord, read_end_record
from omniq_nats.times import from_micros, is_moment, micros
from omniq_nats.transport import Stored

__all__ = [
    "KEPT",
    "Page",
    "Past",
    "TaskBatch",
    "Tie",
    "add_to_pages",
    "check_new",
    "encode_batch",
    "guard_body",
    "is_limited",
    "pages_of",
    "read_batch",
    "read_guard",
    "to_task",
]

VERSION = 1
WITH_KEYS = 2
"""The version of a batch that has tasks with a key, a named limit or a debounce."""
WITH_LIMITED = 11
"""Of so many values is the row of such a task."""
LARGE_BODY = 32 * 1024
"""Bytes: a larger body is a message of its own. A page of a hundred tasks therefore takes 3 MB at most without it."""
MOST_BYTES = 128 * 1024
_MOST = 2**63
PLACES = 1024
"""So many tasks at most in one atomic batch: their numbers in it tell them apart in the order of all tasks."""


KEPT = 1e12
"""Seconds for which the results of a flow's tasks are kept by themselves: the flow's end decides."""

Past = tuple[int, EndRecord]
"""Of a task that came from another store: when it was enqueued there, and what had become of it."""
Tie = tuple[int | None, tuple[Feed, ...], float | None]
"""What a task of a flow is behind, what it feeds, and the seconds from the gate's opening until it may start."""


@define(eq=False)
class TaskBatch:
    """One batch, as it is stored."""

    queue: str
    line: str
    name: str
    """Line, kind and token: what names it within its queue."""
    seq: int
    at: int
    """When its tasks were enqueued."""
    ttl: float
    first: int
    """The sequence of the first message that was stored together with it."""
    nonce: str
    rows: list[list[Any]]
    blobs: bytes | None = field(repr=False)
    """None: it is in a message of its own, and was not read, see :meth:`TaskLookup.with_bodies`."""
    flow: str | None = None
    """The flow that all of its tasks belong to."""
    ties: list[Tie] = field(factory=list)
    """Of each, if they belong to one."""
    result_ttl: float = 0.0
    """As its tasks were given it; ``ttl`` is that by which their results are kept."""
    pasts: list[Past] = field(factory=list)
    """Of each, if they came from another store: then the line is that of those that wait, or of blocked ones."""
    _offsets: list[int] | None = None
    problem: CorruptRecord | None = None
    """Why it cannot be read. As far as it tells itself, it holds no tasks then."""

    @property
    def is_shared(self) -> bool:
        """Whether each of its tasks has a guard."""
        return split_batch(self.name)[1] == SHARED

    def __len__(self) -> int:
        return len(self.rows)

    def rank(self, index: int) -> int:
        """Return the place of a task in the order of enqueueing, that of all tasks of the store."""
        place: int = self.rows[index][5]
        return self.first * PLACES + place

    def index_of(self, task_id: str) -> int | None:
        """Return the number of a task in it."""
        return next((index for index, row in enumerate(self.rows) if row[0] == task_id), None)

    def run_at(self, index: int) -> int:
        """Return when a task may start."""
        at: int | None = self.rows[index][2]
        return self.at if at is None else at

    def created_at(self, index: int) -> int:
        """Return when a task was enqueued."""
        return self.pasts[index][0] if self.pasts else self.at

    def past(self, index: int) -> EndRecord | None:
        """Return what had become of a task in the store that it came from: it holds until another end record does."""
        return self.pasts[index][1] if self.pasts else None

    def may_be_blocked(self, index: int) -> bool:
        """Return whether a task of which no end record tells that it has ended may stand behind its gate."""
        return self.line == BLOCKED_LINE or bool(self.pasts and self.ties and self.ties[index][0] is not None)

    def limited(self, index: int) -> Limited | None:
        """Return key and named limit of a task, and of a debounced one when the first was enqueued."""
        row = self.rows[index]
        if len(row) < WITH_LIMITED:
            return None
        key, limit, first_at = row[-1]
        return Limited(key, limit, None if first_at is None else from_micros(first_at))

    def group_key(self, index: int) -> tuple[str | None, str | None] | None:
        """Return key and named limit of a task; None: it has neither."""
        row = self.rows[index]
        return None if len(row) < WITH_LIMITED or row[-1][:2] == [None, None] else (row[-1][0], row[-1][1])

    def priority(self, index: int) -> int:
        """Return the priority of a task: where it is ready, that of the line in which it stands."""
        has_none = self.line in (DUE_LINE, BLOCKED_LINE)
        priority: int = self.rows[index][1] if has_none else priority_of(self.line)
        return priority

    def body(self, index: int) -> bytes:
        """Return the body of a task.

        :raises ValueError: if it was not read, or is not there.
        """
        if self.blobs is None:
            raise ValueError("its body is not there, or not as large as it was")
        if len(self.rows) == 1:
            return self.blobs
        if self._offsets is None:
            self._offsets = [0, *accumulate(row[9] for row in self.rows)]
        return self.blobs[self._offsets[index] : self._offsets[index + 1]]


@define(eq=False)
class Page:
    """A batch that is about to be stored."""

    queue: str
    line: str
    ttl: float
    tasks: list[tuple[NewTask | StoredTask, int, int | None, int | None]] = field(factory=list)
    """Each with its number in the batch, the time at which it may start (None: at once), and that of its expiry."""
    size: int = 0
    apart: bytes | None = None
    """The body of the one task that it holds, where that is to be stored behind it; None: it holds all."""
    flow: str | None = None
    ties: list[Tie] = field(factory=list)
    """Of each, if they belong to a flow."""
    pasts: list[Past] = field(factory=list)
    """Of each, if they come from another store."""
    limited: dict[str, Limited] = field(factory=dict)
    """By id: of those that have any, key, named limit and debounce."""

    def takes(self, size: int) -> bool:
        """Whether a task of so many bytes may be added."""
        return self.apart is None and len(self.tasks) < MOST_TASKS and self.size + size <= MOST_BYTES


def pages_of(
    tasks: Iterable[tuple[int, NewTask, int | None, int | None]],
) -> list[Page]:
    """Put tasks into batches, such that those of one line stay in order.

    :param tasks: each with its number, the time at which it may start, if that is to come, and that of its expiry.
    """
    pages: list[Page] = []
    current: dict[tuple[str, str], Page] = {}
    for number, task, run_at, expires in tasks:
        page, _ = add_to_pages(current, task, number, run_at, expires)
        if len(page.tasks) == 1:
            pages.append(page)
    return pages


def add_to_pages(
    current: dict[tuple[str, str], Page], task: NewTask, number: int, run_at: int | None, expires: int | None
) -> tuple[Page, int]:
    """Put a task into the batch that its line has at the moment, or begin another one.

    :return: the batch, and how many messages more it takes.
    """
    waits = run_at is not None or expires is not None
    line = DUE_LINE if waits else line_of(task.priority)
    size = len(task.body) + 256
    is_large = len(task.body) > LARGE_BODY
    page = current.get((task.queue, line))
    if page is None or page.ttl != task.result_ttl or is_large or not page.takes(size):
        page = current[task.queue, line] = Page(task.queue, line, float(task.result_ttl))
    page.tasks.append((task, number, run_at, expires))
    page.size += size
    if is_large:
        page.apart = task.body
    # With the second task the first one needs a guard, too.
    return page, 2 if is_large or len(page.tasks) == 2 else 1


def is_limited(task: NewTask) -> bool:
    """Return whether a task has a key, a named limit or a debounce."""
    return task.key is not None or task.limit is not None or task.debounce is not None


def check_new(task: NewTask | StoredTask) -> None:
    """Refuse a task that could not be read once it is stored.

    :raises ValueError: names what cannot be stored.
    """
    if not 0 <= task.result_ttl < math.inf:
        raise ValueError(f"result_ttl must be a number of seconds, not {task.result_ttl!r}")
    if not (-_MOST <= task.priority < _MOST and 0 <= task.max_retries < _MOST):
        raise ValueError("priority and max_retries must be whole numbers of 64 bits, and max_retries 0 or more")
    texts = (task.id, task.queue, task.name, task.unique or "", task.key or "", task.limit or "", *task.tags)
    whole = "".join(texts)
    if whole.isascii() and len(whole) <= LONGEST_TEXT:
        return
    for text in texts:
        if not is_text(text):
            raise ValueError(
                f"{text[:50]!r} of task {task.id[:50]!r} cannot be stored: an id, a name, a key or a tag has at most "
                f"{LONGEST_TEXT:,} characters, and no half of a surrogate pair"
            )


def encode_batch(page: Page, *, at: int, behind: int, nonce: str) -> bytes:
    """Return the body of a batch, without what is stored behind it.

    :param at: the time of enqueueing.
    :param behind: how many messages are stored together with it, and before it.
    :param nonce: tells this attempt to store it from others.
    """
    rows = [
        [
            task.id,
            task.priority,
            run_at,
            expires,
            task.unique,
            number,
            task.name,
            task.max_retries,
            task.tags,
            len(task.body),
            *([_limited_row(page.limited[task.id])] if task.id in page.limited else []),
        ]
        for task, number, run_at, expires in page.tasks
    ]
    head = {
        "v": WITH_KEYS if page.limited else VERSION,
        "queue": page.queue,
        "at": at,
        "ttl": page.ttl,
        "behind": behind,
        "nonce": nonce,
        "tasks": rows,
    }
    if page.flow is not None:
        ties = [
            [behind, [[feed.gate, feed.needs_success] for feed in feeds], delay] for behind, feeds, delay in page.ties
        ]
        head["ttl"], head["flow"] = KEPT, [page.flow, page.ttl, ties]
    if page.pasts:
        head["past"] = [[created_at, end_record.row()] for created_at, end_record in page.pasts]
    parts = [_encode(head).encode(), b"\n"]
    if page.apart is None:
        parts += [task.body for task, _, _, _ in page.tasks]
    return b"".join(parts)


def read_batch(stored: Stored) -> TaskBatch:
    """Read a batch; of one that cannot be read it is said why."""
    queue, line, kind, name = ["", "", "", "", *stored.subject.rsplit(".", 4)][-4:]
    try:
        return _read_home(stored, queue, line, kind, name)
    except UNREADABLE as error:
        task_id = None if kind == SHARED else readable(name)
        place = f"message {stored.seq} on {stored.subject}"
        return TaskBatch(
            queue=readable(queue),
            line=line,
            name=f"{line}-{kind}-{name}",
            seq=stored.seq,
            at=0,
            ttl=0.0,
            first=stored.seq,
            nonce="",
            rows=[],
            blobs=b"",
            problem=corrupt("task", task_id, error, place=place),
        )


_decode = json.JSONDecoder().raw_decode
_encode = json.JSONEncoder(separators=(",", ":")).encode
"""As json.dumps does, which makes an encoder for each call."""


def _read_home(stored: Stored, queue: str, line: str, kind: str, name: str) -> TaskBatch:
    head, _, blobs = stored.data.partition(b"\n")
    # As json.loads does, which looks for the encoding and for spaces first.
    told, end = _decode(text := head.decode())
    if end != len(text):
        raise ValueError("more follows what it says of its tasks")
    behind, rows = told["behind"], told["tasks"]
    if told["v"] not in (VERSION, WITH_KEYS):
        raise ValueError(f"it is of version {told['v']!r:.20}")
    if type(rows) is not list or not rows:
        raise ValueError("it holds no tasks")
    size = 0
    for row in rows:
        size += _size_in(row)
    if (0 if kind == APART else size) != len(blobs):
        raise ValueError("its tasks are not as large as it says")
    if kind not in (SINGLE, LARGE, APART, SHARED) or (kind != SHARED and (len(rows) != 1 or token(rows[0][0]) != name)):
        raise ValueError("it names another task than its subject")
    if token(told["queue"]) != queue:
        raise ValueError("it names another queue than its subject")
    if type(behind) is not int or not 0 <= behind < min(PLACES, stored.seq) or type(told["nonce"]) is not str:
        raise ValueError("it does not say with what it was stored")
    if not is_moment(told["at"]) or told["at"] < 0 or type(told["ttl"]) is not float or not 0 <= told["ttl"] < math.inf:
        raise ValueError("it does not say when it was stored, or for how long its results are kept")
    if not is_line(line):
        raise ValueError("its subject names no line")
    flow, result_ttl, ties = _read_flow(told["flow"], len(rows)) if "flow" in told else (None, told["ttl"], [])
    return TaskBatch(
        queue=told["queue"],
        line=line,
        name=f"{line}-{kind}-{name}",
        seq=stored.seq,
        at=told["at"],
        ttl=told["ttl"],
        first=stored.seq - behind,
        nonce=told["nonce"],
        rows=rows,
        blobs=None if kind == APART else blobs,
        flow=flow,
        ties=ties,
        result_ttl=result_ttl,
        pasts=_read_pasts(told["past"], len(rows)) if "past" in told else [],
    )


def _read_pasts(told: Any, count: int) -> list[Past]:
    pasts = [(created_at, read_end_record(row)) for created_at, row in told]
    if len(pasts) != count or not all(is_moment(created_at) and created_at >= 0 for created_at, _ in pasts):
        raise ValueError("it does not say what had become of its tasks in the store that they came from")
    return pasts


def _read_flow(told: Any, count: int) -> tuple[str, float, list[Tie]]:
    """Return of which flow tasks are, for how long results were to be kept, and the place of each task in the flow."""
    flow, ttl, rows = told
    ties: list[Tie] = []
    for behind, feeds, delay in rows:
        gates = [] if behind is None else [behind]
        gates += [gate for gate, _ in feeds]
        if not (
            all(type(gate) is int and 0 <= gate < _MOST for gate in gates)
            and all(type(needs) is bool for _, needs in feeds)
            and (delay is None or (type(delay) is float and 0 <= delay < math.inf))
        ):
            raise ValueError("what it says of gates is of a wrong type or out of range")
        ties.append((behind, tuple(Feed(gate, needs) for gate, needs in feeds), delay))
    if not is_text(flow) or type(ttl) is not float or not 0 <= ttl < math.inf or len(ties) != count:
        raise ValueError("it does not say of which flow it is")
    return flow, ttl, ties


def _limited_row(limited: Limited) -> list[Any]:
    return [limited.key, limited.limit, None if limited.first_at is None else micros(limited.first_at)]


def _size_in(row: Any) -> int:
    """Return the size of a task's body, if all that is said of the task is as it must be."""
    task_id, priority, run_at, expires, unique, number, name, max_retries, tags, size, *limited = row
    if (
        is_text(task_id)
        and is_text(name)
        and type(priority) is int
        and -_MOST <= priority < _MOST
        and (run_at is None or (is_moment(run_at) and run_at >= 0))
        and (expires is None or is_moment(expires))
        and (unique is None or is_text(unique))
        and type(number) is int
        and 0 <= number < PLACES
        and type(max_retries) is int
        and 0 <= max_retries < _MOST
        and type(tags) is list
        and all(map(is_text, tags))
        and type(size) is int
        and size >= 0
        and (not limited or _is_limited(*limited))
    ):
        return size
    raise ValueError(f"what it says of task {str(task_id)[:100]!r} is of a wrong type or out of range")


def _is_limited(told: Any) -> bool:
    key, limit, first_at = told
    return all(one is None or is_text(one) for one in (key, limit)) and (first_at is None or is_moment(first_at))


def guard_body(batch: str, index: int) -> bytes:
    """Return the body of a guard: where its task is."""
    return f"{batch} {index}".encode()


def read_guard(stored: Stored) -> tuple[str, str, str, int]:
    """Return the id of the task that a guard speaks of, queue and name of its batch, and its number there.

    :raises CorruptRecord: if it cannot be read.
    """
    try:
        batch, _, index = stored.data.decode().rpartition(" ")
        queue, _, _, task_id = stored.subject.rsplit(".", 4)[1:]
        split_batch(batch)
        return untoken(task_id), untoken(queue), batch, int(index)
    except UNREADABLE as error:
        place = f"message {stored.seq} on {stored.subject}"
        raise corrupt("task", readable(stored.subject.rpartition(".")[2]), error, place=place) from error


def to_task(
    batch: TaskBatch,
    index: int,
    *,
    state: TaskState,
    run_at: int | None = None,
    attempt: int = 0,
    delivery: int = 0,
    worker: str | None = None,
    started: int | None = None,
    lease_until: int | None = None,
    finished: int | None = None,
    error: TaskError | None = None,
    progress: Progress | None = None,
    cancel_requested: bool = False,
    result: bytes | None = None,
    attempt_log: str = "",
    keeps_expiry: bool = True,
    bare: bool = False,
) -> StoredTask:
    """Put together the record of a task: the order, and what has become of it.

    Where one of them is not what it must be, it is a record that failed and says so.

    :param bare: whether to leave out the body.
    """
    row = batch.rows[index]
    body = b""
    behind, feeds, opening_delay = batch.ties[index] if batch.ties else (None, (), None)
    expires = row[3] if keeps_expiry else None
    try:
        body = b"" if bare else batch.body(index)
        limited = batch.limited(index)
        make = StoredTask if limited is None else partial(LimitedTask, limited=limited)
        task = make(
            id=row[0],
            queue=batch.queue,
            name=row[6],
            body=body,
            priority=batch.priority(index),
            state=state,
            attempt=attempt,
            delivery=delivery,
            max_retries=row[7],
            created_at=from_micros(batch.created_at(index)),
            run_at=from_micros(batch.run_at(index) if run_at is None else run_at),
            started_at=None if started is None else from_micros(started),
            finished_at=None if finished is None else from_micros(finished),
            expires_at=None if expires is None else from_micros(expires),
            lease_until=None if lease_until is None else from_micros(lease_until),
            worker=worker,
            unique=row[4],
            tags=tuple(row[8]),
            result_ttl=batch.result_ttl,
            flow=batch.flow,
            behind=behind,
            feeds=feeds,
            opening_delay=opening_delay,
            error=error,
            progress=progress,
            cancel_requested=cancel_requested,
            result_payload=result,
            attempt_log=attempt_log,
        )
        return check_task(task)
    except UNREADABLE as wrong:
        problem = corrupt("task", row[0], wrong, place=f"the record of queue {batch.queue!r}, or its results")
        known = {"queue": batch.queue, "name": row[6], "body": body, "created_at": from_micros(batch.created_at(index))}
        known |= {"flow": batch.flow, "behind": behind, "feeds": feeds}
        return salvaged(problem, row[0], known)
