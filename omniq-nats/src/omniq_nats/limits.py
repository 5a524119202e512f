"""Limits as they are stored, and how they are kept beside the states of queues.

The limit of a queue, or a named one, is a message. That of a queue is changed in one step with the queue's state, and
so is what is kept of the use of a named limit: a second message, which says of each queue how many of its tasks run,
and which every change of such a number replaces in the step in which the tasks start or end. So no claim is accepted
that saw other numbers, or another limit, than there are.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from attrs import define, evolve, field

from omniq.errors import CorruptRecord, StorageUnavailable
from omniq.limit import Limit, Rate, UnreadableLimit, limit_id
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq.storage.records import corrupt_limit, dump_limit, read_limit
from omniq.storage.validation import UNREADABLE, is_text
from omniq_nats.entries import Entry
from omniq_nats.lanes import UNLIMITED, Group, Usage, at_rest, slots_of, tokens_of
from omniq_nats.names import DUE_LINE, untoken
from omniq_nats.queue_state import QueueState
from omniq_nats.times import Clock
from omniq_nats.transport import Conflict, Lost, Stored, Transport, Write

__all__ = ["DELETED", "Book", "Gate", "LimitRecords", "names_of"]

_log = get_logger("omniq.nats")

DELETED = b"-"
"""What is stored in place of a limit that was deleted, until it is gone."""
MOST_IDLE = 100
"""Groups without tasks that are remembered, as they have had more than others."""
GONE_AFTER = 60
"""Seconds."""


@define(eq=False)
class Book:
    """The limits under which the tasks of a queue stand."""

    own: Limit | None = None
    named: dict[str, Limit] = field(factory=dict)


@define(eq=False)
class _Found:
    limit: Limit | None
    seq: int

    def next_revision(self, end: int) -> int:
        """Return a revision that no limit of this id has had.

        :param end: a sequence behind all that was stored of it.
        """
        # A revision is no larger than the sequence of its message.
        return 1 + (self.limit.revision if self.limit is not None and self.limit.revision else max(self.seq, end))


class LimitRecords:
    """Reads and writes what is stored of limits.

    :param transport: to read and write with.
    :param clock: of the servers.
    """

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self._transport = transport
        self._names = transport.settings.names
        self._clock = clock

    # Reading

    def _read(self, wanted: str, stored: Stored | None) -> _Found:
        if stored is None:
            return _Found(None, 0)
        if stored.data == DELETED:
            return _Found(None, stored.seq)
        problems: list[CorruptRecord] = []
        _, _, text = stored.data.partition(b"\n")
        found = read_limit(text, wanted, problems)
        for problem in problems:
            log_once(_log, problem, self._transport.settings.shown)
        return _Found(found, stored.seq)

    async def of(self, ids: Iterable[str]) -> dict[str, Limit]:
        """Return limits by their ids; those that are not there are left out."""
        subjects = {self._subject(one): one for one in ids}
        found = await self._transport.last(list(subjects)) if subjects else []
        read = [self._read(subjects[stored.subject], stored).limit for stored in found]
        return {limit.id: limit for limit in read if limit is not None}

    async def all(self) -> dict[str, Limit]:
        """Return all limits by their ids."""
        found: dict[str, Limit] = {}
        for subject in self._names.limits:
            for stored in await self._transport.last_all(subject):
                text, *named = stored.subject.removeprefix(f"{self._names.root}.q.").split(".")
                kind = "name" if len(named) > 1 else "queue"
                limit = self._read(f"{kind}:{untoken(text)}", stored).limit
                if limit is not None:
                    found[limit.id] = limit
        return found

    async def problems(self) -> list[CorruptRecord]:
        """Return why limits cannot be read."""
        unreadable = [limit for limit in (await self.all()).values() if isinstance(limit, UnreadableLimit)]
        return [corrupt_limit(limit.id, limit.problem) for limit in unreadable]

    def _subject(self, wanted: str) -> str:
        kind, _, name = wanted.partition(":")
        return self._names.limit(name) if kind == "queue" else self._names.limit(name=name)

    async def usages(self, names: Iterable[str]) -> dict[str, Usage]:
        """Return what is stored of the use of named limits."""
        subjects = {self._names.usage(name): name for name in names}
        found = {name: Usage(name) for name in subjects.values()}
        for stored in await self._transport.last(list(subjects)) if subjects else ():
            found[subjects[stored.subject]] = await self._read_usage(subjects[stored.subject], stored)
        return found

    async def usages_of(self, queue: str) -> dict[str, int]:
        """Return by named limit how many tasks of a queue are said to run."""
        found = {}
        for stored in await self._transport.last_all(self._names.usages):
            name = untoken(stored.subject.rsplit(".", 3)[1])
            usage = await self._read_usage(name, stored)
            if queue in usage.held:
                found[name] = usage.held[queue]
        return found

    async def _read_usage(self, name: str, stored: Stored) -> Usage:
        try:
            rest, held = json.loads(stored.data)
            if type(rest) is not int or not all(
                is_text(queue) and type(number) is int and number >= 0 for queue, number in held.items()
            ):
                raise ValueError("what it says is of a wrong type or out of range")
            return Usage(name, stored.seq, rest, held)
        except UNREADABLE as error:
            log_once(_log, corrupt_limit(limit_id(name=name), f"its usage: {error}"), self._transport.settings.shown)
            return Usage(name, stored.seq, 0, await self._held(name))

    async def _held(self, name: str) -> dict[str, int]:
        """Return by queue how many tasks with a named limit run, by what the states of queues tell."""
        from omniq_nats.encoding import read_queue_state

        held = {}
        for stored in await self._transport.last_all(self._names.queue_states):
            queue = untoken(stored.subject.rpartition(".")[2])
            try:
                lane = read_queue_state(queue, stored).lane
            except CorruptRecord:
                continue  # it is made anew, and says so then
            if lane is not None and name in lane.names:
                held[queue] = lane.names[name]
        return held

    async def load(self, queue_state: QueueState, names: Iterable[str]) -> Book:
        """Return the limits under which tasks of a queue stand, and read the usage of the named ones for a change.

        :param names: of limits.
        """
        lane = queue_state.lane
        wanted = dict.fromkeys(names)
        subjects = {self._names.limit(name=name): limit_id(name=name) for name in wanted}
        if lane is not None and lane.is_limited:
            subjects[self._names.limit(queue_state.queue)] = limit_id(queue_state.queue)
        uses = {self._names.usage(name): name for name in wanted if name not in queue_state.usages}
        book = Book()
        for stored in await self._transport.last([*subjects, *uses]) if subjects else ():
            if stored.subject in uses:
                queue_state.usages[uses[stored.subject]] = await self._read_usage(uses[stored.subject], stored)
                continue
            limit = self._read(subjects[stored.subject], stored).limit
            if limit is not None and limit.name is not None:
                book.named[limit.name] = limit
            elif limit is not None:
                book.own = limit
        for name in wanted:
            queue_state.usages.setdefault(name, Usage(name))
        return book

    # What follows from a change of a queue's state

    async def follow(self, queue_state: QueueState) -> None:
        """Bring what is kept of limits in line with what a change has done to the tasks of a queue."""
        lane = queue_state.lane
        if lane is None:
            return
        now = self._clock.now()
        here = queue_state.groups_here()
        limited = [entry.limited for entry in queue_state.running.values() if entry.limited is not None]
        held = Counter(name for _, name in limited if name is not None)
        counts = {name: held[name] for name in sorted({*names_of(queue_state), *held})}
        idle = sorted((lane.groups[name].vtime, name) for name in lane.groups.keys() - here)
        kept = {name for vtime, name in idle[-MOST_IDLE:] if vtime > lane.vtime}
        for _, name in idle:
            if name not in kept:
                del lane.groups[name]
        lane.rests = {key: rest for key, rest in lane.rests.items() if rest > now}
        different = [name for name in {**lane.names, **counts} if lane.names.get(name) != counts.get(name)]
        unread = [name for name in different if name not in queue_state.usages]
        queue_state.usages.update(await self.usages(unread) if unread else {})
        for name in different:
            usage = queue_state.usages[name]
            usage.is_changed = True
            if counts.get(name, 0) < lane.names.get(name, 0):
                queue_state.roused.update(usage.held)
            if name in counts:
                usage.held[queue_state.queue] = counts[name]
            else:
                usage.held.pop(queue_state.queue, None)
        lane.names = counts
        # Tasks that are not sorted in yet may have keys, too.
        waits = DUE_LINE in queue_state.lines or any(page.is_lined for page in queue_state.overflow)
        if not (here or limited or waits or lane.is_limited or lane.rests or lane.groups) and lane.at_rest <= now:
            queue_state.lane = None

    def writes(self, usages: Mapping[str, Usage]) -> list[Write]:
        """Return the messages of the usages that a change has changed."""
        now = self._clock.now() if usages else 0
        return [
            Write(self._names.usage(name), _encode_usage(usage), expected=usage.seq, ttl=_ttl(usage, now))
            for name, usage in usages.items()
            if usage.is_changed
        ]

    async def give_back(self, queue_state: QueueState, entries: Sequence[Entry]) -> None:
        """Take back the starts of tasks that were given back unstarted."""
        if queue_state.lane is None or not entries:
            return
        lane, now = queue_state.lane, self._clock.now()
        book = await self.load(queue_state, [one.limited[1] for one in entries if one.limited and one.limited[1]])
        for entry in entries:
            if book.own is not None and book.own.rate is not None:
                lane.at_rest = _less(lane.at_rest, book.own.rate, now)
            key, name = entry.limited or (None, None)
            per_key = None if book.own is None else book.own.per_key
            if key is not None and per_key is not None and per_key.rate is not None:
                lane.rests[key] = _less(lane.rests.get(key, 0), per_key.rate, now)
            named = None if name is None else book.named.get(name)
            if name is not None and named is not None and named.rate is not None:
                usage = queue_state.usages[name]
                usage.at_rest, usage.is_changed = _less(usage.at_rest, named.rate, now), True
                queue_state.roused.update(usage.held)
        queue_state.roused.add(queue_state.queue)

    # Changing

    async def put_own(self, queue_state: QueueState, limit: Limit, expected: int | None) -> Limit | None:
        """Change the limit of a queue, in one step with its state."""
        subject = self._names.limit(queue_state.queue)
        stored = await self._transport.last([subject])
        found = self._read(limit.id, stored[0] if stored else None)
        if expected not in (None, 0 if found.limit is None else found.limit.revision):
            return None
        new = evolve(limit, revision=found.next_revision(queue_state.seq))
        queue_state.with_lane().is_limited = True
        queue_state.roused.add(queue_state.queue)
        queue_state.also.append(Write(subject, _encode_limit(new), expected=found.seq))
        return new

    async def delete_own(self, queue_state: QueueState) -> bool:
        """Remove the limit of a queue, in one step with a change of its state."""
        subject = self._names.limit(queue_state.queue)
        stored = await self._transport.last([subject])
        if not stored or stored[0].data == DELETED:
            return False
        queue_state.with_lane().is_limited = False
        queue_state.roused.add(queue_state.queue)
        queue_state.also.append(Write(subject, DELETED, expected=stored[0].seq, ttl=GONE_AFTER))
        return True

    async def put_named(self, limit: Limit, expected: int | None) -> tuple[Limit | None, set[str]]:
        """Change a named limit; return it, and the queues that have tasks with it."""
        name = limit.name or ""
        for _ in range(1000):
            stored = await self._transport.last([self._names.limit(name=name)])
            found = self._read(limit.id, stored[0] if stored else None)
            if expected not in (None, 0 if found.limit is None else found.limit.revision):
                return None, set()
            end = 0 if found.limit is not None and found.limit.revision else await self._transport.end()
            new = evolve(limit, revision=found.next_revision(end))
            queues = await self._store_named(name, _encode_limit(new), found.seq)
            if queues is not None:
                return new, queues
        raise StorageUnavailable(f"limit {limit.id!r} is changed by so many at once that no turn came")

    async def delete_named(self, name: str) -> tuple[bool, set[str]]:
        """Remove a named limit; return whether it was there, and the queues that have tasks with it."""
        for _ in range(1000):
            stored = await self._transport.last([self._names.limit(name=name)])
            if not stored or stored[0].data == DELETED:
                return False, set()
            queues = await self._store_named(name, DELETED, stored[0].seq)
            if queues is not None:
                return True, queues
        raise StorageUnavailable(f"limit name:{name!r} is changed by so many at once that no turn came")

    async def _store_named(self, name: str, data: bytes, seq: int) -> set[str] | None:
        """Store a named limit, and its usage as it is: a claim that read it before is refused then.

        :return: the queues that have tasks with it; None: another was quicker.
        """
        subject = self._names.limit(name=name)
        usage = (await self.usages([name]))[name]
        usage.is_changed = True
        try:
            ttl = GONE_AFTER if data == DELETED else None
            await self._transport.batch([Write(subject, data, expected=seq, ttl=ttl), *self.writes({name: usage})])
        except Conflict:
            return None
        except Lost:
            stored = await self._transport.last([subject])
            if not stored or stored[0].data != data or stored[0].seq == seq:
                return None
        return set(usage.held)


def _less(stored: int, rate: Rate, now: int) -> int:
    return max(0, at_rest(stored, rate, now) - rate.interval)


def _encode_limit(limit: Limit) -> bytes:
    # What stands before it tells one attempt to store it from another.
    return f"{secrets.token_hex(6)}\n{dump_limit(limit)}".encode()


def _ttl(usage: Usage, now: int) -> int | None:
    """Return after how many seconds a usage is gone that tells nothing any more."""
    return None if usage.held else GONE_AFTER + max(0, usage.at_rest - now) // 1_000_000


def _encode_usage(usage: Usage) -> bytes:
    return json.dumps([usage.at_rest, usage.held], separators=(",", ":")).encode()


class Gate:
    """Says for how many tasks of a queue there is room by all limits, and counts those that start.

    :param queue_state: of the queue, which has a lane; the usages of the named limits were read.
    :param book: the limits.
    :param now: the servers' time.
    """

    def __init__(self, queue_state: QueueState, book: Book, now: int) -> None:
        assert queue_state.lane is not None
        self._queue_state = queue_state
        self._lane = queue_state.lane
        self._book = book
        self._now = now
        self._running = len(queue_state.running)
        limited = [entry.limited for entry in queue_state.running.values() if entry.limited is not None]
        self._keys = Counter(key for key, _ in limited)
        self._names = Counter(name for _, name in limited)

    @property
    def _per_key(self) -> Limit | None:
        return None if self._book.own is None else self._book.own.per_key

    def weight(self, key: str | None) -> float:
        """Return the weight of a key."""
        return 1.0 if self._book.own is None else self._book.own.weight(key)

    def own_room(self) -> tuple[int, int, int]:
        """Return the slots and the tokens that the queue's limit has left, and when the next token is there."""
        own = self._book.own
        return slots_of(own, self._running), *tokens_of(own, self._lane.at_rest, self._now)

    def by_key(self, key: str | None) -> tuple[int, int, int]:
        """Return the same of the limit for each key."""
        if key is None:
            return UNLIMITED, UNLIMITED, self._now
        rest = self._lane.rests.get(key, 0)
        return slots_of(self._per_key, self._keys[key]), *tokens_of(self._per_key, rest, self._now)

    def by_name(self, name: str | None) -> tuple[int, int, int]:
        """Return the same of a named limit."""
        named = None if name is None else self._book.named.get(name)
        if name is None or named is None:
            return UNLIMITED, UNLIMITED, self._now
        usage = self._queue_state.usages[name]
        elsewhere = sum(number for queue, number in usage.held.items() if queue != self._queue_state.queue)
        return slots_of(named, elsewhere + self._names[name]), *tokens_of(named, usage.at_rest, self._now)

    def room(self, group: Group) -> int:
        """Return for how many tasks of a group there is room by the limits of its key and its name."""
        return max(0, min(*self.by_key(group.key)[:2], *self.by_name(group.limit)[:2]))

    def next_at(self, group: Group) -> int | None:
        """Return when a task of a group may start by these limits; None: when another has ended."""
        key, name = self.by_key(group.key), self.by_name(group.limit)
        if key[0] <= 0 or name[0] <= 0:
            return None
        return max(due if tokens <= 0 else self._now for _, tokens, due in (key, name))

    def put_right(self) -> bool:
        """Let rates that are ahead of all that they can be go on from here; return whether there were any.

        They come of other rates, or the clock was put back.
        """
        lane, changed = self._lane, False
        own, per_key = self._book.own, self._per_key
        if own is not None and own.rate is not None:
            latest = self._now + own.rate.burst * own.rate.interval
            changed, lane.at_rest = lane.at_rest > latest, min(lane.at_rest, latest)
        if per_key is not None and per_key.rate is not None:
            latest = self._now + per_key.rate.burst * per_key.rate.interval
            for key, rest in lane.rests.items():
                if rest > latest:
                    lane.rests[key], changed = latest, True
        for name, named in self._book.named.items():
            usage = self._queue_state.usages[name]
            if named.rate is not None and usage.at_rest > self._now + named.rate.burst * named.rate.interval:
                usage.at_rest = self._now + named.rate.burst * named.rate.interval
                usage.is_changed = changed = True
        return changed

    def start(self, group: Group | None, number: int) -> None:
        """Count tasks that start."""
        lane, own, per_key = self._lane, self._book.own, self._per_key
        self._running += number
        if own is not None and own.rate is not None:
            lane.at_rest = at_rest(lane.at_rest, own.rate, self._now) + number * own.rate.interval
        if group is None:
            return
        self._keys[group.key] += number
        self._names[group.limit] += number
        if group.key is not None and per_key is not None and per_key.rate is not None:
            rest = at_rest(lane.rests.get(group.key, 0), per_key.rate, self._now)
            lane.rests[group.key] = rest + number * per_key.rate.interval
        if group.limit is None:
            return
        usage, named = self._queue_state.usages[group.limit], self._book.named.get(group.limit)
        # Also where as many end in the same step: who changes the limit replaces it, and this start is refused then.
        usage.is_changed = True
        if named is not None and named.rate is not None:
            usage.at_rest = at_rest(usage.at_rest, named.rate, self._now) + number * named.rate.interval


def names_of(queue_state: QueueState) -> set[str]:
    """Return the named limits of the tasks that are ready or wait in a queue."""
    lane = queue_state.lane
    names = set() if lane is None else {lane.groups[name].limit for name in queue_state.groups_here()}
    return {name for name in names if name is not None}
