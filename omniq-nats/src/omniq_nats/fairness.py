"""Hands out the tasks of a queue that has limits, or tasks with keys: in proportion to weights, and within all limits.

A claim goes through the groups that have ready tasks, in the order of (priority of the first, virtual time), which the
queue's state alone tells. It takes from the first that all limits have room for as many as these, and fairness, allow;
only then are tasks read. A group that a limit holds back costs no more than a look in memory.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, nsmallest
from typing import Protocol

from omniq.limit import VTIME_STEP
from omniq_nats.limits import Gate, LimitRecords, names_of
from omniq_nats.names import line_of, priority_of
from omniq_nats.queue_state import QueueState

__all__ = ["Source", "serve"]

MOST_NAMES = 200
"""Of so many named limits one claim starts tasks, at most: the use of each is a message that is stored with it."""


class Source(Protocol):
    """Takes tasks from lines."""

    @property
    def taken(self) -> int:
        """How many were taken so far."""

    async def priority(self) -> int | None:
        """Return the priority of the first ready task without key and named limit; None: there is none."""

    async def take(self, line: str, number: int) -> None:
        """Take so many tasks of a line, and of those that wait to be put into it; fewer, if there are no more."""

    async def look_ahead(self, lines: list[str], number: int) -> None:
        """Read the beginnings of lines at once."""


async def serve(limits: LimitRecords, queue_state: QueueState, source: Source, room: int, now: int) -> bool:
    """Take what may start; return whether what is kept of limits has changed, beside that.

    :param room: how many tasks at most.
    """
    lane = queue_state.lane
    assert lane is not None
    gate = Gate(queue_state, await limits.load(queue_state, names_of(queue_state)), now)
    changed = gate.put_right()
    slots, tokens, _ = gate.own_room()
    room = min(room, slots, tokens)
    if room <= 0:
        return changed
    ready = queue_state.ready_groups(now)
    priorities = sorted(set(map(priority_of, (*lane.counts, *queue_state.back))), reverse=True)
    order: list[tuple[int, int, str]] = [(-priority, lane.groups[name].vtime, name) for name, priority in ready.items()]
    heapify(order)
    await source.look_ahead(_first_lines(queue_state, order, gate, room), room)
    plain = await source.priority()
    if plain is not None:
        heappush(order, (-plain, max(lane.plain_vtime, lane.vtime), ""))
    refused: set[str] = set()
    names: set[str] = set()
    while order and source.taken < room:
        priority, vtime, name = heappop(order)
        group = lane.groups[name] if name else None
        most = room - source.taken
        if group is not None:
            most = min(most, gate.room(group))
            if most <= 0 or (group.limit is not None and group.limit not in names and len(names) >= MOST_NAMES):
                refused.add(name)
                continue
        weight = gate.weight(None if group is None else group.key)
        if order and order[0][0] == priority:
            most = min(most, max(1, -int(-(order[0][1] - vtime) * weight // VTIME_STEP)))
        line, before = line_of(-priority, name), source.taken
        await source.take(line, most)
        number = source.taken - before
        if number:
            gate.start(group, number)
            lane.vtime = max(lane.vtime, vtime)
            vtime += max(1, int(number * VTIME_STEP / weight))
            if group is None:
                lane.plain_vtime = vtime
            else:
                lane.groups[name] = group._replace(vtime=vtime)
                names.update([group.limit] if group.limit is not None else ())
        if group is None:
            following = await source.priority()
        else:
            following = next((one for one in priorities if queue_state.is_ready(line_of(one, name), now)), None)
        if following is not None and (number or following != -priority):
            heappush(order, (-following, vtime, name))
    # What was without tasks, or held back, is to stand beside the others, not before them.
    for name in (lane.groups.keys() - ready.keys()) | refused:
        if lane.groups[name].vtime < lane.vtime:
            lane.groups[name] = lane.groups[name]._replace(vtime=lane.vtime)
    return changed


def _first_lines(queue_state: QueueState, order: list[tuple[int, int, str]], gate: Gate, room: int) -> list[str]:
    """Return the lines from which tasks are likely to be taken."""
    lane = queue_state.lane
    assert lane is not None
    lines: list[str] = []
    for priority, _, name in nsmallest(2 * room + MOST_NAMES, order):
        line = line_of(-priority, name)
        if line in queue_state.lines and gate.room(lane.groups[name]) > 0:
            lines.append(line)
            if len(lines) >= min(room, MOST_NAMES):
                break
    return lines
