"""What a codec is: the functions that take the values of one annotation to a JSON tree and back.

A codec is two tables: encoders by the exact class of a value, and decoders by the form of the JSON. Tables can be
merged, which is all that a union is.

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

from omniq.errors import ArgumentsMismatch, SerializationError
from omniq.serialization.hints import hint_name

__all__ = [
    "ATOMS",
    "MAX_PAYLOAD_DEPTH",
    "TAG",
    "VALUE",
    "Codec",
    "CodecError",
    "Function",
    "Malformed",
    "chained",
    "class_codec",
    "deeper",
    "describe",
    "guarded",
    "key_step",
    "progress",
    "tagged",
    "type_name",
    "unknown_field",
    "unwrapping",
    "wrapping",
]

Function: TypeAlias = Callable[[Any], Any]

TAG = "$"
"""The key that marks a JSON object as the form of something else; its value says of what."""
VALUE = "v"
"""The key of what the tagged thing is made from."""
ATOMS: frozenset[type] = frozenset({type(None), bool, int, float, str})
"""The classes whose values are JSON as they are."""
MAX_DEPTH = 100
"""How many containers and objects may stand inside one another. One that holds only atoms is not counted."""
MAX_PAYLOAD_DEPTH = MAX_DEPTH + 10
"""The same on the way in, where a few more may be levels: an integer in hexadecimal is one."""

_SHOWN_TAG = 60
_SHOWN_STEPS = 12
_SHOWN_KEY = 40
_SHOWN_ERROR = 300


# Refusals


class CodecError(Exception):
    """A value that cannot be encoded, or a payload that cannot be decoded.

    It starts where the trouble is and gathers one step of the path at every level on its way up, so that no path is
    carried along for the values that are fine.

    :param message: what is wrong and what to do about it.
    """

    of_arguments: type[SerializationError] = ArgumentsMismatch

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.steps: list[str] = []

    def error(self, root: str, *, of_arguments: bool = False) -> SerializationError:
        """Make the public error.

        :param root: the path to the outermost value, such as ``args[0]``.
        :param of_arguments: whether arguments were read, which another version of the program may take.
        """
        steps = self.steps[::-1]
        if len(steps) > _SHOWN_STEPS:
            steps = [*steps[:_SHOWN_STEPS], "..."]
        kind = self.of_arguments if of_arguments else SerializationError
        return kind(self.message, root + "".join(steps))


class Malformed(CodecError):
    """A payload that no annotation could take: it is not of the form that it says it is."""

    of_arguments = SerializationError


def key_step(key: Any) -> str:
    """Return the step of the path for a mapping's key."""
    if type(key) not in ATOMS:
        # Its repr may be endless, or run code that fails.
        return f"[<{type_name(key)}>]"
    try:
        text = repr(key)
    except ValueError:  # an int with more digits than Python is willing to write
        return "[<int>]"
    return f"[{text}]" if len(text) <= _SHOWN_KEY else f"[{text[:_SHOWN_KEY]}...]"


def describe(error: BaseException) -> str:
    """Write an error that foreign code raised, in no more than a line or two."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    return f"{type_name(error)}: {text[:_SHOWN_ERROR]}{'...' if len(text) > _SHOWN_ERROR else ''}"


def type_name(value: Any) -> str:
    """Name a value's class as its author wrote it."""
    return type(value).__qualname__.rpartition("<locals>.")[2]


def unknown_field(name: str, key: str) -> CodecError:
    """Say that a class does not have a field that a payload has, and what to do."""
    return CodecError(
        f"{name} has no field {key_step(key)[1:-1]}, which the payload has; keep a removed field as long as such "
        "payloads are stored"
    )


def guarded(function: Callable[..., Any], what: str, kind: type[CodecError] = CodecError) -> Callable[..., Any]:
    """Make a function that may be the application's, and raise anything, refuse instead.

    :param function: takes a value, or a value and something more.
    :param what: what it means that the function failed.
    :param kind: how it refuses.
    """

    def guard(value: Any, more: Any = None) -> Any:
        try:
            return function(value) if more is None else function(value, more)
        except (CodecError, RecursionError):
            raise
        except Exception as error:
            raise kind(f"{what}: {describe(error)}") from error

    return guard


# Depth


class _Progress(threading.local):
    """What the call under way in a thread has come to."""

    depth = 0
    verifying = False


progress = _Progress()


def deeper(function: Function, limit: int = MAX_DEPTH) -> Function:
    """Make an encoder or decoder of containers or objects count the level that it adds.

    :raises CodecError: (the function made) if the levels are more than the limit.
    """

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


# Codecs


@define(eq=False)
class Codec:
    """The functions for one annotation."""

    hint: Any
    """The annotation."""
    exact: frozenset[type] = frozenset()
    """The classes among :data:`ATOMS` whose values pass as they are, both ways."""
    encoders: dict[type, Function] = field(factory=dict)
    """By exact class, what makes the JSON of a value."""
    decoders: dict[Any, Function] = field(factory=dict)
    """What makes a value of JSON, by the class that it is read as, and of a tagged object by its tag."""
    named: bool = False
    """Whether its values are of an application's class."""
    self_describing: bool = True
    """Whether its JSON tells what it is without the annotation."""
    flat: bool = False
    """Whether its values hold no other values."""
    fits: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether the keys of a JSON object are those of its class."""
    name: str = field(init=False)
    """The annotation, for messages, and as the tag that a value gets where a union has others that look the same."""
    encode: Function = field(init=False)
    decode: Function = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.name = hint_name(self.hint)
        self.encode = self._make_encode()
        self.decode = self._make_decode()

    def become(self, other: Codec) -> None:
        """Take over the tables of another: for a codec that must exist before its parts do."""
        self.exact, self.encoders, self.decoders = other.exact, other.encoders, other.decoders
        self.__attrs_post_init__()

    def decode_now(self, tree: Any) -> Any:
        """Decode in the quickest way that is known by now: classes come by one with their first value."""
        return self.decode(tree)

    def _make_encode(self) -> Function:
        exact, encoders = self.exact, self.encoders

        def encode(value: Any) -> Any:
            kind = type(value)
            if kind in exact:
                return value
            encode_kind = encoders.get(kind)
            if encode_kind is None:
                raise self._unexpected(value)
            return encode_kind(value)

        return encode

    def _make_decode(self) -> Function:
        exact, decoders = self.exact, self.decoders

        def decode(tree: Any) -> Any:
            form: Any = type(tree)
            if form is dict:
                if TAG in tree:
                    tag = tree[TAG]
                    form = tag if type(tag) is str else None
            elif form in exact:
                return tree
            decode_form = decoders.get(form)
            if decode_form is None:
                raise CodecError(f"expected {self.name}, but the payload has {_shown_form(tree)}")
            return decode_form(tree)

        return decode

    def _unexpected(self, value: Any) -> CodecError:
        """Say why a value is not taken, and what to do."""
        given, advice = type_name(value), "convert the value, or change the annotation"
        base = next((kind for kind in type(value).__mro__ if kind in self.encoders or kind in self.exact), None)
        if base is not None:
            given += f", a subclass of {base.__name__} whose type would be lost"
            advice = f"annotate it with {type_name(value)}, or convert the value"
        elif self.hint is Any:
            return CodecError(
                f"cannot hold an instance of {given} that no annotation announces; annotate it with the class, convert "
                "the value, or use another serializer"
            )
        return CodecError(f"expected {self.name}, was given {given}; {advice}")


def class_codec(hint: Any, cls: type, encode: Function, decoders: Mapping[Any, Function], **known: Any) -> Codec:
    """Make the codec of an application's class, whose JSON says of which class it is only where a union needs it to.

    :param hint: the class, or a generic one with its arguments.
    :param cls: the class of the values.
    :param decoders: what makes a value of JSON without the tag.
    :param known: what else the codec says of its values.
    """
    codec = Codec(hint, encoders={cls: encode}, decoders={**decoders}, named=True, self_describing=False, **known)
    codec.decoders[codec.name] = unwrapping(codec.name, codec.decode_now)
    return codec


def _shown_form(tree: Any) -> str:
    if tree is None:
        return "null"
    if type(tree) is dict:
        tag = tree.get(TAG)
        return f"an object tagged {tag[:_SHOWN_TAG]!r}" if type(tag) is str else "an object"
    names = {list: "an array", str: "a string", bool: "a boolean", int: "an integer", float: "a float"}
    return names[type(tree)]


# Tags


def tagged(tag: str, value: Any) -> dict[str, Any]:
    """Make the JSON of something that a tag names."""
    return {TAG: tag, VALUE: value}


def wrapping(tag: str, encode: Function) -> Function:
    """Make an encoder put its JSON under a tag."""
    return lambda value: {TAG: tag, VALUE: encode(value)}


def chained(first: Function, second: Function) -> Function:
    """Make one function of two: the second is given what the first returns."""
    return lambda value: second(first(value))


def unwrapping(tag: str, decode: Callable[..., Any], *optional: str, form: type | None = None) -> Function:
    """Make a decoder of what stands under a tag.

    :param decode: makes a value of the JSON under the tag; is given the keys beside that, too, if there are any.
    :param optional: the keys that may stand there.
    :param form: the class that the JSON is read as; None: any, which the decoder looks at.
    """

    def unwrap(tree: Any) -> Any:
        if VALUE in tree and (form is None or type(tree[VALUE]) is form):
            # By far most have no more than the tag and the value.
            if len(tree) == 2:
                return decode(tree[VALUE])
            beside = {key: tree[key] for key in optional if key in tree}
            if len(tree) == 2 + len(beside):
                return decode(tree[VALUE], beside)
        raise Malformed(f"a payload tagged {tag!r} has other keys, or another value, than that form has")

    return unwrap
