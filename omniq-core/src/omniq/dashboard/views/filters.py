"""Which tasks are meant: the filters that stand in an address, read and in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import frozen

from omniq._client.admin import check_state
from omniq.dashboard.security import Refused
from omniq.dashboard.visit import Visit
from omniq.storage.durations import aware
from omniq.task import TaskState

__all__ = ["Filters", "moment_of"]


@frozen(kw_only=True)
class Filters:
    """What tasks have in common."""

    queue: str = ""
    states: frozenset[TaskState] | None = None
    name: str = ""
    tag: str = ""
    before: datetime | None = None
    after: datetime | None = None

    @classmethod
    def of(cls, visit: Visit) -> Filters:
        """Return those of a request.

        :raises Refused: if one of them cannot be used; names it.
        """
        try:
            states = frozenset(map(check_state, visit.all("state")))
        except ValueError as error:
            raise Refused(400, str(error)) from None
        return cls(
            queue=visit.one("queue"),
            states=states or None,
            name=visit.one("name"),
            tag=visit.one("tag"),
            before=moment_of(visit.one("before"), "before"),
            after=moment_of(visit.one("after"), "after"),
        )

    @property
    def selected(self) -> Mapping[str, Any]:
        """The arguments of a query that say the same; None for what is not asked for."""
        return {
            "queue": self.queue or None,
            "states": self.states,
            "name": self.name or None,
            "tag": self.tag or None,
            "enqueued_before": self.before,
        }

    def query(self, **changes: Any) -> dict[str, Any]:
        """Return what stands in an address, with some of it changed."""
        fields = {
            "queue": self.queue,
            "state": [state.value for state in TaskState if self.states is not None and state in self.states],
            "name": self.name,
            "tag": self.tag,
            "before": _text(self.before),
            "after": _text(self.after),
        }
        return {**fields, **changes}

    @property
    def words(self) -> str:
        """The filters in words, for people and for the audit log."""
        states = "" if self.states is None else " or ".join(one.value for one in TaskState if one in self.states)
        parts = [
            f"{name} {value}"
            for name, value in (
                ("state", states),
                ("queue", self.queue),
                ("function", self.name),
                ("tag", self.tag),
                ("enqueued before", _text(self.before)),
                ("enqueued after", _text(self.after)),
            )
            if value
        ]
        return ", ".join(parts) or "all tasks"


def moment_of(text: str, name: str) -> datetime | None:
    """Return a point in time as it stands in an address; without an offset it is UTC. None if there is none.

    :raises Refused: if it is none; names it.
    """
    if not text:
        return None
    try:
        # The plus of an offset that was not escaped is read as a space.
        moment = datetime.fromisoformat(text.replace(" ", "+") if text[-6:-5] == " " else text)
        return aware(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC), name)
    except (ValueError, OverflowError):
        raise Refused(400, f"{name} is no time such as 2030-01-31T09:00: {text!r}") from None


def _text(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
