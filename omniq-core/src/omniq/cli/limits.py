"""``omniq limits``: which limits are stored, and changing them at run time."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from attrs import asdict, evolve

from omniq._client.queue import TaskQueue
from omniq.cli.app import place_of
from omniq.cli.arguments import add_json, count, queue_name, reads, text, value
from omniq.cli.columns import Column
from omniq.cli.failures import OperationFailed, UsageError
from omniq.cli.groups import Action, answer_all, command_of
from omniq.cli.stats import held_back, usage_as_json
from omniq.cli.terminal import Screen
from omniq.limit import Limit, LimitUsage, Rate, UnreadableLimit, limit_id

__all__ = ["ACTIONS", "configure", "limit_words", "run", "set_by"]


@reads("{!r} is no rate such as 100/60, or 100/60/20 with a burst: {error}")
def _rate(text: str) -> dict[str, Any]:
    number, _, rest = text.partition("/")
    per, has_burst, burst = rest.partition("/")
    given: dict[str, Any] = {"count": int(number), "per": float(per or 1)}
    if has_burst:
        given["burst"] = int(burst)
    Rate(**given)  # which says what is wrong with it
    return given


def _changed(limit: Limit | None, concurrency: int | None, rate: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is given of a limit, or of that of each key; of a rate the burst stays, too."""
    before = None if limit is None else limit.rate
    return _given(
        concurrency=concurrency,
        rate=rate and (Rate(**rate) if before is None else evolve(before, **rate)),
    )


def _list(queue: TaskQueue, options: argparse.Namespace) -> None:
    queue.limits()  # a store that holds none says so
    usage = {one.limit.id: one for one in queue.limit_usage() if one.limit is not None}
    limits = [one.limit for one in usage.values() if one.limit is not None]

    def as_json(limit: Limit) -> dict[str, Any]:
        return {"id": limit.id, **asdict(limit), "usage": usage_as_json(usage[limit.id])}

    answer_all(queue, options, limits, as_json, _columns(usage), "limits")


def _set(queue: TaskQueue, options: argparse.Namespace) -> None:
    place = _place(options)
    wanted = limit_id(options.queue, options.name)
    found = next((limit for limit in queue.limits() if limit.id == wanted), None)
    stored = None if isinstance(found, UnreadableLimit) else found  # of which nothing can stay as it is
    before = None if stored is None else stored.per_key
    try:
        given = _changed(stored, options.concurrency, options.rate)
        if for_keys := _changed(before, options.key_concurrency, options.key_rate):
            given["per_key"] = Limit(**for_keys) if before is None else evolve(before, **for_keys)
        limit = Limit(**place, **given) if stored is None else evolve(stored, app=None, **given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if queue.put_limit(limit, expected_revision=0 if stored is None else stored.revision) is None:
        raise OperationFailed(f"the limit {wanted} was changed meanwhile; look at it and try again")
    Screen().say(f"limit {wanted}: {limit_words(limit)}")


def _delete(queue: TaskQueue, options: argparse.Namespace) -> None:
    place = _place(options)
    called = f"queue {options.queue}" if options.name is None else f"the name {options.name}"
    if not queue.unlimit(**place):
        raise OperationFailed(f"there is no limit of {called}; looked in {place_of(queue)}")
    Screen().say(f"the limit of {called} is deleted")


def _place(options: argparse.Namespace) -> dict[str, Any]:
    place = _given(queue=options.queue, name=options.name)
    if len(place) != 1:
        raise UsageError("name either a queue or, with --name, a named limit")
    return place


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def limit_words(limit: Limit) -> str:
    """Return what a limit allows, in words."""
    if isinstance(limit, UnreadableLimit):
        return "nothing: it cannot be read; set it anew, or delete it"
    parts = [] if limit.concurrency is None else [f"{limit.concurrency:,} at a time"]
    if (rate := limit.rate) is not None:
        parts.append(f"{rate.count:,} in {rate.per:g} s{f' ({rate.burst:,} at once)' if rate.burst > 1 else ''}")
    if limit.per_key is not None:
        parts.append(f"each key {limit_words(limit.per_key)}")
    if limit.weights:
        parts.append("shares by weights")
    return ", ".join(parts)


def set_by(limit: Limit) -> str:
    """Return who has set a limit, in words."""
    if isinstance(limit, UnreadableLimit):
        return "-"
    return (limit.app or "code") if limit.declared else "hand"


def _columns(usage: Mapping[str, LimitUsage]) -> list[Column[Limit]]:
    return [
        Column(title="limit", cell=lambda limit: limit.id),
        Column(title="allows", cell=limit_words),
        Column(title="set by", cell=set_by),
        Column(title="running", cell=lambda limit: f"{usage[limit.id].running:,}", right=True),
        Column(title="held back", cell=lambda limit: held_back(usage[limit.id]), right=True),
    ]


_WHICH = (
    value("queue", queue_name, "QUEUE", "the queue's name", nargs="?"),
    value("--name", text, "NAME", "the name of a named limit, in place of a queue"),
)

ACTIONS = {
    "list": Action(
        "show all limits",
        "Show all limits.",
        "omniq limits list shop.tasks:queue\nomniq limits list redis:// --json",
        (add_json,),
        _list,
    ),
    "set": Action(
        "set a limit of a queue, or a named one",
        "Set a limit. What is not given stays as it is. It holds from the next claim on, for all workers, and stays\n"
        "when workers start that declare another one, until it is deleted.",
        "omniq limits set shop.tasks:queue mail --concurrency 50 --key-rate 10/1\n"
        "omniq limits set shop.tasks:queue --name stripe --rate 100/60",
        (
            *_WHICH,
            value("--concurrency", count, "N", "how many may run at a time"),
            value("--rate", _rate, "N/S", "how many may start in so many seconds: 100/60; 100/60/20: up to 20 at once"),
            value("--key-concurrency", count, "N", "how many of each key may run at a time"),
            value("--key-rate", _rate, "N/S", "how many of each key may start in so long"),
        ),
        _set,
    ),
    "delete": Action(
        "delete a limit",
        "Delete a limit; what it held back goes on. One that is declared in code is stored again by the next worker\n"
        "that starts.",
        "omniq limits delete shop.tasks:queue mail\nomniq limits delete shop.tasks:queue --name stripe",
        _WHICH,
        _delete,
    ),
}
"""The actions of this command."""

configure, run = command_of(
    "List, set and delete limits: how many tasks of a queue, of a key in it, or with a named limit may run at\n"
    "a time, and how many start in a time.",
    ACTIONS,
)
