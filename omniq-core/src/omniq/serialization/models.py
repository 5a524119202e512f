"""Instances of pydantic models, which have a conversion of their own.

pydantic is not imported here: a model brings it along.
"""

from __future__ import annotations

import inspect
import sys
from collections import ChainMap
from typing import Any

from omniq.serialization.codec import Codec, Function, unwrapping, wrapping
from omniq.serialization.errors import CodecError, describe, key_step
from omniq.serialization.hints import hint_name
from omniq.serialization.json_text import TAG, dumps, loads

__all__ = ["is_model", "model_codec"]


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
    decode = _decoder(name, cls, is_root=is_root)
    encode = _encoder(name, cls, decode, is_root=is_root)
    codec = Codec(
        name=name,
        # A root model's JSON may be of any form, so it needs the tag to be known by.
        encoders={cls: wrapping(name, encode) if is_root else encode},
        plain=None if is_root else decode,
        tags={name: unwrapping(name, decode)},
        label=name,
        full_label=hint_name(cls, full=True),
        named=True,
        self_describing=False,
    )
    if not is_root:
        codec.fits = lambda tree: tree.keys() <= cls.model_fields.keys()
    return codec


def _by_name(cls: Any) -> bool:
    # Since 2.11; before, the JSON has the aliases, and models with two of them for a field are refused.
    return "by_name" in inspect.signature(cls.model_validate_json).parameters


def _encoder(name: str, cls: Any, decode: Function, *, is_root: bool) -> Function:
    by_alias = not _by_name(cls)

    def encode(value: Any) -> Any:
        try:
            # What pydantic would warn of comes back as something else, and is refused below.
            tree = value.model_dump(mode="json", by_alias=by_alias, round_trip=True, warnings=False)
        except Exception as error:
            # Serializers may be the application's code.
            raise CodecError(f"pydantic cannot make JSON of this {name}: {describe(error)}") from error
        if not is_root and TAG in tree:
            raise CodecError(f"this {name} has a field {TAG!r}, which a payload cannot have; rename it")
        difference = _difference(value, decode(loads(dumps(tree))))
        if difference is not None:
            raise CodecError(
                f"this {name} does not come back from pydantic's own JSON as it was (at {name}{difference}); annotate "
                "that field with the class of its value, or convert it"
            )
        return tree

    return encode


def _decoder(name: str, cls: Any, *, is_root: bool) -> Function:
    names = {"by_alias": False, "by_name": True} if _by_name(cls) else {}
    known = set(cls.model_fields) | {one.alias for one in cls.model_fields.values()}
    takes_all = is_root or cls.model_config.get("extra") == "allow"

    def decode(tree: Any) -> Any:
        unknown = [] if takes_all else [key for key in tree if key not in known]
        if unknown:
            raise CodecError(
                f"{name} has no field {key_step(unknown[0])[1:-1]}, which the payload has; keep a removed field as "
                "long as such payloads are stored"
            )
        try:
            return cls.model_validate_json(dumps(tree), **names)
        except Exception as error:
            # Validators may be the application's code.
            raise CodecError(f"{name} does not take its stored fields: {describe(error)}") from error

    return decode


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
