"""Signatures: what a store returns was written with the key, or it is not read.

HMAC-SHA256 over everything that decides what runs. Each field enters with its length before it, and each kind of
signed thing (a task, a schedule, a result) with a name of its own in front, so that no two of them can ever be the same
bytes. A task's signature holds for its id alone, a schedule's for its id, a result's for its task's id.

What says *when* something runs next, and how long it is kept, is not signed: a store computes and changes it, and
a client that can write to the store could as well hold a task back or remove it.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

from omniq.errors import ConfigurationError, PayloadRejected
from omniq.schedule import Schedule
from omniq.storage.escaping import shown
from omniq.task import NewTask, StoredTask

__all__ = ["ENVIRONMENT", "Signer", "make_signer", "unsealed"]

ENVIRONMENT = "OMNIQ_SIGNING_KEY"
SHORTEST = 16
"""Bytes that a key must have: fewer can be guessed."""

# What the signature's first byte says of its making; another way to sign would have another.
_VERSION = b"\x01"
_SIZE = 32
_SEAL = b"\x00omniq" + _VERSION
SEAL_SIZE = len(_SEAL) + _SIZE
"""By how many bytes a signed result is longer than a plain one."""

_TASK = b"omniq task 1\x00"
_SCHEDULE = b"omniq schedule 2\x00"
_RESULT = b"omniq result 1\x00"


def make_signer(keys: str | bytes | Iterable[str | bytes] | None, environment: Mapping[str, str]) -> Signer | None:
    """Make the signer of a queue; None if it signs nothing.

    :param keys: one key or several; None: those of the environment's ``OMNIQ_SIGNING_KEY``, separated by commas.
    :param environment: the environment variables.
    :raises ConfigurationError: if there are keys, but one of them is too short, or none is left. Never shows one.
    :raises TypeError: if they are neither text nor bytes.
    """
    source = "signing_key"
    if keys is None:
        text = environment.get(ENVIRONMENT)
        if text is None:
            return None
        if not text.strip():
            # A secret that did not arrive must not silently become a queue that checks nothing.
            raise ConfigurationError(f"{ENVIRONMENT} is set but empty; remove it to work without signatures")
        keys, source = [key.strip() for key in text.split(",")], ENVIRONMENT
    elif isinstance(keys, str | bytes):
        keys = [keys]
    elif not isinstance(keys, Iterable):
        raise TypeError(f"signing_key must be text or bytes, or a list of them, not a {type(keys).__name__}")
    return Signer([_as_bytes(key, source) for key in keys], source)


def _as_bytes(key: object, source: str) -> bytes:
    if isinstance(key, str):
        key = key.encode("utf-8", "surrogateescape")  # as an environment variable holds bytes that are no text
    if not isinstance(key, bytes):
        raise TypeError(f"{source} must be text or bytes, or a list of them, but one is a {type(key).__name__}")
    if len(key) < SHORTEST:
        raise ConfigurationError(
            f"a key of {source} has {len(key)} bytes, and fewer than {SHORTEST} can be guessed; "
            "make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return key


class Sealed(Protocol):
    """What of a task its result is sealed with."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def serializer(self) -> str: ...


class Signer:
    """Signs with the first of its keys, and takes what was signed with any of them.

    It never shows them: neither in its ``repr`` nor in ``vars``, and it cannot be pickled, so that no closure takes
    them to a store.

    :param keys: at least one.
    :param source: where they come from, for messages.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[bytes], source: str = "signing_key") -> None:
        if not keys:
            raise ConfigurationError(f"{source} names no key; leave it out to work without signatures")
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"<signer with {len(self._keys)} {'key' if len(self._keys) == 1 else 'keys'}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("signing keys are never pickled")

    def reveal(self) -> tuple[bytes, ...]:
        """Return the keys, for a child process of the worker's own. Nothing else may ask."""
        return self._keys

    # Tasks

    def task_signature(self, task: NewTask | StoredTask, content: bytes) -> bytes:
        """Return the signature of a task, which holds for its id alone.

        :param content: of the task's body, see :mod:`omniq.storage.body`.
        """
        return self._sign(_of_task(task, content))

    def check_task(self, task: StoredTask, signature: bytes, content: bytes) -> None:
        """Refuse a task that was not signed, or not as it is.

        :param signature: of the task's body, as is the content.
        :raises PayloadRejected: says which.
        """
        if not signature:
            raise PayloadRejected(f"task {shown(task.id)} is not signed; its payload was not read")
        if not self._fits(signature, _of_task, task, content):
            raise _rejected("task", task.id, "a copy of one with another id", "its payload was not read")

    # Schedules

    def schedule_signature(self, schedule: Schedule, content: bytes) -> bytes:
        """Return the signature of a schedule: of its id, of what it enqueues, and of how often and within which bounds.

        :param content: of the body of its task.
        """
        return self._sign(_of_schedule(schedule, content))

    def fits_schedule(self, schedule: Schedule, signature: bytes, content: bytes) -> bool:
        """Tell whether a schedule's signature is its own, by one of the keys."""
        return self._fits(signature, _of_schedule, schedule, content)

    def check_schedule(self, schedule: Schedule, signature: bytes, content: bytes) -> None:
        """Refuse a schedule that was not signed, or not as it is.

        :param signature: of the body of its task, as is the content.
        :raises PayloadRejected: says which.
        """
        if not signature:
            raise PayloadRejected(f"schedule {shown(schedule.id)} is not signed; nothing of it was read")
        if not self.fits_schedule(schedule, signature, content):
            raise _rejected("schedule", schedule.id, "a copy of another", "nothing of it was read")

    # Results

    def seal(self, task: Sealed, result: bytes) -> bytes:
        """Return a task's encoded result with its signature before it."""
        return b"".join((_SEAL, self._digest(self._keys[0], _of_result(task, result)), result))

    def unseal(self, task: Sealed, sealed: bytes) -> bytes:
        """Return a task's encoded result as it was before :meth:`seal`.

        :raises PayloadRejected: if it was not signed, not for this task, or not as it is.
        """
        if not sealed.startswith(_SEAL):
            raise PayloadRejected(f"the result of task {shown(task.id)} is not signed; it was not read")
        result = sealed[SEAL_SIZE:]
        if not self._fits(_VERSION + sealed[len(_SEAL) : SEAL_SIZE], _of_result, task, result):
            raise _rejected("result of task", task.id, "that of another task", "it was not read")
        return result

    # All of them

    def _sign(self, message: bytes) -> bytes:
        return _VERSION + self._digest(self._keys[0], message)

    def _fits(self, signature: bytes, message_of: Callable[..., bytes], *signed: Any) -> bool:
        try:
            message = message_of(*signed)
        except _UNSIGNABLE:
            return False
        return any(hmac.compare_digest(_VERSION + self._digest(key, message), signature) for key in self._keys)

    @staticmethod
    def _digest(key: bytes, message: bytes) -> bytes:
        return hmac.digest(key, message, "sha256")


def _rejected(kind: str, its_id: str, otherwise: str, unread: str) -> PayloadRejected:
    return PayloadRejected(
        f"the signature of the {kind} {shown(its_id)} does not fit: it was altered, is {otherwise}, or was signed with "
        f"a key that is not among this queue's; {unread}"
    )


def unsealed(result: bytes) -> bytes:
    """Return an encoded result without the signature that may stand before it, for queues that check none."""
    return result[SEAL_SIZE:] if result.startswith(_SEAL) else result


# What is signed, as bytes. A record whose fields are not even of the right types, as only a forged one's are, has none.

_UNSIGNABLE = (TypeError, ValueError, AttributeError, struct.error, OverflowError)


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _of_task(task: NewTask | StoredTask, content: bytes) -> bytes:
    return _message(_TASK, _text(task.id), *_call(task, content))


def _call(task: NewTask | StoredTask, content: bytes) -> tuple[bytes, ...]:
    return _text(task.queue), _text(task.name), b"%d" % task.max_retries, content


def _of_schedule(schedule: Schedule, content: bytes) -> bytes:
    how_often = (
        _text(schedule.trigger),
        _text(schedule.misfire),
        _text(schedule.overlap),
        struct.pack(">d", schedule.jitter),
        _moment(schedule.start),
        _moment(schedule.end),
    )
    return _message(_SCHEDULE, _text(schedule.id), *how_often, *_call(schedule.task, content))


def _moment(moment: datetime | None) -> bytes:
    return b"" if moment is None else _text(moment.astimezone(UTC).isoformat())


def _of_result(task: Sealed, result: bytes) -> bytes:
    return _message(_RESULT, _text(task.id), _text(task.name), _text(task.serializer), result)


def _message(kind: bytes, *parts: bytes) -> bytes:
    return b"".join((kind, struct.pack(f">{len(parts)}Q", *map(len, parts)), *parts))
