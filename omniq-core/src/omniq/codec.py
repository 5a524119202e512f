"""Between Python values and what a store holds, for one queue: serializers, limits, and what a worker may decode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from omniq.errors import PayloadRejected, PayloadTooLarge, UnknownPlugin
from omniq.policies import decode_value, encode_value
from omniq.retry import RetryPolicy
from omniq.serialization import ArgumentTypes, Serializer
from omniq.task import Task

if TYPE_CHECKING:
    from omniq.plugins import Plugins

__all__ = ["ANY_ARGUMENTS", "Codec", "FunctionDecoder"]

ANY_ARGUMENTS = ArgumentTypes()


class Codec:
    """Encodes and decodes for one queue.

    :param plugins: where serializers and retry policies are looked up.
    :param serializer: the name of the one to encode with.
    :param accept: the names of those that may be decoded.
    :param max_payload: the most bytes of encoded arguments or of a result.
    """

    def __init__(self, plugins: Plugins, *, serializer: str, accept: tuple[str, ...], max_payload: int) -> None:
        self.serializer_name = serializer
        self.settings: dict[str, Any] = {"serializer": serializer, "accept": accept, "max_payload": max_payload}
        """What makes another codec like this one, in another process."""
        self._plugins = plugins
        self._serializer = plugins.serializer(serializer)
        self._accepted = {name: plugins.serializer(name) for name in accept}
        self._max_payload = max_payload
        self._policies: dict[str, RetryPolicy] = {}

    def dump_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], types: ArgumentTypes) -> bytes:
        """Encode a call's arguments.

        :raises SerializationError: if a value cannot be encoded; names the path to it.
        :raises PayloadTooLarge: if they are over the limit.
        """
        return self._bounded(self._serializer.dump_arguments(args, kwargs, types), "the arguments")

    def load_arguments(self, task: Task, types: ArgumentTypes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode a task's arguments.

        :raises PayloadRejected: if this queue does not accept the task's serializer.
        :raises SerializationError: if they cannot be decoded.
        """
        return self._accepting(task).load_arguments(task.payload, types)

    def dump_result(self, task: Task, value: Any, hint: Any) -> bytes:
        """Encode a task's result with the task's own serializer.

        :raises SerializationError: if it cannot be encoded; names the path.
        :raises PayloadTooLarge: if it is over the limit.
        """
        return self._bounded(self._accepting(task).dump_result(value, hint), "the result")

    def load_result(self, task: Task, hint: Any) -> Any:
        """Decode a task's result.

        :raises PayloadRejected: if this queue does not accept the task's serializer.
        :raises SerializationError: if it cannot be decoded.
        """
        if task.result_payload is None:
            return None
        return self._accepting(task).load_result(task.result_payload, hint)

    def _accepting(self, task: Task) -> Serializer:
        try:
            return self._accepted[task.serializer]
        except KeyError:
            accepted = ", ".join(sorted(self._accepted))
            raise PayloadRejected(
                f"task {task.id} is encoded with {task.serializer!r}, which this queue does not accept "
                f"(accept={accepted}); its payload was not read"
            ) from None

    def _bounded(self, data: bytes, what: str) -> bytes:
        if len(data) > self._max_payload:
            raise PayloadTooLarge(
                f"{what} take {len(data):,} bytes, and the limit is {self._max_payload:,}; "
                "store the data elsewhere and hand over its address, or raise max_payload"
            )
        return data

    def dump_policy(self, policy: RetryPolicy) -> str:
        """Give the text of a retry policy; empty if its kind is not one that another process could look up."""
        try:
            known = self._plugins.retry_policy(getattr(policy, "kind", "")) is type(policy)
        except UnknownPlugin:
            known = False
        return encode_value(policy) if known else ""

    def load_policy(self, text: str) -> RetryPolicy | None:
        """Give the retry policy of a text; None if the text is empty."""
        if not text:
            return None
        policy = self._policies.get(text)
        if policy is None:
            policy = decode_value(text, self._plugins.retry_policy)
            if len(self._policies) < 1000:
                self._policies[text] = policy
        return policy


class FunctionDecoder:
    """Reads the encoded parts of tasks with the annotations of the registered functions.

    :param types: gives a task's argument types and return hint by the name of its function.
    """

    def __init__(self, codec: Codec, types: Callable[[str], tuple[ArgumentTypes, Any]]) -> None:
        self._codec = codec
        self._types = types

    def arguments(self, task: Task) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._codec.load_arguments(task, self._types(task.name)[0])

    def retry_policy(self, task: Task) -> RetryPolicy | None:
        return self._codec.load_policy(task.retry_spec)

    def result(self, task: Task) -> Any:
        return self._codec.load_result(task, self._types(task.name)[1])
