"""Changes limits, and says what stands against them."""

from __future__ import annotations

from collections.abc import Sequence

from omniq.limit import Limit, LimitUsage, Scope, limit_id
from omniq_nats.lanes import Usage, tokens_of
from omniq_nats.limits import Gate, names_of
from omniq_nats.names import LONGEST_QUEUE, token
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.times import from_micros

__all__ = ["delete_limit", "forget_idle", "put_limit", "usage"]


async def put_limit(state_store: QueueStateStore, limit: Limit, expected: int | None) -> Limit | None:
    """Do :meth:`omniq.storage.Storage.put_limit`."""
    name = limit.id.partition(":")[2]
    if len(token(name)) > LONGEST_QUEUE:
        raise ValueError(
            f"{name[:20]!r}… takes {len(token(name))} bytes of a subject of NATS, and {LONGEST_QUEUE} are the most "
            "that a server takes; use a shorter name"
        )
    if limit.queue is None:
        stored, queues = await state_store.limits.put_named(limit, expected)
        await state_store.rouse(queues)
        return stored

    async def step(queue_state: QueueState) -> tuple[Limit | None, bool]:
        new = await state_store.limits.put_own(queue_state, limit, expected)
        return new, new is not None

    return await state_store.change(limit.queue, step)


async def delete_limit(state_store: QueueStateStore, wanted: str) -> bool:
    """Do :meth:`omniq.storage.Storage.delete_limit`."""
    kind, _, name = wanted.partition(":")
    if kind == "name":
        was_there, queues = await state_store.limits.delete_named(name)
        await state_store.rouse(queues)
        return was_there
    if not await state_store.limits.of([wanted]):
        return False

    async def step(queue_state: QueueState) -> tuple[bool, bool]:
        was_there = await state_store.limits.delete_own(queue_state)
        return was_there, was_there

    return await state_store.change(name, step)


async def forget_idle(state_store: QueueStateStore) -> None:
    """Forget what groups have had of queues in which none has tasks."""

    async def step(queue_state: QueueState) -> tuple[None, bool]:
        lane = queue_state.lane
        is_idle = lane is not None and bool(lane.groups) and not queue_state.groups_here()
        if lane is not None and is_idle:
            lane.groups.clear()
        return None, is_idle

    for queue, queue_state in state_store.remembered_states():
        if queue_state.lane is not None and queue_state.lane.groups and not queue_state.groups_here():
            await state_store.change(queue, step)


async def usage(state_store: QueueStateStore, scopes: Sequence[Scope]) -> list[LimitUsage]:
    """Do :meth:`omniq.storage.Storage.get_limit_usage`."""
    names = {scope.name for scope in scopes if scope.name is not None}
    usages = await state_store.limits.usages(names)
    queues = {scope.queue for scope in scopes if scope.queue is not None}
    queues |= {queue for one in usages.values() for queue in one.held}
    states = await state_store.read(sorted(queues))
    limits = await state_store.limits.of(
        [*(limit_id(name=name) for name in names), *(limit_id(queue) for queue in queues)]
    )
    now = state_store.clock.now()
    gates = {}
    for queue, queue_state in states.items():
        if queue_state.lane is not None:
            queue_state.usages = {}
            gates[queue] = Gate(queue_state, await state_store.limits.load(queue_state, names_of(queue_state)), now)
    found = []
    for scope in scopes:
        limit = limits.get(limit_id(scope.queue, scope.name))
        if scope.key is not None and limit is not None:
            limit = limit.per_key
        held = {
            one
            for queue in (usages[scope.name].held if scope.name is not None else [scope.queue or ""])
            if queue in gates
            for one in _held(states[queue], gates[queue], scope, now)
        }
        running, rest = _running(states, usages, scope)
        tokens, due = tokens_of(limit, rest, now)
        found.append(
            LimitUsage(
                scope=scope,
                limit=limit,
                running=running,
                next_start=from_micros(due) if tokens <= 0 else None,
                held_keys=len(held),
            )
        )
    return found


def _running(states: dict[str, QueueState], usages: dict[str, Usage], scope: Scope) -> tuple[int, int]:
    """Return how many tasks of a scope run, and when its rate is at rest."""
    if scope.name is not None:
        return sum(usages[scope.name].held.values()), usages[scope.name].at_rest
    queue_state = states[scope.queue or ""]
    lane = queue_state.lane
    if scope.key is None:
        return len(queue_state.running), 0 if lane is None else lane.at_rest
    keys = [entry.limited[0] for entry in queue_state.running.values() if entry.limited is not None]
    return keys.count(scope.key), 0 if lane is None else lane.rests.get(scope.key, 0)


def _held(queue_state: QueueState, gate: Gate, scope: Scope, now: int) -> set[tuple[str, str | None]]:
    """Return the queue and the key of the tasks that a limit holds back."""
    lane, found = queue_state.lane, set()
    assert lane is not None
    for name in queue_state.ready_groups(now):
        group = lane.groups[name]
        if scope.name is not None:
            is_meant, room = group.limit == scope.name, gate.by_name(group.limit)
        else:
            is_meant, room = scope.key in (None, group.key), gate.by_key(group.key)
        if is_meant and min(room[:2]) <= 0:
            found.add((queue_state.queue, group.key))
    return found
