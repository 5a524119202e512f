"""Finish, heartbeat and progress: what the holder of a lease says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from omniq.storage import Lease, LeaseState
from omniq.storage.records import dump_error, dump_progress
from omniq.task import Cancelled, Failed, Outcome, Progress, Released, Retry, Succeeded
from omniq_postgres import binary_params
from omniq_postgres.encoding import CANCELLED, FAILED, SUCCEEDED
from omniq_postgres.flow_tx import count_ends_of
from omniq_postgres.limit_tasks import SOON
from omniq_postgres.limits import advance
from omniq_postgres.notifier import telling_of_ends
from omniq_postgres.operations import Context, Steps

__all__ = ["finish", "heartbeat", "set_progress"]

RETRY, RELEASED = 1, 2
"""How the statements call outcomes that do not end a task; the others are called by the state that they lead to."""


def _kind(outcome: Outcome) -> int:
    match outcome:
        case Succeeded():
            return SUCCEEDED
        case Failed():
            return FAILED
        case Cancelled():
            return CANCELLED
        case Retry():
            return RETRY
        case Released():
            return RELEASED
    raise TypeError(f"not an outcome that a store knows: {outcome!r}")


def _error_of(outcome: Outcome) -> str | None:
    error = outcome.error if isinstance(outcome, Failed | Retry | Released) else None
    return None if error is None else dump_error(error)


def _log_of(outcome: Outcome) -> str | None:
    return outcome.attempt_log or None if isinstance(outcome, Failed | Retry | Cancelled) else None


def finish(outcomes: Sequence[Outcome], context: Context) -> Steps[list[bool]]:
    """Record outcomes; see :meth:`~omniq.storage.Storage.finish`."""
    # Of two for one delivery the earlier counts. In one order everywhere, so that no two batches wait for each other.
    told: dict[tuple[str, int], int] = {}
    for place, outcome in enumerate(outcomes):
        told.setdefault((outcome.id, outcome.delivery), place)
    places = sorted(told.values(), key=lambda place: outcomes[place].id)
    chosen = [outcomes[place] for place in places]
    kinds = [_kind(outcome) for outcome in chosen]
    parameters = [
        binary_params.uuids([outcome.id for outcome in chosen]),
        binary_params.integers([outcome.delivery for outcome in chosen]),
        binary_params.smallints(kinds),
        binary_params.byteas([outcome.result if isinstance(outcome, Succeeded) else None for outcome in chosen]),
        binary_params.texts([_error_of(outcome) for outcome in chosen]),
        binary_params.texts([_log_of(outcome) for outcome in chosen]),
    ]
    accepted = [False] * len(outcomes)
    told_at_once = False
    if min(kinds) >= SUCCEEDED:
        query = context.query("finish.final", *parameters)
        telling = telling_of_ends([outcome.id for outcome in chosen], query, context)
        told_at_once = telling is not None
        ((number, which, of, limited),) = yield telling or query
        flows, lanes = set(of or ()), set(limited or ())
        ended = places if number == len(places) else [places[place - 1] for place in which or ()]
    else:
        ended, flows, lanes = yield from _finish_mixed(chosen, parameters, places, accepted, context)
    for place in ended:
        accepted[place] = True
        if not told_at_once:
            context.news.ended.append(outcomes[place].id)
    # A call that is repeated, or the end of a task that has completed itself in a transaction of its own.
    refused = [outcomes[place].id for place in places if not accepted[place]]
    yield from count_ends_of(flows, context, refused)
    for queue in lanes:
        context.news.ready(queue, SOON)
    yield from advance(lanes, context)
    return accepted


def _finish_mixed(
    chosen: Sequence[Outcome],
    parameters: Sequence[binary_params.Parameter],
    places: Sequence[int],
    accepted: list[bool],
    context: Context,
) -> Steps[tuple[list[int], set[str], set[str]]]:
    delays = [
        timedelta(seconds=min(outcome.delay, binary_params.HUNDRED_YEARS))
        if isinstance(outcome, Retry | Released)
        else None
        for outcome in chosen
    ]
    ended, flows, lanes = [], set(), set()
    rows = yield context.query("finish.mixed", *parameters, binary_params.intervals(delays))
    for place, queue, seconds, flow, lane in rows:
        if lane is not None:
            lanes.add(lane)
        accepted[places[place - 1]] = True
        if flow is not None:
            flows.add(flow)
        if queue is None:
            ended.append(places[place - 1])
        else:
            context.news.ready(queue, seconds)
    return ended, flows, lanes


def heartbeat(
    worker: str, leases: Sequence[Lease], lease: float, about: str | None, context: Context
) -> Steps[list[LeaseState]]:
    """Extend leases; see :meth:`~omniq.storage.Storage.heartbeat`."""
    rows = yield context.query(
        "finish.heartbeat",
        binary_params.uuids([held.id for held in leases]),
        binary_params.integers([held.delivery for held in leases]),
        binary_params.text(worker),
        binary_params.span(lease),
        None if about is None else binary_params.text(about),
    )
    states = [LeaseState.LOST] * len(leases)
    for place, cancel in rows:
        states[place - 1] = LeaseState.CANCEL_REQUESTED if cancel else LeaseState.HELD
    return states


def set_progress(updates: Mapping[Lease, Progress], context: Context) -> Steps[None]:
    """Note progress; see :meth:`~omniq.storage.Storage.set_progress`."""
    yield context.query(
        "finish.progress",
        binary_params.uuids([lease.id for lease in updates]),
        binary_params.integers([lease.delivery for lease in updates]),
        binary_params.texts([dump_progress(progress) for progress in updates.values()]),
    )
