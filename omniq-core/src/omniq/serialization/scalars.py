"""Enums, literals, and application classes derived from str, int, float or bytes."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from omniq.serialization.codec import Codec, Function, unwrapping, wrapping
from omniq.serialization.errors import CodecError, describe
from omniq.serialization.values import value_codec
from omniq.serialization.verify import verified

__all__ = ["derived_codec", "enum_codec", "literal_codec"]

_BASES: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: bytes.__bytes__,
}


def enum_codec(name: str, full_name: str, cls: type[enum.Enum]) -> Codec:
    """Make the codec of an enum: the name of the member; for flags, which are combined, the value."""
    is_flag = issubclass(cls, enum.Flag)
    encode = attrgetter("_value_" if is_flag else "_name_")
    decode = _flag_decoder(name, cls) if is_flag else _member_decoder(name, cls)
    return Codec(
        name=name,
        encoders={cls: encode},
        scalar=decode,
        tags={name: unwrapping(name, decode)},
        label=name,
        full_label=full_name,
        named=True,
        self_describing=False,
        flat=True,
    )


def _member_decoder(name: str, cls: type[enum.Enum]) -> Function:
    members = dict(cls.__members__)

    def decode(tree: Any) -> Any:
        if type(tree) is not str:
            raise CodecError(f"expected the name of a member of {name}, but the payload has something else")
        member = members.get(tree)
        if member is None:
            raise CodecError(f"{name} has no member {tree[:40]!r}; its members may have changed since this was stored")
        return member

    return decode


def _flag_decoder(name: str, cls: type[enum.Enum]) -> Function:
    def decode(tree: Any) -> Any:
        if type(tree) is not int:
            raise CodecError(f"expected the value of a flag of {name}, but the payload has something else")
        try:
            member = cls(tree)
        except ValueError:
            member = None
        if type(member) is not cls:
            raise CodecError(f"{name} has no such flags; its members may have changed since this was stored")
        return member

    return decode


def literal_codec(name: str, values: Sequence[Any], codec_of: Callable[[Any], Codec]) -> Codec:
    """Make the codec of a ``Literal``.

    :param values: those that it allows.
    :param codec_of: gives the codec of a class.
    """
    allowed = {(type(value), value) for value in values}

    def check(value: Any) -> Any:
        if (type(value), value) not in allowed:
            raise CodecError(f"expected {name}, found another {type(value).__name__}")
        return value

    codec = Codec(name=name, scalar=check, flat=True)
    tags: dict[str, Function] = {}
    for kind in {type(value) for value in values}:
        of_kind = codec_of(kind)
        if of_kind.named:
            # Its JSON is a string, which another of the literals may be.
            codec.encoders[kind] = _then(check, wrapping(of_kind.label, of_kind.encode))
            tags[of_kind.label] = _then(unwrapping(of_kind.label, of_kind.decode), check)
            codec.self_describing = False
        else:
            codec.encoders[kind] = _then(check, of_kind.encode)
            tags |= {tag: _then(decode, check) for tag, decode in of_kind.tags.items()}
    codec.tags = tags
    codec.become(codec)
    return codec


def _then(first: Function, second: Function) -> Function:
    return lambda value: second(first(value))


def derived_codec(name: str, full_name: str, cls: type) -> Codec | None:
    """Make the codec of a class derived from str, int, float or bytes; None if it is derived from none of them.

    Its JSON is that of the base.
    """
    base = next((known for known in _BASES if issubclass(cls, known)), None)
    if base is None:
        return None
    of_base = value_codec(base)
    assert of_base is not None
    decode_base, encode_base, plain = of_base.decode, of_base.encode, _BASES[base]

    def decode(tree: Any) -> Any:
        value = decode_base(tree)
        try:
            return cls(value)
        except Exception as error:
            raise CodecError(f"{name} cannot be made from its stored value: {describe(error)}") from error

    return Codec(
        name=name,
        encoders={cls: verified(name, lambda value: encode_base(plain(value)), decode, _attributes)},
        scalar=decode,
        tags={**dict.fromkeys(of_base.tags, decode), name: unwrapping(name, decode)},
        label=name,
        full_label=full_name,
        named=True,
        self_describing=False,
        flat=True,
    )


def _attributes(value: Any) -> Any:
    return getattr(value, "__dict__", None) or None
