"""The functions that there are, and how their latest tasks went."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from attrs import define, field, frozen
from starlette.responses import Response

from omniq.dashboard.redaction import HIDDEN, is_secret
from omniq.dashboard.views.numbers import percentile, seconds_run
from omniq.dashboard.visit import Visit
from omniq.task import StoredTask, TaskState

__all__ = ["show"]

SAMPLED, SAMPLE_FRESH = 10_000, 15.0


@define
class Row:
    """One function."""

    name: str
    signature: str = ""
    executor: str = ""
    known_to: int = 0
    """Workers that know it."""
    ended: int = 0
    failed: int = 0
    seconds: list[float] = field(factory=list)

    def p(self, share: float) -> float | None:
        """Return a percentile of how long its attempts took."""
        return percentile(self.seconds, share)


async def show(visit: Visit) -> Response:
    """Return the page."""
    looks = visit.dashboard.looks
    look = await looks.latest()
    sample = await looks.sample(SAMPLED, SAMPLE_FRESH)
    rows: dict[str, Row] = {}
    for name, function in visit.queue.functions.items():
        definition = function.definition
        rows[name] = Row(name, signature=_text(definition.signature), executor=definition.executor)
    for worker in look.workers:
        for name in () if worker.about is None else worker.about.functions:
            rows.setdefault(name, Row(name)).known_to += 1
    _add(rows, sample.tasks)
    return visit.page(
        "functions.html",
        title="Functions",
        rows=sorted(rows.values(), key=lambda row: row.name),
        sampled=len(sample.tasks),
        is_all=sample.is_all,
        workers=len(look.workers),
    )


@frozen
class _As:
    text: str

    def __repr__(self) -> str:
        return self.text


def _text(signature: inspect.Signature) -> str:
    """Return a signature as it was written, but for defaults that are secrets."""
    shown = []
    for one in signature.parameters.values():
        hint = _As(one.annotation) if isinstance(one.annotation, str) else one.annotation
        is_hidden = one.default not in (one.empty, None) and is_secret(one.name)
        shown.append(one.replace(annotation=hint, default=_As(HIDDEN) if is_hidden else one.default))
    returned = signature.return_annotation
    return str(
        signature.replace(parameters=shown, return_annotation=_As(returned) if isinstance(returned, str) else returned)
    )


def _add(rows: dict[str, Row], tasks: Iterable[StoredTask]) -> None:
    for task in tasks:
        row = rows.setdefault(task.name, Row(task.name))
        row.ended += 1
        row.failed += task.state is TaskState.FAILED
        if (seconds := seconds_run(task)) is not None:
            row.seconds.append(seconds)
