"""The figures for people: a table for each store with ratios and goals, and a picture of the drains."""

from __future__ import annotations

from attrs import frozen

from tests.bench.lines import LINES, STORES, Goal, Line
from tests.bench.results import Results, Value

__all__ = ["judge", "picture", "tables"]

MOST = 7
"""How many contenders a table holds; where there are more, the peers get one of their own."""
WIDTH = 50
"""How long the longest bar of the picture is."""
PICTURED = ("drain-async", "drain-threads", "drain-two")


@frozen
class Verdict:
    """OmniQ's figure of a line beside those of others. Of ratios, more is better, also of times and costs."""

    to_peer: float | None
    to_raw: float | None
    reached: bool | None
    """Whether the goals were reached; None where there are none, or nothing to compare with."""
    best_peer: str = ""


def judge(results: Results, store: str, line: Line) -> Verdict:
    """Compare OmniQ with the best peer and with the plain client."""
    own = results.value(store, "omniq", line.name)
    if own is None:
        return Verdict(None, None, None)
    best = {role: _best(results, store, line, role) for role in ("peer", "raw")}
    ratios = {role: _ratio(own.median, found[0] if found else None, line) for role, found in best.items()}
    verdicts = [_reached(results, store, line, goal, own.median, ratios) for goal in line.goals.get(store, ())]
    known = [verdict for verdict in verdicts if verdict is not None]
    _, best_peer = best["peer"] or (0, "")
    return Verdict(ratios["peer"], ratios["raw"], all(known) if known else None, best_peer)


def _best(results: Results, store: str, line: Line, role: str, among: tuple[str, ...] = ()) -> tuple[float, str] | None:
    names = [name for name, its_role in results.contenders(store) if its_role == role and name in (among or (name,))]
    lines = {line.name, *line.rivals, *(line.raw_rivals if role == "raw" else ())}
    found = [(value.median, name) for name in names for rival in lines if (value := results.value(store, name, rival))]
    if not found:
        return None
    return max(found) if line.more_is_better else min(found)


def _ratio(value: float, other: float | None, line: Line) -> float | None:
    if other is None or value <= 0 or other <= 0:
        return None
    return value / other if line.more_is_better else other / value


def _reached(
    results: Results, store: str, line: Line, goal: Goal, value: float, ratios: dict[str, float | None]
) -> bool | None:
    if goal.against == "value":
        return value >= goal.at_least if line.more_is_better else value <= goal.at_least
    if goal.rivals:
        best = _best(results, store, line, goal.against, goal.rivals)
        ratio = _ratio(value, best[0] if best else None, line)
    elif goal.against in ratios:
        ratio = ratios[goal.against]
    else:
        other = results.value(store, "omniq", goal.against)
        ratio = _ratio(value, None if other is None else other.median, line)
    return None if ratio is None else ratio >= goal.at_least


def tables(results: Results, store: str) -> str:
    """Return the table of a store, as Markdown that is aligned for terminals too; where it would be too wide, two."""
    contenders = results.contenders(store)
    names = [name for name, _ in contenders]
    if len(contenders) <= MOST:
        return _table(results, store, names, names_best=False)
    apart = [name for name, role in contenders if role == "peer"]
    beside = [name for name in names if name not in apart]
    return "\n\n".join([_table(results, store, beside, names_best=True), _plain_table(results, store, apart)])


def _table(results: Results, store: str, contenders: list[str], *, names_best: bool) -> str:
    rows = [["", "", *contenders, "to best peer", "to raw", "goal", ""]]
    for line in LINES:
        if cells := _cells(results, store, line, contenders):
            verdict = judge(results, store, line)
            goal = ", ".join(goal.text for goal in line.goals.get(store, ())) if verdict.reached is not None else ""
            mark = {None: "", True: "✓", False: "missed"}[verdict.reached]
            best = f" {verdict.best_peer}" if names_best and verdict.to_peer is not None else ""
            rows.append([*cells, _times(verdict.to_peer) + best, _times(verdict.to_raw), goal, mark])
    # Title and unit in front, goal and verdict at the end are words; what is between are figures.
    return _aligned(rows, words={0, 1, len(rows[0]) - 2, len(rows[0]) - 1})


def _plain_table(results: Results, store: str, contenders: list[str]) -> str:
    rows = [["", "", *contenders]]
    rows += [cells for line in LINES if (cells := _cells(results, store, line, contenders))]
    return _aligned(rows, words={0, 1})


def _cells(results: Results, store: str, line: Line, contenders: list[str]) -> list[str] | None:
    values = [results.value(store, name, line.name) for name in contenders]
    if not any(values):
        return None
    cells = ["" if value is None else _number(value.median) + _spread(value) for value in values]
    return [line.title.format(size=results.size(line.name)), line.unit, *cells]


def _spread(value: Value) -> str:
    return "" if value.count == 1 else f" ±{100 * value.spread:.0f}%"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f} ×" if ratio >= 1 else f"{ratio:.2f} ×"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _aligned(rows: list[list[str]], words: set[int]) -> str:
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

    def joined(row: list[str]) -> str:
        cells = zip(row, widths, strict=True)
        return " | ".join(
            cell.ljust(width) if column in words else cell.rjust(width) for column, (cell, width) in enumerate(cells)
        )

    rule = ["-" * width if column in words else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(f"| {joined(row)} |" for row in (rows[0], rule, *rows[1:]))


def picture(results: Results, store: str) -> str:
    """Draw how fast the queues of a store are drained: a bar for each contender. Empty where none was."""
    return _bars(results, store) if _drains(results, store) else ""


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
