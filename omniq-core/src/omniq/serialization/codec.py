"""What a codec is: the functions that take the values of one annotation to a JSON tree and back.

A codec is a set of tables, keyed by the exact class of a value on the way out and by the form of the JSON on the way
in. Tables can be merged, which is all that a union is.

Forms on the wire: None, bool, int, float, str, list and dict with str keys are JSON's own; everything else that tells
what it is without an annotation is an object with a tag, ``{"$": "datetime", "v": …}``; an instance of an
application's class is the plain object of its fields, and the annotation says of which class. A dict that itself has
a key ``"$"`` is written as tagged pairs, so that a tag is always OmniQ's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from attrs import define, field

from omniq.serialization.errors import CodecError, Malformed, type_name
from omniq.serialization.json_text import TAG, VALUE

__all__ = [
    "ATOMS",
    "MAX_DEPTH",
    "Codec",
    "Function",
    "deeper",
    "deeper_in_payloads",
    "is_tagged",
    "progress",
    "tagged",
    "unwrapping",
    "wrapping",
]

Function: TypeAlias = Callable[[Any], Any]

ATOMS: frozenset[type] = frozenset({type(None), bool, int, float, str})
"""The classes whose values are JSON as they are."""
MAX_DEPTH = 100
"""How many containers and objects may stand inside one another. One that holds only atoms is not counted."""


_SHOWN_TAG = 60


class _Progress(threading.local):
    """What the call under way in a thread has come to."""

    depth = 0
    verifying = False


progress = _Progress()


def deeper(function: Function) -> Function:
    """Make an encoder of containers or objects count the level that it adds.

    :raises Refusal: (the function made) if the levels are more than :data:`MAX_DEPTH`.
    """
    return _counting(function, MAX_DEPTH)


def deeper_in_payloads(function: Function) -> Function:
    """Make a decoder of containers or objects count the level that it adds.

    It allows a few more than :func:`deeper`, for what was no level on the way out: an integer in hexadecimal is one
    here.

    :raises Refusal: (the function made) if the levels are more than that.
    """
    return _counting(function, MAX_DEPTH + 10)


def _counting(function: Function, limit: int) -> Function:
    def counted(value: Any) -> Any:
        depth = progress.depth
        if depth >= limit:
            raise Malformed(
                f"is nested more than {limit} levels deep, or contains itself; flatten it, or send an id instead of it"
            )
        progress.depth = depth + 1
        try:
            return function(value)
        finally:
            progress.depth = depth

    return counted


@define(eq=False)
class Codec:
    """The functions for one annotation."""

    name: str
    """The annotation, for messages."""
    exact: frozenset[type] = frozenset()
    """The classes among :data:`ATOMS` whose values pass as they are, both ways."""
    encoders: dict[type, Function] = field(factory=dict)
    """By exact class, what makes the JSON of a value."""
    array: Function | None = None
    """What makes a value from a JSON array."""
    plain: Function | None = None
    """What makes a value from a JSON object without a tag."""
    scalar: Function | None = None
    """What makes a value from a JSON scalar that is none of ``exact``."""
    tags: Mapping[str, Function] = field(factory=dict)
    """By tag, what makes a value from the tagged object."""
    label: str = ""
    """The tag that a value gets where a union has others that look the same."""
    full_label: str = ""
    """The same with the module, for where two labels are equal."""
    named: bool = False
    """Whether its values are of an application's class."""
    self_describing: bool = True
    """Whether its JSON tells what it is without the annotation."""
    flat: bool = False
    """Whether its values hold no other values."""
    fits: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether the keys of a JSON object are those of its class."""
    encode: Function = field(init=False)
    decode: Function = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.encode = self._make_encode()
        self.decode = self._make_decode()

    def become(self, other: Codec) -> None:
        """Take over the tables of another: for a codec that must exist before its parts do."""
        self.exact, self.encoders, self.tags = other.exact, other.encoders, other.tags
        self.array, self.plain, self.scalar = other.array, other.plain, other.scalar
        self.__attrs_post_init__()

    def _make_encode(self) -> Function:
        exact, encoders = self.exact, self.encoders

        def encode(value: Any) -> Any:
            kind = type(value)
            if kind in exact:
                return value
            encode_kind = encoders.get(kind)
            if encode_kind is None:
                raise self.unexpected(value)
            return encode_kind(value)

        return encode

    def _make_decode(self) -> Function:
        exact, tags = self.exact, self.tags

        def decode(tree: Any) -> Any:
            kind = type(tree)
            if kind is dict:
                if TAG in tree:
                    tag = tree[TAG]
                    decode_kind = tags.get(tag) if type(tag) is str else None
                else:
                    decode_kind = self.plain
            elif kind in exact:
                return tree
            elif kind is list:
                decode_kind = self.array
            else:
                decode_kind = self.scalar
            if decode_kind is None:
                raise CodecError(f"expected {self.name}, but the payload has {_form(tree)}")
            return decode_kind(tree)

        return decode

    def unexpected(self, value: Any) -> CodecError:
        """Say why a value is not taken, and what to do."""
        given = type_name(value)
        base = next((kind for kind in type(value).__mro__ if kind in self.encoders or kind in self.exact), None)
        if base is not None:
            return CodecError(
                f"expected {self.name}, was given {given}, a subclass of {base.__name__} whose type would be lost; "
                f"annotate it with {given}, or convert the value"
            )
        if self.name == "Any":
            return CodecError(
                f"cannot hold an instance of {given} that no annotation announces; annotate it with the class, convert "
                "the value, or use another serializer"
            )
        return CodecError(f"expected {self.name}, was given {given}; convert the value, or change the annotation")


def _form(tree: Any) -> str:
    if tree is None:
        return "null"
    if type(tree) is dict:
        tag = tree.get(TAG)
        return f"an object tagged {tag[:_SHOWN_TAG]!r}" if type(tag) is str else "an object"
    names = {list: "an array", str: "a string", bool: "a boolean", int: "an integer", float: "a float"}
    return names[type(tree)]


def tagged(tag: str, value: Any) -> dict[str, Any]:
    """Make the JSON of something that a tag names."""
    return {TAG: tag, VALUE: value}


def is_tagged(tree: Mapping[str, Any], *optional: str) -> bool:
    """Tell whether a tagged object has a value and, beyond it, no key that is not optional."""
    if VALUE not in tree:
        return False
    # By far most have no more than the tag and the value.
    return len(tree) == 2 or len(tree) == 2 + sum(key in tree for key in optional)


def wrapping(label: str, encode: Function) -> Function:
    """Make an encoder put its JSON under a tag."""
    return lambda value: {TAG: label, VALUE: encode(value)}


def unwrapping(label: str, decode: Function) -> Function:
    """Make a decoder for what :func:`wrapping` made."""

    def unwrap(tree: Any) -> Any:
        if not is_tagged(tree):
            raise Malformed(f"a payload tagged {label!r} has other keys than that form has")
        return decode(tree[VALUE])

    return unwrap
