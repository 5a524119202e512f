"""Charts as SVG, made here: nothing is drawn in the browser, and nothing of a chart needs a style of its own."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from omniq.dashboard.looks import BUCKET, BUCKETS, Bucket
from omniq.task import TaskState

__all__ = ["ended_chart", "waiting_chart"]

WIDTH, HEIGHT = 720, 120
_ENDED = (TaskState.SUCCEEDED, TaskState.CANCELLED, TaskState.FAILED)


def ended_chart(buckets: Sequence[Bucket]) -> tuple[Markup, int]:
    """Return what ended in each half minute of the last hour, by outcome, and the height of the chart in tasks."""
    top = max((bucket.ended.total() for bucket in buckets), default=0)
    step = WIDTH / max(len(buckets), 1)
    parts = []
    for number, bucket in enumerate(buckets):
        below = 0.0
        for state in _ENDED:
            if count := bucket.ended[state]:
                height = max(count / top * (HEIGHT - 4), 1.5)
                text = f"{count:,} {state.value}, {_ago(number, len(buckets))}"
                parts.append(
                    Markup('<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">').format(
                        state.value, number * step + 0.6, HEIGHT - below - height, step - 1.2, height
                    )
                    + Markup("<title>{}</title></rect>").format(text)
                )
                below += height
    sums = {state: sum(bucket.ended[state] for bucket in buckets) for state in _ENDED}
    label = "Ended in the last hour: " + ", ".join(f"{number:,} {state.value}" for state, number in sums.items())
    return _picture(parts, label), top


def waiting_chart(buckets: Sequence[Bucket]) -> tuple[Markup, int]:
    """Return how many tasks were ready over the last hour, with gaps between the looks, and the chart's height."""
    top = max((bucket.waiting or 0 for bucket in buckets), default=0)
    step = WIDTH / max(len(buckets), 1)
    parts: list[Markup] = []
    run: list[tuple[float, float]] = []
    for number, bucket in enumerate([*buckets, Bucket()]):
        if bucket.waiting is not None:
            height = bucket.waiting / max(top, 1) * (HEIGHT - 4)
            run.append(((number + 0.5) * step, HEIGHT - 1 - height))
        elif run:
            parts.append(_line(run))
            run = []
    now = next((bucket.waiting for bucket in reversed(buckets) if bucket.waiting is not None), None)
    return _picture(parts, f"Ready tasks over the last hour: at most {top:,}, now {now or 0:,}"), top


def _line(run: Sequence[tuple[float, float]]) -> Markup:
    half = WIDTH / BUCKETS / 2  # so that one look is seen, too
    run = [(run[0][0] - half, run[0][1]), *run, (run[-1][0] + half, run[-1][1])]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
    return Markup('<polygon class="area" points="{:.1f},{} {} {:.1f},{}"/><polyline class="line" points="{}"/>').format(
        run[0][0], HEIGHT, points, run[-1][0], HEIGHT, points
    )


def _ago(number: int, count: int) -> str:
    minutes = (count - 1 - number) * BUCKET / 60
    return f"{minutes:g} min ago" if minutes else "now"


def _picture(parts: Sequence[Markup], label: str) -> Markup:
    grid = Markup("").join(
        Markup('<line class="grid" x1="0" x2="{}" y1="{}" y2="{}"/>').format(WIDTH, y, y)
        for y in (4, HEIGHT / 2, HEIGHT - 0.5)
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}{}</svg>'
    ).format(WIDTH, HEIGHT, label, grid, Markup("").join(parts))
