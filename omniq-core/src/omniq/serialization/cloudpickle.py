"""Anything that Python can hold: lambdas, closures, instances of classes that no annotation names.

Decoding a pickle runs code that the pickle chooses. So this serializer is never a fallback: a queue must name it, and
on a store that others can reach it needs a signing key, without which constructing the queue is an error.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from typing import Any

from omniq.errors import ArgumentsMismatch, SerializationError
from omniq.serialization import ArgumentTypes
from omniq.serialization.codec import describe

__all__ = ["CloudpickleSerializer", "serializer"]

# The same everywhere, so that workers may run a newer Python than producers; of Python 3.8 and later.
_PROTOCOL = 5


class CloudpickleSerializer:
    """Pickles by value what a worker could not import. See the module."""

    name = "cloudpickle"
    runs_code = True

    def exceeds(self, values: Iterable[Any], limit: int) -> bool:
        # What is in a container may be in it many times, and is pickled once.
        return any(type(value) in (str, bytes, bytearray) and len(value) > limit for value in values)

    def dump_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], types: ArgumentTypes) -> bytes:
        try:
            return _dumps((args, dict(kwargs)))
        except Exception as error:
            raise _refused(_culprit(args, kwargs), error) from error

    def load_arguments(self, data: bytes, types: ArgumentTypes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        made = _loads(data, "the arguments", ArgumentsMismatch)
        match made:
            case (tuple() as args, dict() as kwargs) if all(type(name) is str for name in kwargs):
                return args, kwargs
        raise SerializationError("the payload is no pair of a tuple and a dict", "the arguments")

    def dump_result(self, value: Any, hint: Any) -> bytes:
        try:
            return _dumps(value)
        except Exception as error:
            raise _refused("result", error) from error

    def load_result(self, data: bytes, hint: Any) -> Any:
        return _loads(data, "result")

    def load_tree(self, data: bytes) -> Any:
        return _loads(data, "the result of another task")

    def dump_tree(self, tree: Any) -> bytes:
        return _dumps(tree)


def _dumps(value: Any) -> bytes:
    # Tens of milliseconds to import, which a program that names the serializer but sends nothing need not wait for.
    import cloudpickle  # type: ignore[import-untyped]  # it has no types

    dumped: bytes = cloudpickle.dumps(value, protocol=_PROTOCOL)
    return dumped


def _loads(data: bytes, path: str, mismatch: type[SerializationError] = SerializationError) -> Any:
    try:
        return pickle.loads(data)
    except (AttributeError, ImportError, TypeError) as error:
        # Of a class or function that is not here, or here is another: a worker of another version may have it.
        raise mismatch(f"cannot be unpickled here: {describe(error)}", path) from error
    except Exception as error:
        # Unpickling runs the code of classes, which may raise anything.
        raise SerializationError(f"cannot be unpickled: {describe(error)}", path) from error


def _culprit(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the path to the argument that cannot be pickled."""
    values = {f"args[{index}]": value for index, value in enumerate(args)}
    values |= {f"kwargs[{name!r}]": value for name, value in kwargs.items()}
    for path, value in values.items():
        try:
            _dumps(value)
        except Exception:  # whichever it is, it has been told of already
            return path
    return "the arguments"


def _refused(path: str, error: Exception) -> SerializationError:
    return SerializationError(f"cannot be pickled: {describe(error)}", path)


serializer = CloudpickleSerializer()
