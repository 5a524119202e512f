"""A flow as a picture: its tasks from left to right, those that wait for the same and do the same as one box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from attrs import define, field
from markupsafe import Markup

from omniq.flow import Flow
from omniq.storage.escaping import printable
from omniq.task import StoredTask, TaskState

__all__ = ["picture_of"]

BOX_WIDTH, BOX_HEIGHT = 190, 56
GAP_X, GAP_Y = 64, 18
DIP = 62
MOST_BOXES = 150
LONGEST_NAME = 24
_ORDER = (
    TaskState.FAILED,
    TaskState.RUNNING,
    TaskState.CANCELLED,
    TaskState.SUCCEEDED,
    TaskState.READY,
    TaskState.SCHEDULED,
    TaskState.BLOCKED,
)

_Key = tuple[str, int | None, tuple[int, ...]]


@define(eq=False)
class _Box:
    name: str
    behind: int | None
    feeds: tuple[int, ...]
    ids: list[str] = field(factory=list)
    counts: Counter[TaskState] = field(factory=Counter)
    depth: int = 0
    row: int = 0

    @property
    def x(self) -> float:
        return 4 + self.depth * (BOX_WIDTH + GAP_X)

    @property
    def y(self) -> float:
        return 4 + self.row * (BOX_HEIGHT + GAP_Y)


def picture_of(flow: Flow, tasks: Sequence[StoredTask], addresses: Mapping[str, str], own: str | None = None) -> Markup:
    """Return the picture of a flow as SVG.

    :param tasks: those of the flow, or some of them.
    :param addresses: of the page of each task, by its id.
    :param own: the id of the task whose box is marked.
    :return: an empty text if there is nothing to draw, or too much.
    """
    boxes: dict[_Key, _Box] = {}
    for task in tasks:
        key = task.name, task.behind, tuple(sorted(feed.gate for feed in task.feeds))
        box = boxes.setdefault(key, _Box(*key))
        box.ids.append(task.id)
        box.counts[task.state] += 1
    if not boxes or len(boxes) > MOST_BOXES:
        return Markup("")
    _place(list(boxes.values()), {gate.n: gate.rank for gate in flow.gates})
    behind: dict[int, list[_Box]] = {}
    for box in boxes.values():
        if box.behind is not None:
            behind.setdefault(box.behind, []).append(box)
    lines = [
        _edge(one, other)
        for one in boxes.values()
        for gate in one.feeds
        for other in behind.get(gate, ())
        if other.depth > one.depth
    ]
    shapes = [_shape(box, addresses, own) for box in boxes.values()]
    width = max(box.x for box in boxes.values()) + BOX_WIDTH + 4
    height = max(box.y for box in boxes.values()) + BOX_HEIGHT + 24
    return Markup(
        '<svg class="flow" width="{}" height="{}" viewBox="0 0 {} {}" role="group" aria-label="The flow as a picture">'
        "{}{}</svg>"
    ).format(width, height, width, height, Markup("").join(lines), Markup("").join(shapes))


def _place(boxes: Sequence[_Box], ranks: Mapping[int, str]) -> None:
    """Place each box to the right of all that it waits for. A gate ranks before all that the tasks behind it feed."""
    depths: dict[int, int] = {}
    for box in sorted(boxes, key=lambda one: "" if one.behind is None else ranks.get(one.behind, "")):
        box.depth = 0 if box.behind is None else depths.get(box.behind, 0)
        for gate in box.feeds:
            depths[gate] = max(depths.get(gate, 0), box.depth + 1)
    rows: Counter[int] = Counter()
    for box in boxes:
        box.row = rows[box.depth]
        rows[box.depth] += 1


def _edge(one: _Box, other: _Box) -> Markup:
    x1, y1 = one.x + BOX_WIDTH, one.y + BOX_HEIGHT / 2
    x2, y2 = other.x, other.y + BOX_HEIGHT / 2
    middle = (x1 + x2) / 2
    if other.depth > one.depth + 1:  # below what stands between them
        dip = max(y1, y2) + DIP
        return Markup('<path class="edge" d="M{} {}C{} {} {} {} {} {}"/>').format(
            x1, y1, x1 + GAP_X, dip, x2 - GAP_X, dip, x2, y2
        )
    return Markup('<path class="edge" d="M{} {}C{} {} {} {} {} {}"/>').format(x1, y1, middle, y1, middle, y2, x2, y2)


def _shape(box: _Box, addresses: Mapping[str, str], own: str | None) -> Markup:
    name = printable(box.name)
    short = name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
    total = box.counts.total()
    states = [state for state in _ORDER if box.counts[state]]
    words = ", ".join(f"{box.counts[state]:,} {state.value}" for state in states)
    bar, x = [], box.x + 1.0
    for state in states:
        width = (BOX_WIDTH - 2) * box.counts[state] / total
        bar.append(
            Markup('<rect class="part {}" x="{:.1f}" y="{}" width="{:.1f}" height="5"/>').format(
                state.value, x, box.y + BOX_HEIGHT - 6, width
            )
        )
        x += width
    # Of many the one that is of most interest is led to.
    link = addresses.get(own if own in box.ids else box.ids[0], "")
    return Markup(
        '<a href="{}"><title>{}: {}</title><rect class="box{}" x="{}" y="{}" width="{}" height="{}" rx="6"/>'
        '<text class="name" x="{}" y="{}">{}</text><text class="state" x="{}" y="{}">{}</text>{}</a>'
    ).format(
        link,
        name,
        words,
        " own" if own in box.ids else "",
        box.x,
        box.y,
        BOX_WIDTH,
        BOX_HEIGHT,
        box.x + 10,
        box.y + 21,
        short,
        box.x + 10,
        box.y + 39,
        words if len(words) <= LONGEST_NAME + 4 else f"{total:,} tasks, {box.counts[states[0]]:,} {states[0].value}",
        Markup("").join(bar),
    )
