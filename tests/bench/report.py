"""What a run found out about a store, for people; and its place in the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.bench import table
from tests.bench.lines import LINES, STORES
from tests.bench.results import Results
from tests.bench.table import judge

__all__ = ["report", "write_figures"]

FIGURES = "<!-- figures: written by make bench BENCH_ARGS=--docs -->"
END = "<!-- end of figures -->"
SECTION = re.compile(r"<!-- (\w+) -->\n\n(.*?)\n\n<!-- end of \1 -->", re.DOTALL)


def report(results: Results, store: str) -> str:
    """Return the tables of a store, the picture, and on what it was measured."""
    parts = [f"### {STORES[store]}", table.tables(results, store)]
    if goals := _goals(results, store):
        parts.append(goals)
    if drawn := table.picture(results, store):
        parts.append(f"```text\n{drawn}\n```")
    left_out = [f"{name}: {reason}" for (where, name), reason in results.missing.items() if where == store]
    if left_out:
        parts.append("Not measured: " + "; ".join(left_out) + ".")
    parts.append(_setup(results, store))
    return "\n\n".join(parts)


def _goals(results: Results, store: str) -> str:
    verdicts = [
        (line.title.format(size=results.size(line.name)), judge(results, store, line).reached) for line in LINES
    ]
    judged = [(title, reached) for title, reached in verdicts if reached is not None]
    missed = "; ".join(title for title, reached in judged if not reached)
    reached = sum(reached for _, reached in judged)
    return f"Goals reached: {reached} of {len(judged)}. Missed: {missed or 'none'}." if judged else ""


def _setup(results: Results, store: str) -> str:
    first, last = results.machines[0], results.machines[-1]
    place = {"sqlite": f"SQLite {first['sqlite']}", **results.servers}.get(store)
    setup = [f"{first['cores']} cores", first["system"], f"Python {first['python']}", *([place] if place else [])]
    day = first["time"].partition("T")[0]
    load = f"Load average at the beginning: {first['load'][0]:g}"
    load += f", at the end: {last['load'][0]:g}." if last is not first else "."
    return f"Measured on {day}: {', '.join(setup)}; {'; '.join(results.versions(store))}. {load}"


def write_figures(file: Path, texts: Mapping[str, str]) -> None:
    """Write what was found into a page, each store in its place; what the page says of other stores stays.

    :param texts: by store.
    """
    before, _, rest = file.read_text(encoding="utf-8").partition(FIGURES)
    there, _, after = rest.partition(END)
    sections = {**dict(SECTION.findall(there)), **texts}
    known = [store for store in STORES if store in sections]
    written = [f"<!-- {store} -->\n\n{sections[store]}\n\n<!-- end of {store} -->" for store in known]
    file.write_text("\n\n".join([before + FIGURES, *written, END]) + after, encoding="utf-8")
