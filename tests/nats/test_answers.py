"""What the servers may answer, and which of it passes when the same is done again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from omniq.errors import PayloadTooLarge, StorageUnavailable
from omniq_nats.messages import Conflict, Full, Lost, Unserved
from omniq_nats.protocol import Message
from omniq_nats.transport import Transport
from tests.nats.support import make

# By the numbers of nats-server's errors.json.
WRITES = {
    10002: Full,  # resource limits exceeded for account
    10023: Full,  # insufficient resources: the limit of the server
    10028: Full,  # insufficient memory resources
    10047: Full,  # insufficient storage resources
    10077: Full,  # maximum bytes, or messages, of the stream
    10071: Conflict,  # wrong last sequence
    10164: Conflict,  # wrong last sequence, without the one that is right
    10054: PayloadTooLarge,  # message size exceeds maximum
    10008: StorageUnavailable,  # JetStream is temporarily unavailable
    10009: StorageUnavailable,  # not the leader
    10074: StorageUnavailable,  # a replica has no room
    10118: StorageUnavailable,  # the stream is offline
    10176: StorageUnavailable,  # a batch of which something got lost, as the leader changed
    99999: StorageUnavailable,  # whatever a server of tomorrow says
}


class Answered(Transport):
    """A connection to which one answer comes, whatever is asked."""

    said: dict[str, Any]

    @property
    def max_payload(self) -> int:
        return 1024 * 1024

    async def _repeat(self, subject: str, data: bytes, **_: Any) -> tuple[Message, list[Any]]:
        return Message(subject, json.dumps(self.said).encode()), []


def transport(**said: Any) -> Answered:
    made = Answered(make("nats://127.0.0.1:1")._settings)
    made.said = said
    return made


@pytest.mark.parametrize(("code", "kind"), WRITES.items())
def test_each_refusal_of_a_write_is_told_apart(code: int, kind: type[Exception]) -> None:
    said = {"error": {"code": 503, "err_code": code, "description": "what it says"}}
    with pytest.raises(kind) as caught:
        transport()._acknowledged(Message("inbox", json.dumps(said).encode()))
    assert type(caught.value) is kind
    # What a worker repeats until there is an answer, so that no finished work is thrown away.
    assert issubclass(kind, StorageUnavailable) == (kind not in (Conflict, PayloadTooLarge))


def test_what_may_have_been_done_can_be_repeated() -> None:
    assert issubclass(Lost, StorageUnavailable)
    assert issubclass(Unserved, StorageUnavailable)


def test_a_message_that_cannot_be_removed_at_the_moment_does_not_count_as_gone() -> None:
    away = transport(error={"code": 503, "err_code": 10008, "description": "temporarily unavailable"})
    with pytest.raises(Unserved, match="temporarily unavailable"):
        asyncio.run(away.remove_one(7))
    with pytest.raises(Unserved):
        asyncio.run(away.ends(["a"]))
    gone = transport(error={"code": 400, "err_code": 10057, "description": "message not found"})
    assert asyncio.run(gone.remove_one(7)) is False
    none = transport(error={"code": 404, "err_code": 10037, "description": "no message found"})
    assert asyncio.run(none.ends(["a"])) == [0]
