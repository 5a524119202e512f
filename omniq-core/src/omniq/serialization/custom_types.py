"""Values of an application's classes that are more than their fields: enums, models of pydantic, derived classes.

Where only trying tells whether such a value comes back as it was, it is tried: see :func:`verified`.
"""

from __future__ import annotations

import enum
import inspect
import sys
from collections import ChainMap
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from omniq.serialization.codec import (
    TAG,
    Codec,
    CodecError,
    Function,
    chained,
    class_codec,
    guarded,
    key_step,
    progress,
    type_name,
    unknown_field,
    unwrapping,
    wrapping,
)
from omniq.serialization.hints import hint_name
from omniq.serialization.json_text import dumps, loads
from omniq.serialization.values import value_codec

if TYPE_CHECKING:
    import cattrs

__all__ = ["attributes", "derived_codec", "enum_codec", "foreign_codec", "is_model", "model_codec", "verified"]

_BASES: dict[type, Function] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: bytes.__bytes__,
}


# Trial decoding


def verified(
    name: str,
    encode: Function,
    decode: Function,
    hidden: Function | None = None,
    *,
    advice: str = "make the class's constructor take what its fields hold",
) -> Function:
    """Make an encoder check that what it encodes can be decoded to the same.

    A converter, a ``__post_init__`` or a constructor of the class's own may change a value in ways that only trying
    tells, and a task must not fail in the worker for what the caller could have been told. Inside a value that is being
    checked no other is: the outermost check covers all.

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


def attributes(value: Any) -> Any:
    """Return what an instance of a class derived from a built-in one holds beside the built-in value."""
    return getattr(value, "__dict__", None) or None


# Enums, and classes derived from str, int, float or bytes


def enum_codec(cls: type[enum.Enum]) -> Codec:
    """Make the codec of an enum: the name of the member; for flags, which are combined, the value."""
    name = hint_name(cls)
    is_flag = issubclass(cls, enum.Flag)

    def combined(value: Any) -> Any:
        flags = cls(value)
        if type(flags) is not cls:
            raise ValueError("an enum may make another value of what it does not know")
        return flags

    member_of: Function = combined if is_flag else dict(cls.__members__).__getitem__

    def decode(key: Any) -> Any:
        try:
            return member_of(key)
        except Exception:  # how an enum refuses a value may be the application's code
            raise CodecError(
                f"{name} has no member {key_step(key)[1:-1]}; its members may have changed since this was stored"
            ) from None

    return _on_base(cls, cls, int if is_flag else str, attrgetter("_value_" if is_flag else "_name_"), decode)


def derived_codec(hint: Any, cls: type) -> Codec | None:
    """Make the codec of a class derived from str, int, float or bytes; None if it is derived from none of them.

    Its JSON is that of the base.

    :param hint: the class, or a generic one with its arguments.
    """
    base = next((known for known in _BASES if issubclass(cls, known)), None)
    if base is None:
        return None
    encode_base, plain = value_codec(base).encode, _BASES[base]

    def encode(value: Any) -> Any:
        return encode_base(plain(value))

    make = guarded(cls, f"{hint_name(hint)} cannot be made from its stored value")
    codec = _on_base(hint, cls, base, encode, make)
    codec.encoders[cls] = verified(codec.name, encode, codec.decode, attributes)
    return codec


def _on_base(hint: Any, cls: type, base: type, encode: Function, decode: Function) -> Codec:
    """Make the codec of a class whose JSON is that of a class of single values.

    :param decode: makes an instance of a value of the base.
    """
    of_base = value_codec(base)
    decoders: dict[Any, Function] = dict.fromkeys(of_base.exact, decode)
    decoders |= {tag: chained(read, decode) for tag, read in of_base.decoders.items()}
    return class_codec(hint, cls, encode, decoders, flat=True)


# Models of pydantic, which is not imported here: a model brings it along


def is_model(cls: type) -> bool:
    """Tell whether a class is a pydantic model (of pydantic 2 or later)."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(cls, pydantic.BaseModel) and hasattr(cls, "model_validate_json")


def model_codec(cls: Any) -> Codec:
    """Make the codec of a pydantic model: the JSON that pydantic makes of it.

    What pydantic does not give back as it was is refused: it is tried with every value.
    """
    name = hint_name(cls)
    is_root = bool(getattr(cls, "__pydantic_root_model__", False))
    # Since 2.11; before, the JSON has the aliases, and models with two of them for a field are refused.
    by_name = "by_name" in inspect.signature(cls.model_validate_json).parameters
    names = {"by_alias": False, "by_name": True} if by_name else {}
    known = set(cls.model_fields) | {one.alias for one in cls.model_fields.values()}
    takes_all = is_root or cls.model_config.get("extra") == "allow"

    # Serializers and validators may be the application's code. What pydantic would warn of comes back as something
    # else, and is refused below.
    dump = guarded(
        partial(cls.model_dump, mode="json", by_alias=not by_name, round_trip=True, warnings=False),
        f"pydantic cannot make JSON of this {name}",
    )
    validate = guarded(partial(cls.model_validate_json, **names), f"{name} does not take its stored fields")

    def encode(value: Any) -> Any:
        tree = dump(value)
        if not is_root and TAG in tree:
            raise CodecError(f"this {name} has a field {TAG!r}, which a payload cannot have; rename it")
        difference = _difference(value, decode(loads(dumps(tree))))
        if difference is not None:
            raise CodecError(
                f"this {name} does not come back from pydantic's own JSON as it was (at {name}{difference}); annotate "
                "that field with the class of its value, or convert it"
            )
        return tree

    def decode(tree: Any) -> Any:
        unknown = [] if takes_all else [key for key in tree if key not in known]
        if unknown:
            raise unknown_field(name, unknown[0])
        return validate(dumps(tree))

    if not is_root:
        return class_codec(cls, cls, encode, {dict: decode}, fits=lambda tree: tree.keys() <= cls.model_fields.keys())
    # A root model's JSON may be of any form, so it needs the tag to be known by.
    codec = class_codec(cls, cls, wrapping(name, encode), {})
    codec.decoders[name] = unwrapping(name, decode)
    return codec


def _difference(value: Any, copy: Any) -> str | None:
    """Return the path to the first place where two values differ, be it in type only; None if they do not."""
    if type(value) is not type(copy):
        return ""
    if isinstance(value, dict):
        return _first_difference(value, copy, "[{!r}]")
    if isinstance(value, list | tuple):
        return _first_difference(dict(enumerate(value)), dict(enumerate(copy)), "[{}]")
    if hasattr(type(value), "model_fields"):
        return _first_difference(_state(value), _state(copy), ".{}")
    same = value == copy or (value != value and copy != copy)  # which is how NaN is known
    return None if same else ""


def _state(value: Any) -> dict[str, Any]:
    beyond = (getattr(value, name, None) or {} for name in ("__pydantic_extra__", "__pydantic_private__"))
    return dict(ChainMap(vars(value), *beyond))


def _first_difference(value: dict[Any, Any], copy: dict[Any, Any], step: str) -> str | None:
    if [(type(key), key) for key in value] != [(type(key), key) for key in copy]:
        return ""
    for key, item in value.items():
        difference = _difference(item, copy[key])
        if difference is not None:
            return step.format(key) + difference
    return None


# Classes of no kind that OmniQ knows


def foreign_codec(hint: Any, cls: type, converter: Callable[[], cattrs.Converter], anything: Codec) -> Codec:
    """Make the codec of a class that only an application's cattrs hooks know: what they make, under its full name.

    :param hint: the class, or a generic one with its arguments.
    :param converter: gives the cattrs converter that has the hooks, or has none and every value is refused.
    :param anything: the codec of what a hook makes.
    """
    name, full_name = hint_name(hint), hint_name(hint, full=True)
    write = guarded(lambda value: converter().unstructure(value, cls), f"the cattrs hook for {name} failed")
    read = guarded(lambda made: converter().structure(made, cls), f"no {name} can be made with cattrs")

    def unstructure(value: Any) -> Any:
        made = write(value)
        if made is value:
            raise CodecError(
                f"cannot hold an instance of {name}; convert the value, register cattrs hooks for {name} with the "
                "serializer's converter, or use another serializer"
            )
        return anything.encode(made)

    def structure(tree: Any) -> Any:
        value = read(anything.decode(tree))
        if type(value) is not cls:
            raise CodecError(f"the cattrs hook for {name} made a {type_name(value)}")
        return value

    advice = f"correct the cattrs hooks for {name}"
    wrap, unwrap = wrapping(full_name, unstructure), unwrapping(full_name, structure)
    encoders = {cls: verified(name, wrap, unwrap, advice=advice)}
    return Codec(hint, encoders=encoders, decoders={full_name: unwrap}, self_describing=False)
