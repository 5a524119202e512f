"""Trial decoding, for classes whose constructor may not give back what it is given.

A converter, a ``__post_init__`` or a constructor of the class's own may change a value in ways that only trying
tells. So values of such classes are decoded as soon as they are encoded, and refused if they do not come back as they
were: a task must not fail in the worker for what the caller could have been told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omniq.serialization.codec import Function, progress
from omniq.serialization.errors import CodecError
from omniq.serialization.json_text import dumps, loads

__all__ = ["verified"]


def verified(
    name: str,
    encode: Function,
    decode: Function,
    hidden: Callable[[Any], Any] | None = None,
    *,
    advice: str = "make the class's constructor take what its fields hold",
) -> Function:
    """Make an encoder check that what it encodes can be decoded to the same.

    Inside one that is being checked nothing else is: the outermost check covers all.

    :param name: the class, for messages.
    :param hidden: gives what a value holds beyond its JSON and must hold again.
    :param advice: what else than converting the value would help.
    """

    def check(value: Any, tree: Any) -> None:
        text = dumps(tree)
        # Decoding the tree itself could share lists with the value, for the constructor to change.
        copy = decode(loads(text))
        if type(copy) is not type(value):
            raise CodecError(f"{name} makes an instance of another class from its own fields")
        again = encode(copy)
        if dumps(again) != text:
            raise CodecError(f"{name} does not come back as it was from its own fields{_differences(tree, again)}")
        if hidden is not None and hidden(copy) != hidden(value):
            raise CodecError(f"this {name} holds something beyond its fields, which would be lost")

    def encode_and_check(value: Any) -> Any:
        if progress.verifying:
            return encode(value)
        progress.verifying = True
        try:
            tree = encode(value)
            try:
                check(value, tree)
            except CodecError as refusal:
                refusal.steps.clear()
                refusal.message += f"; convert the value, or {advice}"
                raise
        finally:
            progress.verifying = False
        return tree

    return encode_and_check


def _differences(tree: Any, again: Any) -> str:
    if type(tree) is not dict or type(again) is not dict:
        return ""
    different = [key for key in tree if dumps(tree[key]) != dumps(again.get(key))]
    return f" (different: {', '.join(different)})" if different else ""
