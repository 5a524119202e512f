"""From values to pages: the templates, and how they show times, numbers and texts that may come from anyone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup, escape

from omniq.cli.terminal import human_duration
from omniq.cli.wording import plural, relative, rough_duration
from omniq.storage.escaping import printable, printable_lines
from omniq.task import Progress, TaskState

__all__ = ["address", "render"]


def address(root: str, path: str, **query: Any) -> str:
    """Return the address of a page.

    :param root: where the dashboard is mounted.
    :param path: of the page within it, such as ``/tasks``.
    :param query: what stands behind the question mark; None and empty values are left out, of a list all are there.
    """
    pairs = [
        (name, str(one))
        for name, value in query.items()
        for one in (value if isinstance(value, list | tuple | set | frozenset) else [value])
        if one not in (None, "")
    ]
    text = urlencode(pairs, errors="replace")
    return f"{root}{path}{'?' if text else ''}{text}"


def _finished(value: Any) -> Any:
    """Return what is shown for a value: no mark of direction and no escape code of a text that may come from anyone."""
    if value is None:
        return "–"
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value)


def _lines(text: str) -> Markup:
    return Markup("{}").format(printable_lines(text))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,}"


def _compact(value: float | None) -> str:
    if value is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{value:,}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 0.001:
        return "< 1 ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2g} s" if seconds < 10 else rough_duration(seconds) if seconds >= 60 else f"{seconds:.0f} s"


def _when(moment: datetime | None, now: datetime) -> Markup:
    if moment is None:
        return Markup("–")
    utc = moment.astimezone(UTC)
    exact = f"{utc:%Y-%m-%d %H:%M:%S}.{utc.microsecond // 1000:03} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(utc.isoformat(), exact, relative(moment, now))


def _exact(moment: datetime | None) -> Markup:
    if moment is None:
        return Markup("–")
    utc = moment.astimezone(UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(utc.isoformat(), f"{utc:%Y-%m-%d %H:%M:%S}")


def _share(progress: Progress | None) -> int | None:
    """Return how many of a hundred parts are done; None if that is not known."""
    if progress is None or not progress.total or progress.total <= 0:
        return None
    return round(100 * min(max(progress.done / progress.total, 0.0), 1.0))


_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("omniq.dashboard"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_finished,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(
    number=_number,
    compact=_compact,
    duration=_duration,
    span=human_duration,
    exact=_exact,
    exactly=escape,  # as it is, for what a form sends back
    lines=_lines,
    plural=plural,
    share=_share,
    short=lambda text: text[-12:],
    first_line=lambda text: text.strip().partition("\n")[0][:300],
)
_environment.globals.update(when=_when, states=tuple(TaskState))


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return a page, or a part of one.

    :param template: the name of its file.
    :param values: what it is made of.
    """
    return _environment.get_template(template).render(values)
