"""The limits: how many tasks run of how many, what is held back, and setting and deleting them."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from starlette.responses import Response

from omniq._tasks.options import check_queue
from omniq.cli.limits import limit_words, set_by
from omniq.cli.stats import held_back, running_of_limit
from omniq.dashboard.looks import FRESH
from omniq.dashboard.security import Refused
from omniq.dashboard.views.fields import json_field
from omniq.dashboard.visit import Visit
from omniq.limit import Limit, LimitUsage, Rate, UnreadableLimit, limit_id
from omniq.storage.limits import no_limits

__all__ = ["delete", "put", "show", "show_one", "usage_of"]

Number = TypeVar("Number", int, float)

MOST = 500
_OF_ONE = {
    "concurrency": "Tasks that run at a time",
    "count": "Tasks that start",
    "per": "Seconds",
    "burst": "Tasks that start at once",
}
_LABELS = {**_OF_ONE, **{f"key_{name}": f"{label}, of each key" for name, label in _OF_ONE.items()}}
"""By the name of a field of the form."""


async def usage_of(visit: Visit) -> list[LimitUsage]:
    """Return how the stored limits stand; one look at them serves all that ask within a second."""
    return await visit.dashboard.looks.shared("limits", FRESH, visit.queue.alimit_usage)


async def show(visit: Visit) -> Response:
    """Return the page."""
    look = await visit.dashboard.looks.latest()
    storage = await visit.storage()
    wanted = visit.one("q")
    found = [one for one in await usage_of(visit) if one.limit is not None and wanted.lower() in one.limit.id.lower()]
    return visit.page(
        "limits.html",
        title="Limits",
        look=look,
        rows=found[:MOST],
        q=wanted,
        found=len(found),
        most=MOST,
        why="" if storage.limits.task_limits else str(no_limits(storage)),
        limit_words=limit_words,
        set_by=set_by,
        held_back=held_back,
        running_of_limit=running_of_limit,
    )


# One of them


async def show_one(visit: Visit) -> Response:
    """Return the page on which a limit is set: the one that the address names, else a new one."""
    queue, name = visit.one("queue"), visit.one("name")
    if queue and name:
        raise Refused(400, "A limit is of a queue or has a name, not both.")
    return await _page(visit, is_new=not (queue or name))


async def _page(visit: Visit, *, is_new: bool, problem: str = "", status: int = 200) -> Response:
    queue, name = visit.one("queue"), visit.one("name")
    wanted = None if is_new else limit_id(queue or None, name or None)
    limit = next((one for one in await visit.queue.alimits() if one.id == wanted), None)
    usage = next((one for one in await usage_of(visit) if one.limit is not None and one.limit.id == wanted), None)
    look = await visit.dashboard.looks.latest()
    if isinstance(limit, UnreadableLimit):
        unreadable, limit = limit.problem, None
    else:
        unreadable = ""
    stored = {**_texts(limit), **_texts(limit and limit.per_key, "key_"), "weights": _weights_as_json(limit)}
    return visit.page(
        "limit.html",
        status=status,
        title="A new limit" if is_new else _called(queue, name),
        now=look.now,
        usage=usage,
        limit=limit,
        unreadable=unreadable,
        is_new=is_new,
        queue=queue,
        name=name,
        queues=sorted(one.queue for one in look.stats),
        fields={field: visit.one(field) for field in stored} if problem else stored,
        labels=_LABELS,
        revision=visit.one("revision") if problem else limit.revision if limit is not None else 0,
        problem=problem[:1].upper() + problem[1:],
        back=visit.back("/limits"),
        held_back=held_back,
        running_of_limit=running_of_limit,
    )


def _called(queue: str, name: str) -> str:
    return f"The limit of queue {queue}" if queue else f"The limit {name}"


def _texts(limit: Limit | None, prefix: str = "") -> dict[str, str]:
    rate = None if limit is None else limit.rate
    values = [limit and limit.concurrency, rate and rate.count, rate and rate.per, rate and rate.burst]
    texts = ["" if value is None else str(value).removesuffix(".0") for value in values]
    return {prefix + name: text for name, text in zip(_OF_ONE, texts, strict=True)}


def _weights_as_json(limit: Limit | None) -> str:
    return json.dumps(dict(limit.weights), indent=2) if limit is not None and limit.weights else ""


async def put(visit: Visit) -> Response:
    """Store a limit, unless it was changed since the form was made."""
    is_new = bool(visit.one("new"))
    revision = visit.needed("revision")
    if not (revision.isascii() and revision.isdecimal() and len(revision) < 16):
        raise Refused(400, "The form does not say which limit it was about.")
    try:
        limit = _asked_for(visit)
    except ValueError as error:
        return await _page(visit, is_new=is_new, problem=str(error), status=400)
    if await visit.queue.aput_limit(limit, expected_revision=int(revision)) is None:
        problem = "Nothing was changed: it was set or deleted meanwhile"
        visit.audit("put_limit", limit.id, False)
        return await _page(visit, is_new=False, problem=problem, status=409)
    words = limit_words(limit)
    visit.audit("put_limit", limit.id, words)
    return visit.done(f"{_called(visit.one('queue'), visit.one('name'))} is set: {words}.", visit.back("/limits"))


def _asked_for(visit: Visit) -> Limit:
    """Return the limit that a form describes.

    :raises ValueError: if it describes none; says why.
    """
    queue, weights = visit.one("queue"), visit.one("weights")
    limit = Limit(
        queue=check_queue(queue) if queue else None,
        name=visit.one("name") or None,
        per_key=Limit(**per_key) if any((per_key := _limited(visit, "key_")).values()) else None,
        weights=json_field(weights, "Weights", dict) if weights.strip() else {},
        **_limited(visit),
    )
    limit_id(limit.queue, limit.name)  # one of the two
    return limit


def _limited(visit: Visit, prefix: str = "") -> dict[str, Any]:
    concurrency, count = _number(visit, f"{prefix}concurrency", int), _number(visit, f"{prefix}count", int)
    per, burst = _number(visit, f"{prefix}per", float), _number(visit, f"{prefix}burst", int)
    if count is None:
        if per is not None or burst is not None:
            raise ValueError(f"{_LABELS[prefix + 'count']}: say how many, or leave the rest of the rate empty, too")
        return {"concurrency": concurrency, "rate": None}
    return {
        "concurrency": concurrency,
        "rate": Rate(count, per=1.0 if per is None else per, burst=1 if burst is None else burst),
    }


def _number(visit: Visit, name: str, kind: type[Number]) -> Number | None:
    text = visit.one(name).strip()
    try:
        return kind(text) if text else None
    except ValueError:
        raise ValueError(f"{_LABELS[name]}: this is no number: {text[:100]!r}") from None


async def delete(visit: Visit) -> Response:
    """Remove a limit."""
    queue, name = visit.one("queue"), visit.one("name")
    changed = await visit.queue.aunlimit(queue or None, name=name or None)
    visit.audit("unlimit", limit_id(queue or None, name or None), changed)
    if not changed:
        return visit.done(f"{_called(queue, name)} was gone already.", visit.back("/limits"))
    rest = "A worker that starts stores what its code declares."
    return visit.done(f"{_called(queue, name)} is deleted. {rest}", visit.back("/limits"))
