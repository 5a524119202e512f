"""How limits are kept: pure functions over the primitives of a transaction, which the verbs call.

Ready tasks of one queue, key and named limit form a **line**. Tasks with neither stand in the plain line of their
queue, which has no record: a queue in which no limit and no line is stored has no :class:`~omniq.limit.Lane`, and its
claims are as if there were no limits. A line whose tasks may be claimed, or that has none, is in exactly one place:

- *eligible*: the next claim of its queue looks at it, in the order of (priority of its first task, virtual time);
- *at its key*: as many tasks of the key run as may; the end of one of them makes it eligible;
- *asleep* until its key's rate lets the next task start;
- *at a named limit*: with the other lines of its queue that wait for it. As long as any stand there, the limit is full
  (then the end of a task that holds it makes the first of **each** queue eligible), or one of the queue is eligible, or
  an *alarm* is asleep until the limit's rate lets the next task start;
- *idle*: without tasks. Its virtual time counts until the queue's has caught up with it.

A claim takes from the first eligible line as many as all its limits have room for and as fairness allows, and parks a
line that is refused: no task is handed out and put back. When a line leaves the claim and its named limit still has
room, the first that is parked there becomes eligible (**pass on**). So each task moves lines a bounded number of times,
and a claim costs the same however many tasks stand in lines that are parked.

Slots are running tasks: a limit counts those (:meth:`~.primitives.LimitTransaction.running`), and has no counter that
could leak. A rate is one number for each scope: the time at which it would be at rest (GCRA), by the store's clock.

Nothing here does I/O or looks at a clock of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import cast

from attrs import evolve

from omniq.limit import PLAIN, VTIME_STEP, Lane, Limit, LimitUsage, Rate, Scope, StoredLine, limit_id, line_id
from omniq.storage.limits import Line
from omniq.storage.primitives import FlowTransaction, LimitTransaction, LineTransaction
from omniq.storage.states import claimed_task
from omniq.storage.times import from_micros, to_micros
from omniq.task import StoredTask, TaskState

__all__ = [
    "ASLEEP",
    "AT_KEY",
    "ELIGIBLE",
    "IDLE",
    "LimitStep",
    "at_name",
    "claim_lines",
    "delete_limit",
    "get_limits",
    "get_usage",
    "give_back",
    "is_lined",
    "lock_limits",
    "lost_lines",
    "moved",
    "outlook",
    "prune_lines",
    "put_limit",
    "rank_of",
]

ELIGIBLE = "eligible"
AT_KEY = "at key"
ASLEEP = "asleep"
IDLE = "idle"
UNLIMITED = sys.maxsize
CLOCK = Scope()
"""Under which the time of the last prune is kept, as the rate of nothing."""
LOOKED_AT = 1000
"""Lines that one claim moves at most; what is left is for the next."""


def at_name(limit: str) -> str:
    """Return the place of lines that wait for a named limit."""
    return f"at name {limit}"


def rank_of(line: StoredLine) -> tuple[int, int]:
    """Return what orders the lines at one place, see :meth:`.LimitTransaction.lines`."""
    return (line.until, 0) if line.place == ASLEEP else (-line.priority, line.vtime)


def is_lined(task: StoredTask) -> bool:
    """Return whether a task stands in a line of its own: it has a key or a named limit."""
    limited = task.limited
    return limited is not None and (limited.key is not None or limited.limit is not None)


class LimitStep:
    """What one transaction does to lines and limits; it is the only one that does meanwhile.

    :param tx: the primitives.
    :param claims: whether it claims, and does not only look.
    """

    def __init__(self, tx: LimitTransaction, *, claims: bool = False) -> None:
        tx.lock_limits()
        self._tx = tx
        self._claims = claims
        self.now = to_micros(tx.now)
        self._limits: dict[str, Limit | None] = {}

    def limit(self, queue: str | None = None, name: str | None = None) -> Limit | None:
        wanted = limit_id(queue, name)
        if wanted not in self._limits:
            self._limits[wanted] = self._tx.task_limits([wanted]).get(wanted)
        return self._limits[wanted]

    def limits_of(self, queue: str, key: str | None, name: str | None) -> list[tuple[Scope, Limit]]:
        """Return all limits under which tasks stand, with what each counts."""
        own = self.limit(queue=queue)
        per_key = None if own is None or key is None else own.per_key
        named = None if name is None else self.limit(name=name)
        found = (Scope(queue), own), (Scope(queue, key), per_key), (Scope(name=name), named)
        return [(scope, limit) for scope, limit in found if limit is not None]

    def lane(self, queue: str) -> Lane:
        """Return a queue's lane, which is stored if there was none."""
        lane = self._tx.lanes([queue]).get(queue)
        if lane is None:
            lane = Lane(queue=queue)
            self._tx.save_lane(lane)
        return lane

    # Room

    def slots(self, scope: Scope, limit: Limit | None) -> int:
        """Return for how many more running tasks there is room; 0 or less: for none."""
        if limit is None or limit.concurrency is None:
            return UNLIMITED
        return limit.concurrency - self._tx.running(scope)

    def tokens(self, scope: Scope, limit: Limit | None) -> tuple[int, int]:
        """Return how many tasks may start now by a rate, and when the next may if none may."""
        if limit is None or limit.rate is None:
            return UNLIMITED, self.now
        interval, burst = limit.rate.interval, limit.rate.burst
        due = self._at_rest(scope, limit.rate) - (burst - 1) * interval
        return max(0, (self.now - due) // interval + 1), due

    def spend(self, scope: Scope, limit: Limit | None, starts: int) -> None:
        """Count starts; a negative number gives back so many."""
        if limit is None or limit.rate is None or not starts:
            return
        self._tx.save_bucket(scope, self._at_rest(scope, limit.rate) + starts * limit.rate.interval)

    def _at_rest(self, scope: Scope, rate: Rate) -> int:
        stored, latest = self._tx.bucket(scope), self.now + rate.burst * rate.interval
        if stored > latest and self._claims:
            # It comes of another rate, or the clock was put back: from now on it goes on by what is here.
            self._tx.save_bucket(scope, latest)
        return min(max(stored, self.now), latest)

    # Where lines stand

    def move(self, line: StoredLine, place: str, until: int = 0) -> None:
        line.place, line.until = place, until
        self._tx.save_line(line)

    def make_eligible(self, line: StoredLine, lane: Lane | None = None) -> None:
        lane = self.lane(line.queue) if lane is None else lane
        line.vtime = max(line.vtime, lane.vtime)
        self.move(line, ELIGIBLE)

    def arrive(self, queue: str, key: str | None, name: str | None, priority: int) -> None:
        """Note that a line has another ready task."""
        line = self._tx.line(line_id(queue, key, name))
        if line is None or line.place == IDLE:
            vtime = 0 if line is None else line.vtime
            line = StoredLine(queue=queue, key=key, limit=name, place=IDLE, priority=priority, vtime=vtime)
            self.make_eligible(line)
        elif priority > line.priority:
            line.priority = priority
            self._tx.save_line(line)

    def pass_on(self, queue: str, name: str | None) -> None:
        """Make the first line of a queue eligible that is parked at a named limit, if that has room by now."""
        if name is None:
            return
        parked = self._tx.lines(queue, at_name(name), 1)
        if not parked:
            return
        scope, limit = Scope(name=name), self.limit(name=name)
        if self.slots(scope, limit) <= 0:
            return
        tokens, due = self.tokens(scope, limit)
        if tokens > 0:
            self.make_eligible(parked[0])
        else:
            self._set_alarm(queue, name, due)

    def _set_alarm(self, queue: str, name: str, due: int) -> None:
        self.move(StoredLine(queue=queue, key=None, limit=name, place=ASLEEP, is_alarm=True), ASLEEP, due)

    def wake_key(self, queue: str, key: str, *, asleep: bool = False) -> None:
        """Make the lines of a key eligible that are parked at it.

        :param asleep: whether also those that wait for its rate.
        """
        for line in self._tx.lines_of_key(queue, key):
            if line.place == AT_KEY or (asleep and line.place == ASLEEP):
                self.make_eligible(line)

    def wake_name(self, name: str) -> None:
        for queue in self._tx.queues_at(at_name(name)):
            self.pass_on(queue, name)

    def rouse(self, lane: Lane) -> None:
        """Make lines of a queue eligible whose time has come, or whose limit was changed."""
        if lane.waking:
            parked = self._tx.lines(lane.queue, AT_KEY, LOOKED_AT)
            due = self._tx.lines(lane.queue, ASLEEP, LOOKED_AT)
            if len(parked) < LOOKED_AT and len(due) < LOOKED_AT:
                lane.waking = False
                self._tx.save_lane(lane)
            for line in parked:
                self.make_eligible(line, lane)
        else:
            due = self._tx.lines(lane.queue, ASLEEP, LOOKED_AT, until=self.now)
        for line in due:
            if line.is_alarm:
                self._tx.remove_line(line)
                # Whether there is room the claim will see. An alarm that is set again would be roused again.
                for parked_there in self._tx.lines(lane.queue, at_name(line.limit or ""), 1):
                    self.make_eligible(parked_there, lane)
            else:
                self.make_eligible(line, lane)


# From here on: what the verbs call


def lock_limits(tx: FlowTransaction) -> None:
    """Lock what is kept of limits, for a transaction that stores tasks in lines, before it locks anything else."""
    cast("LimitTransaction", tx).lock_limits()


def moved(tx: FlowTransaction, tasks: Iterable[StoredTask]) -> None:
    """Follow tasks that were stored or changed: their lines, and the lines that wait for what they held.

    :param tx: one of a store that holds limits, if there is anything to do: no other has tasks in lines.
    """
    lined = [task for task in tasks if is_lined(task)]
    arrived: dict[tuple[str, str | None, str | None], int] = {}
    keys: dict[tuple[str, str], None] = {}
    names: dict[str, None] = {}
    for task in lined:
        if task.state is TaskState.READY:
            line = task.queue, task.key, task.limit
            arrived[line] = max(arrived.get(line, task.priority), task.priority)
        if task.state is not TaskState.RUNNING and task.delivery > 0:
            # It may have been running until now, and if it was not, to look costs little.
            if task.key is not None:
                keys[task.queue, task.key] = None
            if task.limit is not None:
                names[task.limit] = None
    if not arrived and not keys and not names:
        return
    step = LimitStep(cast("LimitTransaction", tx))
    for line, priority in arrived.items():
        step.arrive(*line, priority)
    for queue, key in keys:
        step.wake_key(queue, key)
    for name in names:
        step.wake_name(name)


def give_back(tx: LimitTransaction, tasks: Sequence[StoredTask]) -> None:
    """Take back the starts of tasks that were given back unstarted.

    :param tasks: as they stood while they ran.
    """
    lanes = tx.lanes({task.queue for task in tasks})
    limited = [task for task in tasks if task.queue in lanes or task.limit is not None]
    if not limited:
        return
    step = LimitStep(tx)
    for task in limited:
        for scope, limit in step.limits_of(task.queue, task.key, task.limit):
            step.spend(scope, limit, -1)
        if task.key is not None:
            step.wake_key(task.queue, task.key, asleep=True)
        if task.limit is not None:
            step.wake_name(task.limit)


def claim_lines(
    tx: LineTransaction,
    queue: str,
    wanted: int,
    worker: str,
    until: datetime,
    save: Callable[[Sequence[StoredTask]], None],
) -> list[StoredTask]:
    """Claim tasks of a queue that has a lane.

    :param wanted: how many at most.
    :param until: when the leases run out.
    :param save: saves tasks, with all that follows from it.
    """
    claim = _Claim(tx, queue, worker, until, save)
    claim.run(wanted)
    return claim.taken


class _Claim:
    def __init__(
        self,
        tx: LineTransaction,
        queue: str,
        worker: str,
        until: datetime,
        save: Callable[[Sequence[StoredTask]], None],
    ) -> None:
        self.tx = tx
        self.queue, self.worker, self.until, self.save = queue, worker, until, save
        self.step = LimitStep(tx, claims=True)
        self.lane = self.step.lane(queue)
        self.limit = self.step.limit(queue=queue)
        self.taken: list[StoredTask] = []

    def run(self, wanted: int) -> None:
        scope = Scope(self.queue)
        room = min(wanted, self.step.slots(scope, self.limit), self.step.tokens(scope, self.limit)[0])
        if room <= 0:
            return
        before = evolve(self.lane)
        self.step.rouse(self.lane)
        # Until all are roused none is parked again: it would stand before those that are not, at every claim.
        for _ in range(0 if self.lane.waking else LOOKED_AT + wanted):
            if len(self.taken) >= room or not self._serve_first(room - len(self.taken)):
                break
        self.step.spend(scope, self.limit, len(self.taken))
        if self.lane != before:
            self.tx.save_lane(self.lane)

    def _serve_first(self, room: int) -> bool:
        """Take tasks of the first line, or move it; return False if there is none."""
        lines = self.tx.lines(self.queue, ELIGIBLE, 2)
        head = self.tx.ready(self.queue, 1)
        if head:
            vtime = max(self.lane.plain_vtime, self.lane.vtime)
            priority = head[0].priority
            plain = StoredLine(queue=self.queue, key=None, limit=None, place=ELIGIBLE, priority=priority, vtime=vtime)
            lines = sorted([*lines, plain], key=lambda line: (-line.priority, line.vtime))
        if not lines:
            return False
        line = lines[0]
        most = room
        if len(lines) > 1 and lines[1].priority == line.priority:
            weight = self._weight(line)
            most = min(most, max(1, -int(-(lines[1].vtime - line.vtime) * weight // VTIME_STEP)))
        if line.id == PLAIN:
            self._take(line, most)
            return True
        most = min(most, self._room(line))
        if most > 0 and self._take(line, most):
            self._settle(line.id)
        if line.limit is not None and line.place != at_name(line.limit):
            self.step.pass_on(self.queue, line.limit)
        return True

    def _weight(self, line: StoredLine) -> float:
        return 1.0 if self.limit is None else self.limit.weight(line.key)

    def _room(self, line: StoredLine) -> int:
        """Return how many tasks of a line may start by the limits of its key and its name; if none, park it."""
        step, room = self.step, UNLIMITED
        if line.key is not None and self.limit is not None and self.limit.per_key is not None:
            scope, limit = Scope(self.queue, line.key), self.limit.per_key
            slots, (tokens, due) = step.slots(scope, limit), step.tokens(scope, limit)
            if slots <= 0:
                step.move(line, AT_KEY)
                return 0
            if tokens <= 0:
                step.move(line, ASLEEP, due)
                return 0
            room = min(slots, tokens)
        if line.limit is not None:
            scope, named = Scope(name=line.limit), step.limit(name=line.limit)
            slots, (tokens, due) = step.slots(scope, named), step.tokens(scope, named)
            if slots <= 0 or tokens <= 0:
                step.move(line, at_name(line.limit))
                if slots > 0:
                    step.pass_on(self.queue, line.limit)  # sets the alarm
                return 0
            room = min(room, slots, tokens)
        return room

    def _take(self, line: StoredLine, most: int) -> bool:
        """Claim tasks of a line; return False if it stood elsewhere in the order than it should."""
        found = self.tx.ready(self.queue, most, line.id)
        if not found:
            return True
        if line.id != PLAIN and found[0].priority < line.priority:
            line.priority = found[0].priority  # the first was cancelled, or has expired
            self.tx.save_line(line)
            return False
        alike = [task for task in found if task.priority == found[0].priority]
        changed = [claimed_task(task, self.worker, self.tx.now, self.until) for task in alike]
        self.save(changed)
        taken = [task for task in changed if task.state is TaskState.RUNNING]
        self.taken += taken
        if taken:
            for scope, limit in self.step.limits_of(self.queue, line.key, line.limit):
                if scope != Scope(self.queue):
                    self.step.spend(scope, limit, len(taken))
            vtime = line.vtime + max(1, int(len(taken) * VTIME_STEP / self._weight(line)))
            self.lane.vtime = max(self.lane.vtime, line.vtime)
            if line.id == PLAIN:
                self.lane.plain_vtime = vtime
            else:
                # As it stands by now: what ended with it may have brought the line other tasks.
                current = self.tx.line(line.id) or line
                current.vtime = vtime
                self.tx.save_line(current)
        return True

    def _settle(self, line_id: str) -> None:
        """Let a line be found by its first task, or leave it idle."""
        line = self.tx.line(line_id)
        if line is None or line.place != ELIGIBLE:
            return
        head = self.tx.ready(self.queue, 1, line_id)
        if head:
            if head[0].priority != line.priority:
                line.priority = head[0].priority
                self.tx.save_line(line)
        elif line.vtime > self.lane.vtime:
            self.step.move(line, IDLE)
        else:
            self.tx.remove_line(line)


def outlook(
    tx: LineTransaction, queues: Iterable[str], work: Callable[[str], tuple[bool, datetime | None]]
) -> tuple[bool, datetime | None]:
    """Return whether a claim of queues with lanes may return something now, and when that may change by itself.

    :param queues: that have lanes.
    :param work: returns of a queue whether tasks without key and named limit are ready, or any scheduled ones due; and
        when the next of those will be.
    """
    step = LimitStep(tx)
    moments = []
    for queue in queues:
        scope, limit = Scope(queue), step.limit(queue=queue)
        if step.slots(scope, limit) <= 0:
            continue  # the end of one of them wakes those who wait
        is_there, moment = work(queue)
        lane = step.lane(queue)
        asleep = tx.lines(queue, ASLEEP, 1)
        tokens, due = step.tokens(scope, limit)
        if is_there or lane.waking or tx.lines(queue, ELIGIBLE, 1) or (asleep and asleep[0].until <= step.now):
            if tokens > 0:
                return True, None
            moments.append(from_micros(due))
        elif asleep:
            moments.append(from_micros(max(due, asleep[0].until)))
        if moment is not None:
            moments.append(max(moment, from_micros(due)))
    return False, min(moments, default=None)


def put_limit(tx: LineTransaction, limit: Limit, expected: int | None) -> Limit | None:
    step = LimitStep(tx)
    stored = step.limit(limit.queue, limit.name)
    revision = 0 if stored is None else stored.revision
    if expected is not None and expected != revision:
        return None
    new = evolve(limit, revision=1 + (revision or tx.revision_floor()))
    tx.store_limit(new)
    _wake_all(tx, limit.queue, limit.name)
    return new


def get_limits(tx: LineTransaction, ids: Sequence[str] | None) -> list[Limit]:
    found = tx.task_limits(ids)
    return [found[one] for one in (sorted(found) if ids is None else ids) if one in found]


def get_usage(tx: LineTransaction, scopes: Sequence[Scope] | None) -> list[LimitUsage]:
    if scopes is None:
        scopes = [Scope(limit.queue, name=limit.name) for limit in get_limits(tx, None)]
    step = LimitStep(tx)
    return [_usage(tx, step, scope) for scope in scopes]


def _usage(tx: LineTransaction, step: LimitStep, scope: Scope) -> LimitUsage:
    limit, lines = step.limit(scope.queue, scope.name), list[StoredLine]()
    if scope.queue is None:
        place = at_name(scope.name or "")
        for queue in tx.queues_at(place):
            lines += tx.lines(queue, place, LOOKED_AT)
    elif scope.key is None:
        lines = tx.lines(scope.queue, AT_KEY, LOOKED_AT) + tx.lines(scope.queue, ASLEEP, LOOKED_AT)
    else:
        limit = None if limit is None else limit.per_key
        lines = [line for line in tx.lines_of_key(scope.queue, scope.key) if line.place in (AT_KEY, ASLEEP)]
    tokens, due = step.tokens(scope, limit)
    return LimitUsage(
        scope=scope,
        limit=limit,
        running=tx.running(scope),
        next_start=from_micros(due) if tokens <= 0 else None,
        held_keys=len({(line.queue, line.key) for line in lines if not line.is_alarm}),
    )


def delete_limit(tx: LineTransaction, limit_id: str) -> bool:
    tx.lock_limits()
    stored = tx.task_limits([limit_id]).get(limit_id)
    if stored is None:
        return False
    # So that no revision is ever used again, as with schedules.
    tx.raise_revision_floor(max(tx.revision_floor(), stored.revision))
    tx.remove_limit(limit_id)
    _wake_all(tx, stored.queue, stored.name)
    return True


def _wake_all(tx: LineTransaction, queue: str | None, name: str | None) -> None:
    step = LimitStep(tx)  # knows the limit as it stands now
    if name is not None:
        step.wake_name(name)
    if queue is not None:
        lane = step.lane(queue)
        lane.waking = True
        tx.save_lane(lane)


def lost_lines(tx: LineTransaction, lines: Sequence[Line]) -> list[StoredTask]:
    found: list[StoredTask] = []
    places: dict[tuple[str, str], set[str] | None] = {}
    lanes = tx.lanes({queue for queue, _, _ in lines})
    for queue, key, name in lines:
        wanted = line_id(queue, key, name)
        line = tx.line(wanted)
        if queue not in lanes or line is None or not _stands(tx, line, places):
            found += tx.ready(queue, 1, wanted)
    return found


def _stands(tx: LineTransaction, line: StoredLine, places: dict[tuple[str, str], set[str] | None]) -> bool:
    """Return whether a line is found at its place; also if so many lines are there that it is not looked for.

    :param places: the lines of those that were looked at before.
    """
    place = line.queue, line.place
    if place not in places:
        there = tx.lines(*place, LOOKED_AT)
        places[place] = None if len(there) == LOOKED_AT else {one.id for one in there}
    known = places[place]
    return line.place != IDLE and (known is None or line.id in known)


def prune_lines(tx: LineTransaction, limit: int) -> None:
    """Forget lines that are idle and rates that are at rest; so many at most of each.

    A line that is one start of weight 1 ahead may come back one start too soon. Were it kept, each key that is used
    once would leave a line for as long as others wait, since a lane goes on only with lines that are served again.
    """
    tx.drop_buckets(to_micros(tx.now), limit)
    lanes = tx.lanes(None)
    if not lanes:
        return
    step = LimitStep(tx)
    was_put_back = tx.bucket(CLOCK) > step.now
    tx.save_bucket(CLOCK, step.now)
    for lane in lanes.values():
        if was_put_back:  # its lines are asleep until the times of a clock that was ahead
            lane.waking = True
            tx.save_lane(lane)
        has_lines = tx.has_lines(lane.queue)
        idle = tx.lines(lane.queue, IDLE, limit)
        for line in idle:
            if line.vtime <= lane.vtime + VTIME_STEP or not (has_lines or tx.ready(lane.queue, 1)):
                tx.remove_line(line)
        if not has_lines and len(idle) < limit and step.limit(queue=lane.queue) is None:
            tx.remove_lane(lane.queue)
