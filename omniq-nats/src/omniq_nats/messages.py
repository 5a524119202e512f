"""What a stream holds and what is to be stored in it, and the ways in which storing can fail to say yes."""

from __future__ import annotations

from typing import Any

from attrs import define, frozen

from omniq.errors import StorageUnavailable
from omniq_nats.times import read_stamp

__all__ = ["Conflict", "Full", "Life", "Lost", "Stored", "Unserved", "Write"]

EXPECTED_END = "Nats-Expected-Last-Sequence"
EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class Conflict(Exception):
    """Another writer was quicker: the message that was to be replaced is another one by now."""


class Lost(StorageUnavailable):
    """No answer came: whether it was done is not known."""


class Unserved(StorageUnavailable):
    """There was no answer, so it was not done: the stream has no leader at the moment, or does not exist."""


class Full(StorageUnavailable):
    """There is no room for it: a limit of the stream, the account or the server is reached."""


@frozen
class Life:
    """Which stream it is: one that was emptied, or removed and made anew, begins another life."""

    created: int
    """When it was made, in microseconds."""
    first: int | None
    """The sequence of a message that is never removed; None: there was no room to store it."""

    def has_ended(self, answer: dict[str, Any]) -> bool:
        """Say whether the servers speak of another one.

        :param answer: what they say of the stream.
        """
        if read_stamp(answer["created"]) != self.created:
            return True
        state = answer["state"]
        return self.first is not None and (not state["messages"] or state["first_seq"] > self.first)


@define  # a frozen one takes three times as long to make, and there is one for each message
class Stored:
    """A message as the stream has it. It does not change."""

    subject: str
    seq: int
    data: bytes


@define
class Write:
    """A message to store. It does not change."""

    subject: str
    data: bytes
    expected: int | None = None
    """The sequence of the message that it replaces; 0: there is none; None: whatever is there."""
    among: str | None = None
    """The subjects, with wildcards, that ``expected`` speaks of; None: its own."""
    end: int | None = None
    """The sequence of the stream's latest message; None: whichever that is."""
    ttl: int | None = None
    """Seconds after which the server removes it."""

    def headers(self) -> dict[str, str]:
        """Return its headers."""
        headers: dict[str, str] = {}
        if self.expected is not None:
            headers[EXPECTED] = str(self.expected)
            if self.among is not None:
                headers[EXPECTED + "-Subject"] = self.among
        if self.end is not None:
            headers[EXPECTED_END] = str(self.end)
        if self.ttl is not None:
            headers["Nats-TTL"] = f"{self.ttl}s"
        return headers
