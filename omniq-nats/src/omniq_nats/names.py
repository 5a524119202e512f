"""The subjects of a namespace: what is kept where, and how any text becomes part of a subject."""

from __future__ import annotations

import functools
import hashlib
import json
import re

from attrs import frozen

__all__ = [
    "APART",
    "BLOCKED_LINE",
    "DUE_LINE",
    "LARGE",
    "LIMIT",
    "PAUSED",
    "SHARED",
    "SHEET",
    "SHEET_SPAN",
    "SINGLE",
    "Names",
    "group_in",
    "group_of",
    "is_line",
    "line_in",
    "line_of",
    "readable",
    "split_batch",
    "token",
    "untoken",
]

PREFIX = "omniq"
DUE_LINE = "d"
"""The line of tasks that wait for a time, or may expire: claims sort them in when they come to them."""

BLOCKED_LINE = "b"
"""The line of tasks behind gates: no queue's state names it, so claims never come to it."""

PAUSED = "paused"
"""The note of a queue that is, or was, held up."""
LIMIT = "limit"
"""The note of a queue that has, or had, a limit: that is the limit itself."""
NAMED = "named"
"""What is behind the name of a limit in place of a note."""
SINGLE, LARGE, APART, SHARED = "s", "l", "a", "g"
"""Kinds of batches: of one task, of which the servers tell all workers that wait; of one, too large for that; of
one whose body is so large that it is a message of its own, behind it; of several."""
SHEET = "n"
"""What takes the place of the kind in the name of a page of results that is of several batches of one task each."""
SHEET_SPAN = 128
"""Batches of one task whose sequences are in the same span of this length have their results on one page, as those of
one batch of as many tasks do: what a worker finishes together then takes one or two messages, of which each costs as
much as a task."""

LONGEST_QUEUE = 3500
"""Bytes of a queue's name as a token. A server closes the connection, and that of each new try, on which it gets a
line of more than 4,096: the rest is for what else is in a subject, and for the subject of the answer."""

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")


@functools.lru_cache(maxsize=2048)  # each task's id is written several times, in as many messages
def token(text: str) -> str:
    """Return a text as one token of a subject: letters and digits stay, all else is written as ``=`` and two digits."""
    if text.isascii() and text.replace("-", "").isalnum():
        return text
    return _UNSAFE.sub(lambda match: b"=%02X" % match[0][0], text.encode("utf-8", "surrogatepass")).decode() or "="


def untoken(name: str) -> str:
    """Return the text of a token."""
    if "=" not in name:
        return name
    if name == "=":
        return ""
    raw = re.sub(rb"=([0-9A-F]{2})", lambda match: bytes([int(match[1], 16)]), name.encode())
    return raw.decode("utf-8", "surrogatepass")


def readable(name: str) -> str:
    """Return the text of a token, or the token as it is if it stands for none, or is not the one that stands for it."""
    try:
        text = untoken(name)
    except ValueError:
        return name
    return text if token(text) == name else name


@functools.lru_cache(maxsize=16384)
def group_of(key: str | None, limit: str | None) -> str:
    """Return the name of the group of tasks that have a key and a named limit; empty: they have neither."""
    if key is None and limit is None:
        return ""
    return hashlib.sha256(json.dumps([key, limit]).encode()).hexdigest()[:20]


def line_of(priority: int, group: str = "") -> str:
    """Return the name of the line of ready tasks of a priority, and of a group."""
    line = f"p{priority}" if priority >= 0 else f"m{-priority}"
    return f"{line}k{group}" if group else line


@functools.lru_cache(maxsize=16384)
def group_in(line: str) -> str:
    """Return the group of a line; empty: it is of tasks without one."""
    return line.partition("k")[2]


@functools.lru_cache(maxsize=16384)
def priority_of(line: str) -> int:
    """Return the priority of a line of ready tasks."""
    number = int(line[1:].partition("k")[0])
    return number if line[0] == "p" else -number


@functools.lru_cache(maxsize=16384)
def is_line(name: str) -> bool:
    """Return whether a text is the name of a line."""
    return name in (DUE_LINE, BLOCKED_LINE) or re.fullmatch(r"[pm]\d{1,19}(k[0-9a-f]{20})?", name, re.ASCII) is not None


def line_in(subject: str) -> str:
    """Return the line of a batch by its subject."""
    return subject.rsplit(".", 3)[1]


@functools.lru_cache(maxsize=1024)
def split_batch(batch: str) -> tuple[str, str, str]:
    """Return line, kind and token of a batch's name."""
    line, kind, name = batch.split("-", 2)
    return line, kind, name


def _hashed(unique: str) -> str:
    return hashlib.sha256(unique.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@functools.lru_cache(typed=True)
def _kept(queue: str, ttl: float) -> str:
    return f"{token(queue)}.{token(repr(ttl))}"


@frozen
class Names:
    """All names of one namespace."""

    namespace: str

    @property
    def stream(self) -> str:
        """The one stream of the namespace."""
        return f"OMNIQ_{self.namespace}"

    @property
    def root(self) -> str:
        """What all subjects begin with."""
        return f"{PREFIX}.{self.namespace}"

    @property
    def subjects(self) -> list[str]:
        """Return what the stream stores."""
        return [f"{self.root}.{kind}.>" for kind in "oefbqucwrpgh"]

    # Tasks as they were enqueued

    @property
    def task_lookup(self) -> str:
        """What the subjects of all batches and guards begin with."""
        return f"{self.root}.o."

    def batch(self, queue: str, batch: str) -> str:
        """Where the orders of one or more tasks are."""
        line, kind, name = split_batch(batch)
        written = token(queue)
        if len(written) > LONGEST_QUEUE:
            raise ValueError(
                f"the name of a queue, {queue[:20]!r}…, takes {len(written)} bytes of a subject of NATS, and "
                f"{LONGEST_QUEUE} are the most that a server takes; use a shorter one"
            )
        return f"{self.root}.o.t.{written}.{line}.{kind}.{name}"

    def line(self, queue: str, line: str) -> str:
        """Every batch of a line."""
        return f"{self.root}.o.t.{token(queue)}.{line}.*.*"

    def singles(self, queue: str, line: str) -> list[str]:
        """The batches of a line that hold one task."""
        return [f"{self.root}.o.t.{token(queue)}.{line}.{kind}.*" for kind in (SINGLE, LARGE, APART)]

    def guards(self, queue: str, line: str) -> str:
        """One for each task of a line that shares its batch with others."""
        return f"{self.root}.o.i.{token(queue)}.{line}.x.*"

    def guard(self, queue: str, line: str, task_id: str) -> str:
        """What says where a task is that shares its batch with others."""
        return f"{self.root}.o.i.{token(queue)}.{line}.x.{token(task_id)}"

    def batches(self, queue: str | None = None) -> str:
        """Every batch, or those of a queue."""
        return f"{self.root}.o.t.>" if queue is None else f"{self.root}.o.t.{token(queue)}.>"

    def anywhere(self, task_id: str) -> str:
        """The batch or the guard of a task, whatever its queue and line.

        There is nothing else below ``o``: a server goes through all subjects that differ in what a wildcard stands for.
        """
        return f"{self.root}.o.*.*.*.*.{token(task_id)}"

    def body(self, task_id: str) -> str:
        """The body of a task that has a large one, apart from the rest: a list of tasks need not read it."""
        return f"{self.root}.p.{token(task_id)}"

    @property
    def bodies(self) -> str:
        """All of these."""
        return f"{self.root}.p.*"

    # What has become of them

    def results(self, queue: str, ttl: float, batch: str, seq: int) -> str:
        """How the tasks of a batch ended; batches of one task share this with their neighbours.

        :param seq: the sequence of the batch.
        """
        line, kind, _ = split_batch(batch)
        page = batch if kind == SHARED else f"{line}-{SHEET}-{seq // SHEET_SPAN:x}"
        return f"{self.root}.e.{_kept(queue, ttl)}.{page}"

    def results_of(self, queue: str, ttl: float | None = None) -> str:
        """How the tasks of a queue ended: all, or those kept for so many seconds."""
        return f"{self.root}.e.{token(queue)}.{'*' if ttl is None else token(repr(ttl))}.*"

    def listed(self, queue: str, task_id: str) -> str:
        """Where a task stands that failed or was cancelled: of these alone there is a list."""
        return f"{self.root}.f.{token(queue)}.{token(task_id)}"

    def all_listed(self, queue: str | None = None) -> str:
        """All of a queue, or of all."""
        return f"{self.root}.f.{'*' if queue is None else token(queue)}.*"

    def blob(self, task_id: str, name: str) -> str:
        """A result or an error too large to lie with others."""
        return f"{self.root}.b.{token(task_id)}.{name}"

    def blobs(self, task_id: str) -> str:
        """All of a task's."""
        return f"{self.root}.b.{token(task_id)}.*"

    def queue_state(self, queue: str) -> str:
        """The record of a queue."""
        return f"{self.root}.q.{token(queue)}"

    def note(self, queue: str, name: str) -> str:
        """What is kept of a queue beside its record, in case that cannot be read: a line that it has, or a pause."""
        return f"{self.root}.q.{token(queue)}.{name}"

    def notes(self, queue: str) -> str:
        """All of a queue."""
        return self.note(queue, "*")

    def limit(self, queue: str | None = None, name: str | None = None) -> str:
        """The limit of a queue, or a named one."""
        if name is None:
            return self.note(queue or "", LIMIT)
        return f"{self.root}.q.{token(name)}.{NAMED}.{LIMIT}"

    @property
    def limits(self) -> list[str]:
        """All limits: those of queues, and named ones."""
        return [f"{self.root}.q.*.{LIMIT}", f"{self.root}.q.*.{NAMED}.{LIMIT}"]

    def usage(self, name: str) -> str:
        """What is kept of the use of a named limit."""
        return f"{self.root}.q.{token(name)}.{NAMED}.usage"

    @property
    def usages(self) -> str:
        """That of all named limits."""
        return f"{self.root}.q.*.{NAMED}.usage"

    @property
    def queue_states(self) -> str:
        """The records of all queues."""
        return f"{self.root}.q.*"

    def overflow_page(self, queue: str, name: str) -> str:
        """Tasks of a queue that wait, and are kept apart from its record."""
        return f"{self.root}.r.{token(queue)}.{name}"

    @property
    def overflow(self) -> str:
        """All overflow pages."""
        return f"{self.root}.r.>"

    def key(self, unique: str) -> str:
        """The holder of a unique key."""
        return f"{self.root}.u.{_hashed(unique)}"

    @property
    def keys(self) -> str:
        """The holders of all unique keys."""
        return f"{self.root}.u.*"

    @property
    def reserve(self) -> str:
        """What is removed to make room for the removal of other things, see :meth:`Transport.keep_reserve`."""
        return f"{self.root}.u.="

    # Flows

    def flow(self, flow_id: str) -> str:
        """A flow that has not ended."""
        return f"{self.root}.g.f.{token(flow_id)}"

    def ended_flow(self, flow_id: str) -> str:
        """A flow that has ended."""
        return f"{self.root}.g.e.{token(flow_id)}"

    def either_flow(self, flow_id: str) -> str:
        """A flow, whether it has ended or not; of the two messages the later counts."""
        return f"{self.root}.g.*.{token(flow_id)}"

    @property
    def flows(self) -> str:
        """All flows that have not ended, and some that have."""
        return f"{self.root}.g.f.*"

    @property
    def ended_flows(self) -> str:
        """All flows that have ended, in the order of their ends, and some that go on."""
        return f"{self.root}.g.e.*"

    def gates(self, flow_id: str, page: int) -> str:
        """Some of the gates of a flow."""
        return f"{self.root}.h.g.{token(flow_id)}.{page}"

    def roster(self, flow_id: str, number: int) -> str:
        """Where the tasks are that one call added to a flow."""
        return f"{self.root}.h.m.{token(flow_id)}.{number}"

    def parts_of_flow(self, flow_id: str) -> str:
        """Gates and rosters of a flow."""
        return f"{self.root}.h.*.{token(flow_id)}.*"

    @property
    def parts_of_flows(self) -> str:
        """Gates and rosters of all flows."""
        return f"{self.root}.h.*.*.*"

    def flow_key(self, unique: str) -> str:
        """The flow that has a unique key, or had it last."""
        return f"{self.root}.h.u.{_hashed(unique)}"

    @property
    def flow_keys(self) -> str:
        """The flows that have unique keys, or had them last."""
        return f"{self.root}.h.u.*"

    @property
    def flow_word(self) -> str:
        """Told when something follows in a flow that the next claim is to do."""
        return f"{self.root}.ev.flows"

    # The rest

    def schedule(self, schedule_id: str) -> str:
        """A schedule."""
        return f"{self.root}.c.{token(schedule_id)}"

    @property
    def schedules(self) -> str:
        """All schedules."""
        return f"{self.root}.c.*"

    def worker(self, worker: str) -> str:
        """When a worker was last heard of."""
        return f"{self.root}.w.{token(worker)}"

    @property
    def workers(self) -> str:
        """All workers."""
        return f"{self.root}.w.*"

    def about(self, worker: str) -> str:
        """What a worker told about itself."""
        return f"{self.root}.w.{token(worker)}.about"

    @property
    def abouts(self) -> str:
        """What all workers told about themselves."""
        return f"{self.root}.w.*.about"

    # What is told, and not stored

    def work(self, queue: str) -> str:
        """Told when something may be claimable in a queue, or will be."""
        return f"{self.root}.ev.work.{token(queue)}"

    @property
    def republished(self) -> tuple[str, str]:
        """What the servers pass on to those who listen when it has been stored, and how they call it then."""
        queue, line, name = (f"{{{{wildcard({number})}}}}" for number in (1, 2, 3))
        return f"{self.root}.o.t.*.*.{SINGLE}.*", f"{self.root}.ev.t.{queue}.{line}.{SINGLE}.{name}"

    def stored(self, queue: str) -> str:
        """Told by the servers when a task was stored."""
        return f"{self.root}.ev.t.{token(queue)}.>"

    def commit(self, queue: str) -> str:
        """Told by those that change the same queue state all the time, so that each has its turn."""
        return f"{self.root}.ev.turn.{token(queue)}"

    def end(self, task_id: str) -> str:
        """Told when a task has ended."""
        return f"{self.root}.ev.end.{token(task_id)}"

    @property
    def schedule_store(self) -> str:
        """Told when a schedule was changed."""
        return f"{self.root}.ev.timetable"
