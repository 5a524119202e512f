"""How arguments and results become bytes and come back as they were.

A :class:`Serializer` is chosen by name for a queue, and its name travels with every task. Others come from plugins
through the hook ``omniq_serializers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from attrs import field, frozen

__all__ = ["ArgumentTypes", "Serializer", "Splicer", "runs_code"]


@frozen
class ArgumentTypes:
    """The annotations of a function's parameters, resolved to types. A parameter without one is ``Any``."""

    positional: tuple[Any, ...] = ()
    """The types of the parameters that can be given by position, in order."""
    var_positional: Any = Any
    """The type of each of ``*args``."""
    keyword: Mapping[str, Any] = field(factory=dict)
    """The types of the parameters that can be given by name."""
    var_keyword: Any = Any
    """The type of each value of ``**kwargs``."""

    def of_position(self, index: int) -> Any:
        """Return the type of the positional argument at an index.

        :param index: from 0.
        """
        return self.positional[index] if index < len(self.positional) else self.var_positional

    def of_keyword(self, name: str) -> Any:
        """Return the type of a keyword argument.

        :param name: the name in the call.
        """
        return self.keyword.get(name, self.var_keyword)


@runtime_checkable
class Serializer(Protocol):
    """Encodes arguments and results. Stateless and thread-safe.

    One whose decoding may run code that the bytes choose, as unpickling does, has an attribute ``runs_code = True``.
    Queues then take it only with a signing key, or on ``memory://``; and it can carry functions that are not
    registered.

    One that can tell cheaply that values are too large has a method ``exceeds(values, limit)``: whether their encoded
    form certainly has more bytes than that. Arguments and results are then refused before they are encoded.

    Errors are :class:`~omniq.errors.SerializationError` and name the path to the value: ``args[0].items[3].when``,
    ``kwargs['user'].email``, ``result[2]``.
    """

    name: str

    def dump_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], types: ArgumentTypes) -> bytes:
        """Encode a call's arguments.

        :param args: positional arguments.
        :param kwargs: keyword arguments.
        :param types: the function's annotations.
        :return: the bytes that are stored.
        :raises SerializationError: if a value cannot be encoded so that it comes back equal and of the same type.
        """
        ...

    def load_arguments(self, data: bytes, types: ArgumentTypes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode what :meth:`dump_arguments` made.

        :param data: the bytes as they were stored.
        :param types: the function's annotations.
        :return: the positional and the keyword arguments.
        :raises SerializationError: if the bytes are not its own.
        :raises ArgumentsMismatch: if they are, but do not fit the annotations. A worker puts the task back then: one of
            another version of the program may take them.
        """
        ...

    def dump_result(self, value: Any, hint: Any) -> bytes:
        """Encode a return value.

        :param value: what the function returned.
        :param hint: the return annotation, or ``Any``.
        :return: the bytes that are stored.
        :raises SerializationError: if the value cannot be encoded so that it comes back equal and of the same type.
        """
        ...

    def load_result(self, data: bytes, hint: Any) -> Any:
        """Decode what :meth:`dump_result` made.

        :param data: the bytes as they were stored.
        :param hint: the return annotation, or ``Any``.
        :return: the value.
        :raises SerializationError: if the bytes are not its own, or do not fit the annotation.
        """
        ...


@runtime_checkable
class Splicer(Serializer, Protocol):
    """What a serializer has besides if results of tasks can become arguments of others without being decoded.

    In between, encoded arguments are a pair of a list or tuple and a dict, as values of Python or as stand for them; a
    result is one such value.
    """

    def load_tree(self, data: bytes) -> Any:
        """Return encoded arguments, or an encoded result, as lists and dicts in which parts can be replaced.

        :param data: what ``dump_arguments``, ``dump_result`` or :meth:`dump_tree` made.
        :return: the tree.
        :raises SerializationError: if the bytes are none of its own.
        """
        ...

    def dump_tree(self, tree: Any) -> bytes:
        """Return what :meth:`load_tree` gave as bytes again.

        :param tree: the tree, of which parts may have been replaced by others.
        :return: encoded arguments.
        """
        ...


def runs_code(serializer: Serializer) -> bool:
    """Tell whether decoding with a serializer may run code that the bytes choose.

    :param serializer: the serializer.
    :return: what its ``runs_code`` says.
    """
    return bool(getattr(serializer, "runs_code", False))
