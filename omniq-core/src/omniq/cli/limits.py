"""``omniq limits``: which limits are stored, and changing them at run time."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from attrs import asdict, evolve

from omniq.cli.app import open_queue
from omniq.cli.arguments import add_app, add_json, count, describe, queue_name, text
from omniq.cli.columns import Column, Table
from omniq.cli.failures import FAILED, WRONG_USAGE, complain
from omniq.cli.groups import Action, add_actions, run_action
from omniq.cli.stats import held_back, usage_as_json
from omniq.cli.terminal import Screen
from omniq.limit import Limit, LimitUsage, Rate, UnreadableLimit, limit_id

__all__ = ["ACTIONS", "configure", "limit_words", "run", "set_by"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    describe(
        parser,
        "List, set and delete limits: how many tasks of a queue, of a key in it, or with a named limit may run at\n"
        "a time, and how many start in a time.",
        "omniq limits list shop.tasks:queue\n"
        "omniq limits set shop.tasks:queue mail --concurrency 50 --rate 100/60\n"
        "omniq limits delete shop.tasks:queue mail",
    )
    add_actions(parser, ACTIONS)


def run(options: argparse.Namespace) -> int:
    """Do what was asked."""
    return run_action(options)


def _configure_list(parser: argparse.ArgumentParser) -> None:
    describe(parser, "Show all limits.", "omniq limits list shop.tasks:queue\nomniq limits list redis:// --json")
    add_app(parser, or_url=True)
    add_json(parser)


def _configure_set(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Set a limit. What is not given stays as it is. It holds from the next claim on, for all workers, and stays\n"
        "when workers start that declare another one, until it is deleted.",
        "omniq limits set shop.tasks:queue mail --concurrency 50 --key-rate 10/1\n"
        "omniq limits set shop.tasks:queue --name stripe --rate 100/60",
    )
    _add_which(parser)
    parser.add_argument("--concurrency", type=count, metavar="N", help="how many may run at a time")
    parser.add_argument("--rate", type=_rate, metavar="N/S", help="how many may start in so many seconds: 100/60")
    parser.add_argument("--key-concurrency", type=count, metavar="N", help="how many of each key may run at a time")
    parser.add_argument("--key-rate", type=_rate, metavar="N/S", help="how many of each key may start in so long")


def _configure_delete(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Delete a limit; what it held back goes on. One that is declared in code is stored again by the next worker\n"
        "that starts.",
        "omniq limits delete shop.tasks:queue mail\nomniq limits delete shop.tasks:queue --name stripe",
    )
    _add_which(parser)


def _add_which(parser: argparse.ArgumentParser) -> None:
    add_app(parser, or_url=True)
    parser.add_argument("queue", nargs="?", type=queue_name, metavar="QUEUE", help="the queue's name")
    parser.add_argument("--name", type=text, metavar="NAME", help="the name of a named limit, in place of a queue")


def _rate(value: str) -> Rate:
    number, _, seconds = value.partition("/")
    try:
        return Rate(int(number), per=float(seconds or 1))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is no rate such as 100/60: {error}") from error


def _list(options: argparse.Namespace) -> int:
    screen = Screen()
    with open_queue(options.app) as queue:
        queue.limits()  # a store that holds none says so
        usage = {one.limit.id: one for one in queue.limit_usage() if one.limit is not None}
        limits = [one.limit for one in usage.values() if one.limit is not None]
        if options.json:
            shown = [_as_json(limit) | {"usage": usage_as_json(usage[limit.id])} for limit in limits]
            screen.say_lines(json.dumps(shown, indent=2))
        elif limits:
            for line in Table(_columns(usage), screen).lines(limits):
                screen.say(line)
        else:
            screen.say("there are no limits")
    return 0


def _set(options: argparse.Namespace) -> int:
    if (options.queue is None) is (options.name is None):
        complain("name either a queue or, with --name, a named limit")
        return WRONG_USAGE
    given = _given(concurrency=options.concurrency, rate=options.rate)
    for_keys = _given(concurrency=options.key_concurrency, rate=options.key_rate)
    place = _given(queue=options.queue, name=options.name)
    with open_queue(options.app) as queue:
        wanted = limit_id(options.queue, options.name)
        found = next((limit for limit in queue.limits() if limit.id == wanted), None)
        stored = None if isinstance(found, UnreadableLimit) else found  # of which nothing can stay as it is
        try:
            if for_keys:
                before = None if stored is None else stored.per_key
                given["per_key"] = Limit(**for_keys) if before is None else evolve(before, **for_keys)
            limit = Limit(**place, **given) if stored is None else evolve(stored, app=None, **given)
        except ValueError as error:
            complain(str(error))
            return WRONG_USAGE
        if queue.put_limit(limit, expected_revision=0 if stored is None else stored.revision) is None:
            complain(f"the limit {wanted} was changed meanwhile; look at it and try again")
            return FAILED
        Screen().say(f"limit {wanted}: {limit_words(limit)}")
    return 0


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _delete(options: argparse.Namespace) -> int:
    if (options.queue is None) is (options.name is None):
        complain("name either a queue or, with --name, a named limit")
        return WRONG_USAGE
    with open_queue(options.app) as queue:
        called = f"queue {options.queue}" if options.name is None else f"the name {options.name}"
        if queue.unlimit(options.queue, name=options.name):
            Screen().say(f"the limit of {called} is deleted")
            return 0
        complain(f"there is no limit of {called}")
        return FAILED


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


def _as_json(limit: Limit) -> dict[str, Any]:
    return {"id": limit.id, **asdict(limit)}


def _columns(usage: Mapping[str, LimitUsage]) -> list[Column[Limit]]:
    return [
        Column(title="limit", cell=lambda limit: limit.id),
        Column(title="allows", cell=limit_words),
        Column(title="set by", cell=set_by),
        Column(title="running", cell=lambda limit: f"{usage[limit.id].running:,}", right=True),
        Column(title="held back", cell=lambda limit: held_back(usage[limit.id]), right=True),
    ]


ACTIONS = {
    "list": Action("show all limits", _configure_list, _list),
    "set": Action("set a limit of a queue, or a named one", _configure_set, _set),
    "delete": Action("delete a limit", _configure_delete, _delete),
}
