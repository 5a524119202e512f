"""The names of tasks of a flow, by gate and state, as a change leaves them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from omniq.task import TaskState
from omniq_local.files.names import Member, parse_member
from omniq_local.files.tree import Tree

__all__ = ["Members"]


class Members:
    """What some folders of a flow hold.

    :param tree: the namespace's files.
    :param folders: of the flow.
    :param foreign: told of each file that is none of ours: its path, and why.
    """

    def __init__(self, tree: Tree, folders: Iterable[str], foreign: Callable[[str, str], None]) -> None:
        self._members: dict[int, Member] = {}
        self._places: dict[tuple[int | None, str], set[int]] = {}
        self._states: dict[str, set[int]] = {}
        for folder in folders:
            for name in tree.names(folder):
                member = parse_member(name)
                if member is None:
                    foreign(f"{folder}/{name}", "no task of this store has a file there")
                else:
                    self.put(member)

    def put(self, member: Member) -> None:
        """Add a name, instead of another that its task has."""
        self.discard(member.sequence)
        self._members[member.sequence] = member
        self._places.setdefault((member.behind, member.state), set()).add(member.sequence)
        self._states.setdefault(member.state, set()).add(member.sequence)

    def discard(self, sequence: int) -> None:
        """Take the name of a task away, if there is one."""
        member = self._members.pop(sequence, None)
        if member is not None:
            self._places[member.behind, member.state].discard(sequence)
            self._states[member.state].discard(sequence)

    def in_states(self, behind: int | None, states: Sequence[TaskState]) -> list[Member]:
        """Return the names of tasks in some states, in any order.

        :param behind: only those behind this gate; None: all, with those that are behind none.
        """
        found: list[Member] = []
        for state in states:
            sequences = self._states.get(state.value, ()) if behind is None else self._places.get((behind, state), ())
            found += [self._members[sequence] for sequence in sequences]
        return found

    def count(self, state: TaskState) -> int:
        """Return how many tasks are in a state."""
        return len(self._states.get(state.value, ()))
