"""The figures for people: a table for each store with ratios and goals, and a picture of the drains."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from tests.bench.lines import LINES, STORES, Goal, Line
from tests.bench.results import Results, Value

__all__ = ["judge", "picture", "tables"]

WIDTH = 50
"""How long the longest bar of the picture is."""
PICTURED = ("drain-async", "drain-threads", "drain-two")


@frozen
class Verdict:
    """OmniQ's figure of a line beside those of others. Of ratios, more is better, also of times and costs."""

    to_peer: float | None
    to_raw: float | None
    reached: bool | None
    """Whether the goal was reached; None where there is none, or nothing to compare with."""


def judge(results: Results, store: str, line: Line) -> Verdict:
    """Compare OmniQ with the best peer and with the plain client."""
    own = results.value(store, "omniq", line.name)
    if own is None:
        return Verdict(None, None, None)
    ratios = {role: _ratio(own.median, _best(results, store, line, role), line) for role in ("peer", "raw")}
    goal = line.goals.get(store)
    reached = None if goal is None else _reached(results, store, line, goal, own.median, ratios)
    return Verdict(ratios["peer"], ratios["raw"], reached)


def _best(results: Results, store: str, line: Line, role: str) -> float | None:
    names = [name for name, its_role in results.contenders(store) if its_role == role]
    found = [results.value(store, name, rival) for name in names for rival in {line.name, *line.rivals}]
    values = [value.median for value in found if value is not None]
    if not values:
        return None
    return max(values) if line.more_is_better else min(values)


def _ratio(value: float, other: float | None, line: Line) -> float | None:
    if other is None or value <= 0 or other <= 0:
        return None
    return value / other if line.more_is_better else other / value


def _reached(
    results: Results, store: str, line: Line, goal: Goal, value: float, ratios: dict[str, float | None]
) -> bool | None:
    if goal.against == "value":
        return value >= goal.at_least if line.more_is_better else value <= goal.at_least
    if goal.against in ratios:
        ratio = ratios[goal.against]
    else:
        other = results.value(store, "omniq", goal.against)
        ratio = _ratio(value, None if other is None else other.median, line)
    return None if ratio is None else ratio >= goal.at_least


def tables(results: Results) -> Iterator[str]:
    """Give one table for each store that was measured, as Markdown that is aligned for terminals too."""
    for store, title in STORES.items():
        contenders = [name for name, _ in results.contenders(store)]
        if not contenders:
            continue
        rows = [["", "", *contenders, "to best peer", "to raw", "goal", ""]]
        rows += [row for line in LINES if (row := _row(results, store, line, contenders))]
        yield f"### {title}\n\n" + _aligned(rows)


def _row(results: Results, store: str, line: Line, contenders: list[str]) -> list[str] | None:
    values = {name: results.value(store, name, line.name) for name in contenders}
    if not any(values.values()):
        return None
    cells = ["" if value is None else _number(value.median) + _spread(value) for value in values.values()]
    verdict = judge(results, store, line)
    goal = line.goals[store].text if verdict.reached is not None else ""
    mark = {None: "", True: "✓", False: "missed"}[verdict.reached]
    title = line.title.format(size=results.size(line.name))
    return [title, line.unit, *cells, _times(verdict.to_peer), _times(verdict.to_raw), goal, mark]


def _spread(value: Value) -> str:
    return "" if value.count == 1 else f" ±{100 * value.spread:.0f}%"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f} ×" if ratio >= 1 else f"{ratio:.2f} ×"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    # Title and unit in front, goal and verdict at the end are words; what is between are figures.
    words = {0, 1, len(widths) - 2, len(widths) - 1}

    def joined(row: list[str]) -> str:
        cells = zip(row, widths, strict=True)
        return " | ".join(
            cell.ljust(width) if column in words else cell.rjust(width) for column, (cell, width) in enumerate(cells)
        )

    rule = ["-" * width if column in words else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(f"| {joined(row)} |" for row in (rows[0], rule, *rows[1:]))


def picture(results: Results) -> str:
    """Draw how fast queues are drained: a bar for each contender, to one scale a store."""
    return "\n\n".join(_bars(results, store) for store in STORES if _drains(results, store))


def _drains(results: Results, store: str) -> list[tuple[str, str, float]]:
    found: list[tuple[str, str, float]] = []
    for line in LINES:
        if line.name in PICTURED:
            for name, _ in results.contenders(store):
                value = results.value(store, name, line.name)
                if value is not None:
                    found.append((name, line.title.removeprefix("drain, "), value.median))
    return sorted(found, key=lambda bar: -bar[2])


def _bars(results: Results, store: str) -> str:
    bars = _drains(results, store)
    names = max(len(name) for name, _, _ in bars)
    ways = max(len(way) for _, way, _ in bars)
    most = bars[0][2]
    drawn = [
        f"{name.ljust(names)}  {way.ljust(ways)}  {'█' * max(1, round(WIDTH * value / most))} {value:,.0f}"
        for name, way, value in bars
    ]
    return "\n".join([f"{STORES[store]}: tasks drained a second", *drawn])
