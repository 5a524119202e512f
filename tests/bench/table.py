"""The figures for people: a table for each store with ratios and goals, and a picture of the drains."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from tests.bench.lines import LINES, STORES, Goal, Line
from tests.bench.results import Results

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
    reached = _reached(results, store, line, line.goal, own.median, ratios) if line.goal is not None else None
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
    cells = []
    for name, value in values.items():
        spread = f" ±{100 * value.spread:.0f}%" if value is not None and name == "omniq" else ""
        cells.append("" if value is None else _number(value.median) + spread)
    verdict = judge(results, store, line)
    goal = line.goal.text if line.goal is not None and verdict.reached is not None else ""
    mark = {None: "", True: "✓", False: "missed"}[verdict.reached]
    title = line.title.format(size=results.size(line.name))
    return [title, line.unit, *cells, _times(verdict.to_peer), _times(verdict.to_raw), goal, mark]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f} ×" if ratio >= 1 else f"{ratio:.2f} ×"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    texts = [0, len(rows[0]) - 2, len(rows[0]) - 1, 1]

    def text(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [
        "-" * width if column in texts else "-" * (width - 1) + ":" for column, width in enumerate(map(_wide, widths))
    ]
    widths = list(map(_wide, widths))
    return "\n".join([text(rows[0]), f"| {' | '.join(rule)} |", *map(text, rows[1:])])


def _wide(width: int) -> int:
    return max(3, width)


def picture(results: Results) -> str:
    """Draw how fast queues are drained: a bar for each contender, all to one scale."""
    bars: list[tuple[str, float]] = []
    for store, title in STORES.items():
        for line in LINES:
            if line.name not in PICTURED:
                continue
            for name, _ in results.contenders(store):
                value = results.value(store, name, line.name)
                if value is not None:
                    bars.append((f"{title}, {line.title.removeprefix('drain, ')}: {name}", value.median))
    if not bars:
        return ""
    longest = max(len(text) for text, _ in bars)
    most = max(value for _, value in bars)
    drawn = [f"{text.ljust(longest)} {'█' * max(1, round(WIDTH * value / most))} {value:,.0f}" for text, value in bars]
    return "\n".join(["tasks drained a second", "", *drawn])
