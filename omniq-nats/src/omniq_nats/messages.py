"""What a stream holds and what is to be stored in it, and the ways in which storing can fail to say yes."""

from __future__ import annotations

from attrs import frozen

from omniq.errors import StorageUnavailable

__all__ = ["Conflict", "Lost", "Stored", "Unserved", "Write"]

EXPECTED_END = "Nats-Expected-Last-Sequence"
EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class Conflict(Exception):
    """Somebody else was quicker: the message that was to be replaced is another one by now."""


class Lost(StorageUnavailable):
    """No answer came: whether it was done is not known."""


class Unserved(StorageUnavailable):
    """Nobody was there to do it, so it was not done: the stream has no leader at the moment, or does not exist."""


@frozen
class Stored:
    """A message as the stream has it."""

    subject: str
    seq: int
    data: bytes


@frozen
class Write:
    """A message to store."""

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
        """Give its headers."""
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
