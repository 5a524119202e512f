"""Random flows of the application, and what must become of each of their tasks."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from omniq import Task, TaskCall, TaskGroup, TaskState
from omniq.task import TaskError
from tests.faults.history import Event
from tests.faults.scene import Scene

__all__ = ["Node", "RandomFlow"]


@frozen(eq=False)
class Node:
    """One task of a flow."""

    call: TaskCall[str]
    before: tuple[Node, ...] = ()
    """Those whose results or ends it is given, in this order."""
    heeds: bool = False
    """Whether it runs whatever has become of them."""
    breaks: bool = False
    """Whether it fails when it runs."""

    def end(self, known: dict[Node, TaskState]) -> TaskState:
        """Return how it must end.

        :param known: those of the nodes before it.
        """
        if not self.heeds and any(known[node] is not TaskState.SUCCEEDED for node in self.before):
            return TaskState.CANCELLED
        return TaskState.FAILED if self.breaks else TaskState.SUCCEEDED


class RandomFlow:
    """A flow of random shape: chains, groups with their callbacks, diamonds, and these within each other.

    :param scene: the functions are those of its application.
    :param largest: the most members of a group.
    """

    def __init__(self, scene: Scene, chance: random.Random, largest: int) -> None:
        self._scene = scene
        self._chance = chance
        self._largest = largest
        self.nodes: list[Node] = []
        """Each after those before it."""
        self._made = self._shape(chance.randint(1, 3))

    @property
    def last(self) -> TaskCall[str]:
        """The call that the others lead to."""
        return self._made.call

    def _node(self, before: Sequence[Node] = ()) -> Node:
        heeds = bool(before) and self._chance.random() < 0.4
        breaks = self._chance.random() < 0.04
        function = self._scene.function(("break_" if breaks else "") + ("heed" if heeds else "step"))
        group = TaskGroup([node.call for node in before])
        given: Any = (group.outcomes if heeds else group.outputs) if before else []
        call = function.using(tags=[f"node-{len(self.nodes)}"]).call(given)
        self.nodes.append(Node(call, tuple(before), heeds, breaks))
        return self.nodes[-1]

    def _shape(self, depth: int) -> Node:
        kind = self._chance.choice(["chain", "group", "diamond", "nested"]) if depth else "one"
        match kind:
            case "chain":
                node = self._shape(depth - 1)
                for _ in range(self._chance.randint(1, 4)):
                    node = self._node([node])
                return node
            case "group":
                # Mostly small ones, some large.
                size = round(self._largest ** self._chance.random())
                before = [self._shape(depth - 1)] if self._chance.random() < 0.5 else []
                return self._node([self._node(before) for _ in range(size)])
            case "diamond":
                top = self._shape(depth - 1)
                return self._node([self._node([top]), self._node([top])])
            case "nested":
                return self._node([self._shape(depth - 1) for _ in range(self._chance.randint(2, 3))])
        return self._node()

    def check(self, tasks: Sequence[Task], events: Mapping[str, Sequence[Event]]) -> None:
        """Check that each task ran exactly when it should have, and was given what was recorded of those before it.

        :param tasks: those of the flow, as the store has them in the end.
        :param events: the history of each task by its id.
        """
        by_name = {task.tags[0]: task for task in tasks}
        assert len(by_name) == len(tasks) == len(self.nodes), "a task was lost, or is there twice"
        found = {node: by_name[f"node-{n}"] for n, node in enumerate(self.nodes)}
        ends: dict[Node, TaskState] = {}
        for node, task in found.items():
            ends[node] = node.end(ends)
            assert task.state is ends[node], f"{task} should be {ends[node]}: {events.get(task.id)}"
            mine = events.get(task.id, ())
            if task.state is TaskState.CANCELLED:
                assert not mine, f"it ran, and was not to: {mine}"
                assert task.error is not None
                assert task.error.type == "UpstreamFailed"
                continue
            before = [found[one] for one in node.before]
            for event in mine:
                if event.what == "ran":
                    assert event.details["inputs"] == [_recorded(one) for one in before]
            begun = min((event.at for event in mine if event.what == "started"), default=None)
            for one in before:
                # A task whose worker died each time before it noted anything has nothing to compare.
                ran = [event.at for event in events.get(one.id, ()) if event.what == "ran"]
                assert begun is None or not ran or min(ran) < begun, "it began before what it waits for had ended"


def _recorded(task: Task) -> Any:
    """Return what those that come after a task are told of it."""
    if task.state is TaskState.SUCCEEDED:
        return task.result
    assert isinstance(task.error, TaskError)
    return task.error.type
