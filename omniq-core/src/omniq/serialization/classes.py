"""Instances of classes with fields: attrs classes, dataclasses, NamedTuples, msgspec structs, TypedDicts.

Each kind is known by what its library leaves on the class, so none of the libraries is imported here. cattrs writes the
functions from an instance to a dict and back, with our codecs for the single fields. A class is looked into when its
first value comes, so classes that refer to themselves or to one another need no care.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_origin

import attrs

from omniq.serialization.codec import (
    MAX_PAYLOAD_DEPTH,
    TAG,
    Codec,
    CodecError,
    Function,
    class_codec,
    deeper,
    describe,
    guarded,
    key_step,
    tagged,
    unknown_field,
)
from omniq.serialization.containers import unpairing
from omniq.serialization.custom_types import attributes, verified
from omniq.serialization.hints import field_hints, hint_name, special_name

if TYPE_CHECKING:
    import cattrs

__all__ = ["fields_codec", "fields_of", "is_class_with_fields"]

# An instance of a class derived from one of these is more than its fields.
_BUILTINS = (str, int, float, complex, bytes, bytearray, list, tuple, dict, set, frozenset)
_ATTRS_FILE = attrs.fields.__code__.co_filename
_CONSTRUCTORS = ("__attrs_pre_init__", "__attrs_post_init__", "__post_init__")

# What fields there are


@attrs.frozen
class Field:
    """One field of a class."""

    name: str
    hint: Any
    required: bool
    """Whether the constructor must be given it."""
    argument: str
    """What the constructor calls it."""
    init: bool = True
    """Whether the constructor takes it at all."""


@attrs.frozen
class _Fields:
    """The fields of a class."""

    all: Sequence[Field]
    faithful: bool
    """Whether an instance is known to hold just what its constructor was given."""


def is_class_with_fields(cls: type) -> bool:
    """Tell whether a class is of one of the kinds known here."""
    return any(matches(cls) for matches, _ in _KINDS)


def fields_of(hint: Any) -> _Fields:
    """Return the fields of a class.

    :param hint: a class of one of the kinds known here, or a generic one with its arguments.
    """
    cls = get_origin(hint) or hint
    fields_of_kind = next(fields for matches, fields in _KINDS if matches(cls))
    return fields_of_kind(cls, field_hints(hint))


def _is_declared(cls: type) -> bool:
    return (attrs.has(cls) or dataclasses.is_dataclass(cls)) and not issubclass(cls, _BUILTINS)


def _declared_fields(cls: Any, hints: dict[str, Any]) -> _Fields:
    """Return the fields of an attrs class or a dataclass."""
    ours: Sequence[Any] = attrs.fields(cls) if attrs.has(cls) else dataclasses.fields(cls)
    fields = [
        Field(
            one.name,
            hints.get(one.name, Any if isinstance(one.type, str) or one.type is None else one.type),
            required=one.init and not _has_default(one),
            argument=getattr(one, "alias", None) or one.name,
            init=one.init,
        )
        for one in ours
    ]
    does_more = (
        any(not one.init or getattr(one, "converter", None) is not None for one in ours)
        or any(hasattr(cls, hook) for hook in _CONSTRUCTORS)
        or any("INITVAR" in repr(one._field_type) for one in getattr(cls, "__dataclass_fields__", {}).values())
    )
    return _Fields(fields, faithful=_is_generated(cls) and not does_more)


def _has_default(one: Any) -> bool:
    defaults = (one.default, getattr(one, "default_factory", dataclasses.MISSING))
    return any(default is not attrs.NOTHING and default is not dataclasses.MISSING for default in defaults)


def _is_generated(cls: Any) -> bool:
    """Tell whether a class is made by a constructor that its library wrote, and by nothing else."""
    return (
        cls.__new__ is object.__new__
        and _is_library_written(cls.__init__)
        and (cls.__setattr__ is object.__setattr__ or _is_library_written(cls.__setattr__))
    )


def _is_library_written(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    file_name: str = code.co_filename if code is not None else ""
    return file_name == _ATTRS_FILE or file_name.startswith(("<attrs generated", "<string>"))


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def _named_tuple_fields(cls: Any, hints: dict[str, Any]) -> _Fields:
    # A class that only derives from one made by NamedTuple may have a constructor and attributes of its own.
    return _Fields(_simple_fields(cls._fields, hints, cls._field_defaults), faithful="_make" in vars(cls))


def _simple_fields(names: Iterable[str], hints: dict[str, Any], optional: Iterable[str]) -> list[Field]:
    return [Field(name, hints.get(name, Any), required=name not in optional, argument=name) for name in names]


def _is_typed_dict(cls: type) -> bool:
    # Of typing or of typing_extensions.
    return hasattr(cls, "__required_keys__") and hasattr(cls, "__total__")


def _typed_dict_fields(cls: Any, hints: dict[str, Any]) -> _Fields:
    def is_required(name: str) -> bool:
        # With postponed evaluation the class itself does not know what its annotations say of this.
        forms = {special_name(form) for form in _origins(hints[name])}
        return "Required" in forms or (name in cls.__required_keys__ and "NotRequired" not in forms)

    return _Fields(_simple_fields(hints, hints, [name for name in hints if not is_required(name)]), faithful=True)


def _origins(hint: Any) -> Iterator[Any]:
    while (origin := get_origin(hint)) is not None:
        yield origin
        hint = hint.__args__[0] if hasattr(hint, "__args__") else None


def _is_msgspec(cls: type) -> bool:
    msgspec = sys.modules.get("msgspec")
    return msgspec is not None and issubclass(cls, msgspec.Struct)


def _msgspec_fields(cls: Any, hints: dict[str, Any]) -> _Fields:
    names, defaults = cls.__struct_fields__, cls.__struct_defaults__
    no_default = sys.modules["msgspec"].NODEFAULT
    # The defaults are those of the last fields.
    optional = [name for name, default in zip(names[::-1], defaults[::-1], strict=False) if default is not no_default]
    faithful = not hasattr(cls, "__post_init__") and not inspect.isfunction(cls.__init__)
    return _Fields(_simple_fields(names, hints, optional), faithful=faithful)


_KINDS: tuple[tuple[Callable[[type], bool], Callable[[Any, dict[str, Any]], _Fields]], ...] = (
    (_is_declared, _declared_fields),
    (_is_typed_dict, _typed_dict_fields),
    (_is_named_tuple, _named_tuple_fields),
    (_is_msgspec, _msgspec_fields),
)


# From an instance to an object of its fields, and back


def fields_codec(hint: Any, codec_of: Callable[[Any], Codec]) -> Codec:
    """Make the codec of a class with fields.

    :param hint: the class, or a generic one with its arguments.
    :param codec_of: gives the codec of a field's annotation.
    """
    cls, name = get_origin(hint) or hint, hint_name(hint)
    is_dict = _is_typed_dict(cls)
    kind = dict if is_dict else cls
    fields = functools.cache(lambda: fields_of(hint))

    @functools.cache
    def made() -> tuple[Function, Function]:
        parts = [_Part(one, codec_of(one.hint), in_dict=is_dict) for one in fields().all]
        encode, decode = _of_dicts(name, parts) if is_dict else _of_instances(name, parts, cls)
        decode = _checking_fields(name, parts, decode)
        if not all(part.codec.flat for part in parts):
            encode, decode = deeper(encode), deeper(decode, MAX_PAYLOAD_DEPTH)
        if not fields().faithful:
            encode = verified(name, encode, decode, attributes if issubclass(cls, tuple) else None)
        # From now on without the detour through here.
        codec.encoders[kind], codec.decoders[dict] = encode, decode
        if not is_dict and all(part.is_passed_on for part in parts):
            decode = codec.decode = _passing_on(parts, cls, codec.decode)
        return encode, decode

    def encode(value: Any) -> Any:
        return made()[0](value)

    def decode(tree: Any) -> Any:
        return made()[1](tree)

    def decode_pairs(keys: list[Any], trees: list[Any]) -> Any:
        if not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
            raise CodecError(f"the payload has other keys than a {name} has")
        return decode(dict(zip(keys, trees, strict=True)))

    def fits(tree: Any) -> bool:
        known = {one.name: one.required for one in fields().all}
        return tree.keys() <= known.keys() and all(key in tree for key, required in known.items() if required)

    decoders: dict[Any, Function] = {dict: decode}
    if is_dict:
        decoders["dict"] = unpairing("dict", decode_pairs)
    codec = class_codec(hint, kind, encode, decoders, fits=fits)
    return codec


class _Part:
    """A field with the functions for its values, which put its name into the path of a refusal.

    :param in_dict: whether the path leads to it as to a key.
    """

    def __init__(self, field: Field, codec: Codec, *, in_dict: bool) -> None:
        self.field = field
        self.codec = codec
        self.is_passed_on = bool(codec.exact) and field.init and field.argument == field.name
        """Whether the constructor takes JSON for it as it is, if only of the right class."""
        step = key_step(field.name) if in_dict else f".{field.name}"
        self.encode = _stepping(codec, "encode", step)
        self.decode = _stepping(codec, "decode", step)


def _stepping(codec: Codec, verb: str, step: str) -> Callable[..., Any]:
    """Make a function that puts a step into the path of a refusal by a codec's.

    :param verb: which, looked up for each value: classes come by quicker ones.
    """
    exact = codec.exact

    def convert(value: Any, _: object = None) -> Any:  # cattrs gives the type, too
        if type(value) in exact:
            return value
        try:
            return getattr(codec, verb)(value)
        except CodecError as refusal:
            refusal.steps.append(step)
            raise

    return convert


@functools.cache
def _converter() -> cattrs.Converter:
    """Make a converter that finds the functions for each attribute in the place of its type."""
    import cattrs  # tens of milliseconds, which a program that sends no instances need not wait for

    def is_part(kind: Any) -> bool:
        return isinstance(kind, _Part)

    converter = cattrs.Converter(detailed_validation=False)
    converter.register_unstructure_hook_factory(is_part, lambda part: part.encode)
    converter.register_structure_hook_factory(is_part, lambda part: part.decode)
    return converter


def _of_instances(name: str, parts: Sequence[_Part], cls: Any) -> tuple[Function, Function]:
    from cattrs.gen import make_dict_structure_fn_from_attrs, make_dict_unstructure_fn_from_attrs

    described = attrs.make_class(
        "Described",
        {
            part.field.name: attrs.field(
                alias=part.field.argument,
                default=attrs.NOTHING if part.field.required else None,
                init=part.field.init,
                kw_only=True,
            )
            for part in parts
        },
    )
    attributes = [one.evolve(type=part) for one, part in zip(attrs.fields(described), parts, strict=True)]
    unstructure: Function = make_dict_unstructure_fn_from_attrs(
        attributes, cls, _converter(), _cattrs_use_linecache=False, _cattrs_include_init_false=True
    )
    type_variables = {parameter.__name__: Any for parameter in getattr(cls, "__parameters__", ())}
    structure: Callable[[Any, type], Any] = make_dict_structure_fn_from_attrs(
        attributes, cls, _converter(), type_variables, _cattrs_use_linecache=False
    )
    later = [part for part in parts if not part.field.init]
    make = guarded(structure, f"{name} does not take its stored fields")

    def decode(tree: Any) -> Any:
        made = make(tree, cls)
        for part in later:
            if part.field.name in tree:
                object.__setattr__(made, part.field.name, part.decode(tree[part.field.name]))
        return made

    def read(value: Any) -> Any:
        try:
            return unstructure(value)
        except AttributeError as error:
            raise CodecError(f"this {name} has a field that is not set: {describe(error)}") from error

    return guarded(read, f"the fields of this {name} cannot be read"), decode


def _passing_on(parts: Sequence[_Part], cls: type, decode: Function) -> Function:
    """Make a decoder that hands a tree to the constructor as it is, where every field is there and plain JSON.

    Many classes are no more than that, and cattrs would hand over one field by one.
    """
    checks = [(part.field.name, part.codec.exact) for part in parts]
    count = len(checks)

    def pass_on(tree: Any) -> Any:
        if type(tree) is not dict or len(tree) != count:
            return decode(tree)
        try:
            for name, exact in checks:
                if type(tree[name]) not in exact:
                    return decode(tree)
            return cls(**tree)
        except Exception:
            return decode(tree)  # which says what is wrong

    return pass_on


def _of_dicts(name: str, parts: Sequence[_Part]) -> tuple[Function, Function]:
    known = {part.field.name: part for part in parts}

    def encode(value: Any) -> Any:
        if not value.keys() <= known.keys():
            strange = next(key for key in value if key not in known)
            raise CodecError(f"{name} has no key {key_step(strange)[1:-1]}; remove it, or change the annotation")
        for key, part in known.items():
            if part.field.required and key not in value:
                raise CodecError(f"{name} needs the key {key!r}, and the value given has none")
        tree = {key: known[key].encode(item) for key, item in value.items()}
        return tagged("dict", [[key, item] for key, item in tree.items()]) if TAG in tree else tree

    return encode, lambda tree: {key: known[key].decode(item) for key, item in tree.items()}


def _checking_fields(name: str, parts: Sequence[_Part], decode: Function) -> Function:
    known = {part.field.name: part.field.required for part in parts}
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
                raise unknown_field(name, unknown[0])
        return decode(tree)

    return check
