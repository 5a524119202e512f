"""Between Python values and what a store holds, for one queue: serializers, limits, and what a worker may decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import evolve

from omniq._tasks.pickled_functions import is_carried
from omniq._tasks.policies import decode_value, encode_value
from omniq._tasks.stand_ins import Ended
from omniq.errors import (
    ConfigurationError,
    CorruptRecord,
    PayloadRejected,
    PayloadTooLarge,
    ResultGone,
    SerializationError,
    UnknownPlugin,
    UpstreamFailed,
)
from omniq.retry import RetryPolicy
from omniq.schedule import Schedule
from omniq.serialization import ArgumentTypes, Serializer, Splicer, runs_code
from omniq.serialization.signing import SEAL_SIZE, Signer, unsealed
from omniq.storage.body import (
    Header,
    dump_header,
    is_unsigned,
    join_body,
    load_content,
    make_task,
    parts_of,
    payload_size,
    split_body,
)
from omniq.storage.escaping import shown
from omniq.task import NewTask, StoredTask, Succeeded, Task, TaskError, TaskState

if TYPE_CHECKING:
    from omniq.plugins import Plugins

__all__ = ["ANY_ARGUMENTS", "Admitted", "Codec", "FunctionDecoder"]

ANY_ARGUMENTS = ArgumentTypes()

Exceeds: TypeAlias = Callable[[Iterable[Any], int], bool]
"""What a serializer may have to tell cheaply that values are too large, see :class:`.Serializer`."""


class Admitted:
    """A task of which may be read, as a worker runs it: the store's record, and what is in its body.

    :class:`~omniq.task.Task` has it all in one, and takes longer to make than most else that is done for a task.

    :param stored: the record.
    :param header: how to run the arguments.
    :param payload: the encoded arguments.
    """

    __slots__ = ("_task", "delivery", "header", "id", "name", "payload", "serializer", "stored", "timeout")

    def __init__(self, stored: StoredTask, header: Header, payload: bytes) -> None:
        self.stored = stored
        self.id = stored.id
        self.delivery = stored.delivery
        self.name = stored.name
        self.header = header
        self.serializer = header.serializer
        self.timeout = header.timeout
        self.payload = payload
        self._task: Task | None = None

    @property
    def task(self) -> Task:
        """The task, made when it is first asked for."""
        if self._task is None:
            self._task = make_task(self.stored, self.header, self.payload)
        return self._task


class Codec:
    """Encodes and decodes for one queue.

    :param plugins: where serializers and retry policies are looked up.
    :param serializer: the name of the one to encode with.
    :param accept: the names of those that may be decoded.
    :param max_payload: the most bytes of encoded arguments or of a result, one's own and others'.
    :param signer: signs what is stored, and checks what comes from the store; None: nothing is signed.
    """

    def __init__(
        self,
        plugins: Plugins,
        *,
        serializer: str,
        accept: tuple[str, ...],
        max_payload: int,
        signer: Signer | None = None,
    ) -> None:
        self.serializer_name = serializer
        self.plugins = plugins
        self._serializer = plugins.serializer(serializer)
        self._exceeds: Exceeds | None = getattr(self._serializer, "exceeds", None)
        self._accepted = {name: plugins.serializer(name) for name in accept}
        self._limiters: dict[str, Exceeds | None] = {
            name: getattr(accepted, "exceeds", None) for name, accepted in self._accepted.items()
        }
        self.accepted = tuple(self._accepted)
        """The names of the serializers that may be decoded."""
        self.max_payload = max_payload
        self.signs = signer is not None
        """Whether it signs tasks."""
        self._signer = signer
        self._policies: dict[str, RetryPolicy] = {}
        self.carries = runs_code(self._serializer)
        """Whether a function can travel in a payload that this makes."""
        self.runs_carried = any(map(runs_code, self._accepted.values()))
        """Whether a function may come in a payload that this reads."""

    def check_trust(self, *, private: bool) -> None:
        """Refuse to decode what runs code when it is decoded, on a store that others can write to.

        :param private: whether the store lives within this process.
        :raises ConfigurationError: says what to do.
        """
        dangerous = [name for name, serializer in self._accepted.items() if runs_code(serializer)]
        if dangerous and not private and self._signer is None:
            raise ConfigurationError(
                f"serializer {dangerous[0]!r} runs whatever code a payload holds, and any client of the store can put "
                "one there: give the queue a signing_key (or set OMNIQ_SIGNING_KEY), without which only "
                "memory:// may have it; or use 'json'"
            )

    def for_child(self) -> dict[str, Any]:
        """Return what makes another codec like this one in a child process. It holds the keys: send it nowhere else."""
        return {
            "serializer": self.serializer_name,
            "accept": self.accepted,
            "max_payload": self.max_payload,
            "keys": None if self._signer is None else self._signer.reveal(),
        }

    @classmethod
    def in_child(cls, plugins: Plugins, *, keys: tuple[bytes, ...] | None, **settings: Any) -> Codec:
        """Make a codec of what :meth:`for_child` returned."""
        return cls(plugins, signer=None if keys is None else Signer(keys), **settings)

    # Arguments

    def dump_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], types: ArgumentTypes) -> bytes:
        """Encode a call's arguments.

        :raises SerializationError: if a value cannot be encoded; names the path to it.
        :raises PayloadTooLarge: if they are over the limit.
        """
        exceeds, limit = self._exceeds, self.max_payload
        if exceeds is not None and (exceeds(args, limit) or (kwargs and exceeds(kwargs.values(), limit))):
            raise _too_large("the arguments take", f"more than {limit:,} bytes, and the limit is {limit:,}")
        return self._bounded(self._serializer.dump_arguments(args, kwargs, types), "the arguments take")

    def dump_header(self, policy: str, **fields: Any) -> bytes:
        """Return the header of a task's body, which names this queue's serializer.

        :param policy: the text of its retry policy, see :meth:`dump_policy`.
        :param fields: the other fields of :class:`~omniq.storage.body.Header`.
        """
        return dump_header(Header(serializer=self.serializer_name, retry=policy, **fields))

    def sign(self, new: NewTask) -> NewTask:
        """Return a task with its signature, which takes the place of any that it had."""
        if self._signer is None and is_unsigned(new.body):
            return new
        _, content = split_body(new.body)
        if self._signer is None:
            return evolve(new, body=join_body(content))
        return evolve(new, body=join_body(content, self._signer.task_signature(new, content)))

    def admit(self, stored: StoredTask) -> Task:
        """Return a task of which may be read: its arguments, and its retry policy.

        :raises PayloadRejected: if nothing of it may be read: it is too large, unsigned or altered, of a serializer
            that this queue does not accept, or its body is none.
        """
        return self.admit_record(stored).task

    def admit_record(self, stored: StoredTask) -> Admitted:
        """Do :meth:`admit` without making the task, which takes longer and which few need."""
        try:
            signature, content = split_body(stored.body)
            if len(content) > self.max_payload and (size := payload_size(content)) > self.max_payload:
                raise PayloadRejected(
                    f"the payload of task {shown(stored.id)} takes {size:,} bytes, and the limit here is "
                    f"{self.max_payload:,} (max_payload); it was not read"
                )
            if self._signer is not None:
                self._signer.check_task(stored, signature, content)
            task = Admitted(stored, *load_content(content))
        except CorruptRecord as error:
            raise PayloadRejected(f"task {shown(stored.id)} cannot be read: {error}") from error
        serializer = self._accepting(task)
        if is_carried(task.name) and not runs_code(serializer):
            raise PayloadRejected(
                f"task {shown(task.id)} says that its function is in its payload, which {task.serializer!r} cannot "
                "hold; its payload was not read"
            )
        return task

    def decode_arguments(self, task: Task | Admitted, types: ArgumentTypes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode the arguments of a task that was admitted.

        :raises SerializationError: if they cannot be decoded.
        """
        return self._accepted[task.serializer].load_arguments(task.payload, types)

    def load_arguments(self, task: Task, types: ArgumentTypes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode a task's arguments.

        :raises PayloadRejected: as for :meth:`admit`.
        :raises SerializationError: if they cannot be decoded.
        """
        return self.decode_arguments(self.admit(task), types)

    # References

    def resolved(self, task: Task | Admitted, parents: Mapping[str, StoredTask | None]) -> Task | Admitted:
        """Return a task that was admitted, with others' results in its arguments.

        :param parents: the records of the tasks that it refers to, by id; None for one that is gone.
        :raises UpstreamFailed: if one whose result it takes did not succeed.
        :raises ResultGone: if one is not there any more.
        :raises PayloadRejected: if a result must not be read, see :meth:`load_result`.
        :raises SerializationError: if the task's serializer cannot take results of others.
        """
        serializer = self._accepting(task)
        if not isinstance(serializer, Splicer):
            raise SerializationError(f"serializer {task.serializer!r} cannot take results of other tasks")
        references = task.header.references if isinstance(task, Admitted) else task.references
        tree = serializer.load_tree(task.payload)
        for reference in references:
            ended = reference.kind.startswith("outcome")
            values = [
                self._outcome_tree(serializer, one, parents.get(one))
                if ended
                else self._result_tree(serializer, one, parents.get(one))
                for one in reference.ids
            ]
            group, *place = reference.path
            many = reference.kind.endswith("s")
            tree = _placed(tree, [0 if group == "args" else 1, *place], values if many else values[0])
        payload = serializer.dump_tree(tree)
        if isinstance(task, Admitted):
            return Admitted(task.stored, task.header, payload)
        return evolve(task, payload=payload)

    def _result_tree(self, serializer: Splicer, task_id: str, stored: StoredTask | None) -> Any:
        if stored is None:
            raise ResultGone(f"the result of task {shown(task_id)} is gone: it was deleted")
        if stored.state is not TaskState.SUCCEEDED:
            raise UpstreamFailed(f"task {shown(task_id)} ({shown(stored.name)}) has no result: it is {stored.state}")
        task = _with_body(stored)
        result = self._open_result(stored, task)
        if result is None:
            return None
        own = self._accepting(task)
        if own.name != serializer.name:
            result = serializer.dump_result(own.load_result(result, Any), Any)
        return serializer.load_tree(result)

    def _outcome_tree(self, serializer: Splicer, task_id: str, stored: StoredTask | None) -> Any:
        state = TaskState.CANCELLED if stored is None else stored.state
        error = None if stored is None else stored.error
        if stored is None:
            error = TaskError(type="ResultGone", message="its record was deleted")
        elif error is None and state is not TaskState.SUCCEEDED:
            told = "it was cancelled" if state is TaskState.CANCELLED else f"it is {state}, as it was retried"
            error = TaskError(type="TaskCancelled" if state is TaskState.CANCELLED else "NotFinished", message=told)
        ended: Ended[Any] = Ended(task_id, state, None, error)
        tree = serializer.load_tree(serializer.dump_result(ended, Ended[Any]))
        if stored is None or stored.state is not TaskState.SUCCEEDED:
            return tree
        output = self._result_tree(serializer, task_id, stored)
        return evolve(tree, output=output) if isinstance(tree, Ended) else {**tree, "output": output}

    # Results

    def dump_result(self, task: Task | Admitted, value: Any, hint: Any) -> bytes:
        """Encode a task's result with the task's own serializer.

        :raises SerializationError: if it cannot be encoded; names the path.
        :raises PayloadTooLarge: if it is over the limit.
        """
        serializer = self._accepting(task)
        exceeds = self._limiters[task.serializer]
        if exceeds is not None and exceeds((value,), self.max_payload):
            limit = self.max_payload
            raise _too_large("the result takes", f"more than {limit:,} bytes, and the limit is {limit:,}")
        result = self._bounded(serializer.dump_result(value, hint), "the result takes")
        return result if self._signer is None else self._signer.seal(task, result)

    def success(self, task: Task | Admitted, value: Any, hint: Any) -> Succeeded:
        """Return the outcome of a task that succeeded with a value.

        :raises SerializationError: if the value cannot be encoded, see :meth:`dump_result`.
        """
        return Succeeded(id=task.id, delivery=task.delivery, result=self.dump_result(task, value, hint))

    def load_result(self, stored: StoredTask, hint: Any) -> Any:
        """Decode a task's result.

        :param stored: the task, or its record.
        :return: the result; None for a task that has not succeeded.
        :raises PayloadRejected: if it is of a serializer that this queue does not accept, too large, unsigned or
            altered.
        :raises SerializationError: if it cannot be decoded.
        """
        task = _with_body(stored)
        result = self._open_result(stored, task)
        return None if result is None else self._accepting(task).load_result(result, hint)

    def _open_result(self, stored: StoredTask, task: Task | Admitted) -> bytes | None:
        """Return the encoded result of a task, checked."""
        sealed = stored.result_payload
        if sealed is None:
            if stored.state is TaskState.SUCCEEDED and self._signer is not None:
                raise PayloadRejected(f"task {shown(task.id)} is said to have succeeded, but there is no signed result")
            return None
        self._accepting(task)
        if len(sealed) > self.max_payload + SEAL_SIZE:
            raise PayloadRejected(
                f"the result of task {shown(task.id)} takes {len(sealed):,} bytes, and the limit here is "
                f"{self.max_payload:,} (max_payload); it was not read"
            )
        return unsealed(sealed) if self._signer is None else self._signer.unseal(task, sealed)

    def _accepting(self, task: Task | Admitted) -> Serializer:
        try:
            return self._accepted[task.serializer]
        except (KeyError, TypeError):
            accepted = ", ".join(sorted(self._accepted))
            raise PayloadRejected(
                f"task {shown(task.id)} is encoded with {shown(repr(task.serializer))}, which this queue does not "
                f"accept (accept={accepted}); its payload was not read"
            ) from None

    def _bounded(self, data: bytes, what: str) -> bytes:
        if len(data) > self.max_payload:
            raise _too_large(what, f"{len(data):,} bytes, and the limit is {self.max_payload:,}")
        return data

    # Schedules

    def sign_schedule(self, schedule: Schedule) -> Schedule:
        """Return a schedule whose template carries the schedule's signature, which is none of a task."""
        signature, content = split_body(schedule.task.body)
        fresh = b"" if self._signer is None else self._signer.schedule_signature(schedule, content)
        if fresh == signature:
            return schedule
        return evolve(schedule, task=evolve(schedule.task, body=join_body(content, fresh)))

    def admit_schedule(self, schedule: Schedule) -> None:
        """Refuse a schedule of which nothing may be read: not its trigger, and not what it enqueues.

        :raises PayloadRejected: if it is unsigned or altered.
        """
        if self._signer is not None:
            self._signer.check_schedule(schedule, *_split(schedule))

    def admit_replacing(self, schedule: Schedule) -> None:
        """Refuse to have a schedule replaced that others can read and this queue cannot.

        :raises PayloadRejected: if it was signed with a key that this queue does not have.
        """
        signature, content = _split(schedule)
        if signature and (self._signer is None or not self._signer.fits_schedule(schedule, signature, content)):
            raise PayloadRejected(
                f"schedule {shown(schedule.id)} was signed with a key that is not among this queue's, and stays as it "
                "is: give the queue that key, too, or store the schedule with queue.schedule(…, replace=True)"
            )

    # Retry policies

    def dump_policy(self, policy: RetryPolicy) -> str:
        """Return the text of a retry policy; empty if its kind is not one that another process could look up."""
        try:
            known = self.plugins.retry_policy(getattr(policy, "kind", "")) is type(policy)
        except UnknownPlugin:
            known = False
        return encode_value(policy) if known else ""

    def load_policy(self, text: str) -> RetryPolicy | None:
        """Return the retry policy of a text; None if the text is empty."""
        if not text:
            return None
        policy = self._policies.get(text)
        if policy is None:
            policy = decode_value(text, self.plugins.retry_policy)
            if len(self._policies) < 1000:
                self._policies[text] = policy
        return policy


def _with_body(stored: StoredTask) -> Task | Admitted:
    """Return a task or its record with what is in its body, where only the result is to be read."""
    return stored if isinstance(stored, Task) else Admitted(stored, *parts_of(stored))


def _placed(tree: Any, path: Sequence[Any], value: Any) -> Any:
    """Return a tree of lists, tuples and dicts with another value at a place."""
    if not path:
        return value
    head, *rest = path
    if isinstance(tree, dict) and tree.get("$") == "tuple":  # as JSON has one
        return {**tree, "v": _placed(tree["v"], path, value)}
    new = _placed(tree[head], rest, value)
    if isinstance(tree, tuple):
        return (*tree[:head], new, *tree[head + 1 :])
    tree[head] = new
    return tree


def _too_large(what: str, size: str) -> PayloadTooLarge:
    return PayloadTooLarge(f"{what} {size}; store the data elsewhere and hand over its address, or raise max_payload")


def _split(schedule: Schedule) -> tuple[bytes, bytes]:
    try:
        return split_body(schedule.task.body)
    except CorruptRecord as error:
        raise PayloadRejected(f"schedule {shown(schedule.id)} cannot be read: {error}") from error


class FunctionDecoder:
    """Reads the encoded parts of tasks with the annotations of the registered functions.

    :param types: returns a task's argument types and return hint by the name of its function.
    """

    def __init__(self, codec: Codec, types: Callable[[str], tuple[ArgumentTypes, Any]]) -> None:
        self._codec = codec
        self._types = types

    def arguments(self, task: Task) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._codec.load_arguments(task, self._types(task.name)[0])

    def retry_policy(self, task: Task) -> RetryPolicy | None:
        return self._codec.load_policy(self._codec.admit(task).retry_spec)

    def result(self, task: Task) -> Any:
        return self._codec.load_result(task, self._types(task.name)[1])
