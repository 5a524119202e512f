"""Instances of classes with fields: attrs classes, dataclasses, NamedTuples, msgspec structs, TypedDicts.

cattrs writes the functions from an instance to a dict and back, with our codecs for the single fields. A class is
looked into when its first value comes, so classes that refer to themselves or to one another need no care.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn_from_attrs, make_dict_unstructure_fn_from_attrs

from omniq.serialization.class_fields import ClassFields, Field, class_fields_of, is_typed_dict
from omniq.serialization.codec import Codec, Function, deeper, deeper_in_payloads, tagged, unwrapping
from omniq.serialization.containers import pairs_of
from omniq.serialization.errors import CodecError, describe, key_step
from omniq.serialization.hints import hint_name
from omniq.serialization.json_text import TAG
from omniq.serialization.verify import verified

__all__ = ["class_codec"]

_CodecOf = Callable[[Any], Codec]


def class_codec(hint: Any, codec_of: _CodecOf) -> Codec:
    """Make the codec of a class with fields.

    :param hint: the class, or a generic one with its arguments.
    :param codec_of: gives the codec of a field's annotation.
    """
    cls = get_origin(hint) or hint
    name = hint_name(hint)
    codec = Codec(name=name, label=name, full_label=hint_name(hint, full=True), named=True, self_describing=False)
    kind = dict if is_typed_dict(cls) else cls
    inside = _Inside(codec, kind, hint, codec_of)
    codec.encoders[kind] = inside.encode
    codec.plain = inside.decode
    codec.fits = inside.fits
    codec.tags = {"dict": inside.decode_pairs} if kind is dict else {}
    codec.become(codec)
    codec.tags = {**codec.tags, name: unwrapping(name, codec.decode)}
    codec.become(codec)
    return codec


class _Inside:
    """What is known of a class as soon as its first value came."""

    def __init__(self, codec: Codec, kind: type, hint: Any, codec_of: _CodecOf) -> None:
        self._codec = codec
        self._kind = kind
        self._hint = hint
        self._codec_of = codec_of
        self._functions: tuple[Function, Function] | None = None
        self._shape: ClassFields | None = None

    def encode(self, value: Any) -> Any:
        return self._made()[0](value)

    def decode(self, tree: Any) -> Any:
        return self._made()[1](tree)

    def decode_pairs(self, tree: Any) -> Any:
        pairs = pairs_of(tree, "dict")
        if not all(type(key) is str for key, _ in pairs) or len({key for key, _ in pairs}) != len(pairs):
            raise CodecError(f"the payload has other keys than a {self._codec.name} has")
        return self.decode(dict(pairs))

    def fits(self, tree: Mapping[str, Any]) -> bool:
        fields = self._shape_made().fields
        return tree.keys() <= {one.name for one in fields} and all(one.name in tree for one in fields if one.required)

    def _shape_made(self) -> ClassFields:
        if self._shape is None:
            self._shape = class_fields_of(self._hint)
        return self._shape

    def _made(self) -> tuple[Function, Function]:
        if self._functions is None:
            shape = self._shape_made()
            name = self._codec.name
            fields = [_FieldCodec(one, self._codec_of(one.hint)) for one in shape.fields]
            if self._kind is dict:
                encode, decode = _dict_encoder(name, fields), _dict_decoder(fields)
            else:
                encode, decode = _written_by_cattrs(name, shape, fields, self._kind)
            decode = _checking_fields(name, fields, decode)
            if self._kind is not dict:
                decode = _taking_atoms(fields, self._kind, decode)
            if not all(one.codec.flat for one in fields):
                encode, decode = deeper(encode), deeper_in_payloads(decode)
            if not shape.faithful:
                encode = verified(name, encode, decode, shape.hidden)
            self._functions = encode, decode
            # From now on without the detour through here.
            self._codec.encoders[self._kind] = encode
            self._codec.plain = decode
            if self._kind is not dict and all(one.codec.flat for one in fields):
                self._codec.decode = _taking_atoms(fields, self._kind, self._codec.decode)
        return self._functions


class _FieldCodec:
    """The functions of one field, which put its name into the path of a refusal."""

    def __init__(self, field: Field, codec: Codec) -> None:
        self.name = field.name
        self.field = field
        self.codec = codec
        exact, step = codec.exact, f".{field.name}"

        def encode(value: Any) -> Any:
            if type(value) in exact:
                return value
            try:
                return codec.encode(value)
            except CodecError as refusal:
                refusal.steps.append(step)
                raise

        def decode(tree: Any, _: object = None) -> Any:
            if type(tree) in exact:
                return tree
            try:
                return codec.decode(tree)
            except CodecError as refusal:
                refusal.steps.append(step)
                raise

        self.encode = encode
        self.decode = decode


class _FieldConverter(cattrs.Converter):
    """A converter that finds in the place of each attribute's type the functions for it."""

    def get_unstructure_hook(self, type: Any, cache_result: bool = True) -> Function:  # noqa: A002  # cattrs' name
        encode: Function = type.encode
        return encode

    def get_structure_hook(self, type: Any, cache_result: bool = True) -> Any:  # noqa: A002  # cattrs' name
        return type.decode


_converter = _FieldConverter()


def _written_by_cattrs(
    name: str, shape: ClassFields, fields: list[_FieldCodec], cls: type
) -> tuple[Function, Function]:
    described = attrs.make_class(
        "Described",
        {
            one.name: attrs.field(
                alias=one.field.argument,
                default=attrs.NOTHING if one.field.required else None,
                init=one.field.init,
                kw_only=True,
            )
            for one in fields
        },
    )
    attributes = [attribute.evolve(type=one) for attribute, one in zip(attrs.fields(described), fields, strict=True)]
    unstructure: Function = make_dict_unstructure_fn_from_attrs(
        attributes,
        cls,
        _converter,
        _cattrs_use_linecache=False,
        _cattrs_use_alias=False,
        _cattrs_include_init_false=True,
    )
    structure: Callable[[Any, type], Any] = make_dict_structure_fn_from_attrs(
        attributes,
        cls,
        _converter,
        {parameter.__name__: Any for parameter in getattr(cls, "__parameters__", ())},
        _cattrs_forbid_extra_keys=False,
        _cattrs_use_linecache=False,
        _cattrs_use_alias=False,
        _cattrs_detailed_validation=False,
        _cattrs_prefer_attrib_converters=False,
    )
    later = [one for one in fields if not one.field.init]

    def encode(value: Any) -> Any:
        try:
            return unstructure(value)
        except AttributeError as error:
            raise CodecError(f"this {name} has a field that is not set: {describe(error)}") from error

    def decode(tree: Any) -> Any:
        try:
            made = structure(tree, cls)
        except (CodecError, RecursionError):
            raise
        except Exception as error:
            raise CodecError(f"{name} does not take its stored fields: {describe(error)}") from error
        for one in later:
            if one.name in tree:
                object.__setattr__(made, one.name, one.decode(tree[one.name]))
        return made

    return encode, decode


def _taking_atoms(fields: list[_FieldCodec], cls: type, decode: Function) -> Function:
    """Make a decoder that hands a tree to the constructor as it is, where every field is there and plain JSON.

    Many classes are no more than that, and cattrs would hand over one field by one.
    """
    if not all(one.codec.exact and one.field.init and one.field.argument == one.name for one in fields):
        return decode
    checks = [(one.name, one.codec.exact) for one in fields]
    count = len(checks)

    def take(tree: Any) -> Any:
        if type(tree) is not dict or len(tree) != count:
            return decode(tree)
        try:
            for name, exact in checks:
                if type(tree[name]) not in exact:
                    break
            else:
                return cls(**tree)
        except Exception:
            return decode(tree)  # which says what is wrong
        return decode(tree)

    return take


def _checking_fields(name: str, fields: list[_FieldCodec], decode: Function) -> Function:
    known = {one.name: one.field.required for one in fields}
    names = known.keys()

    def check(tree: Any) -> Any:
        if tree.keys() != names:
            missing = [key for key, required in known.items() if required and key not in tree]
            if missing:
                raise CodecError(
                    f"{name} has no default for its field {missing[0]!r}, which the payload does not have; give the "
                    "field a default as long as such payloads are stored"
                )
            unknown = [key for key in tree if key not in known]
            if unknown:
                raise CodecError(
                    f"{name} has no field {key_step(unknown[0])[1:-1]}, which the payload has; keep a removed field as "
                    "long as such payloads are stored"
                )
        return decode(tree)

    return check


def _dict_encoder(name: str, fields: list[_FieldCodec]) -> Function:
    known = {one.name: one for one in fields}

    def encode(value: Any) -> Any:
        if not value.keys() <= known.keys():
            strange = next(key for key in value if key not in known)
            raise CodecError(f"{name} has no key {key_step(strange)[1:-1]}; remove it, or change the annotation")
        for key, one in known.items():
            if one.field.required and key not in value:
                raise CodecError(f"{name} needs the key {key!r}, and the value given has none")
        tree = {key: _at_key(known[key].encode, item, key) for key, item in value.items()}
        return tagged("dict", [[key, item] for key, item in tree.items()]) if TAG in tree else tree

    return encode


def _dict_decoder(fields: list[_FieldCodec]) -> Function:
    known = {one.name: one.decode for one in fields}
    return lambda tree: {key: _at_key(known[key], item, key) for key, item in tree.items()}


def _at_key(function: Function, item: Any, key: str) -> Any:
    try:
        return function(item)
    except CodecError as refusal:
        # A TypedDict is a dict, so the path says ['key'] where the field said .key.
        refusal.steps[-1] = key_step(key)
        raise
