"""What kinds of classes there are, and for each: its fields, and whether its constructor can be trusted.

Each kind is known by what its library leaves on the class, so none of the libraries is imported here.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_origin

import attrs

from omniq.serialization.hints import field_hints, special_name

# An instance of a class derived from one of these is more than its fields.
_BUILTINS = (str, int, float, complex, bytes, bytearray, list, tuple, dict, set, frozenset)

__all__ = ["ClassFields", "Field", "class_fields_of", "is_class_with_fields", "is_typed_dict"]


@attrs.frozen(kw_only=True)
class Field:
    """One field of a class."""

    name: str
    hint: Any
    argument: str
    """What the constructor calls it."""
    required: bool
    """Whether the constructor must be given it."""
    init: bool = True
    """Whether the constructor takes it at all."""


@attrs.frozen(kw_only=True)
class ClassFields:
    """What is to be known of a class."""

    fields: tuple[Field, ...]
    faithful: bool
    """Whether an instance is known to hold just what its constructor was given."""
    hidden: Callable[[Any], Any] | None = None
    """What gives the state that an instance has beyond its fields."""


def is_typed_dict(cls: type) -> bool:
    """Tell whether a class is a TypedDict, of typing or of typing_extensions."""
    return hasattr(cls, "__required_keys__") and hasattr(cls, "__total__")


def _is_attrs(cls: type) -> bool:
    return hasattr(cls, "__attrs_attrs__") and not issubclass(cls, _BUILTINS)


def _is_dataclass(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) and not issubclass(cls, _BUILTINS)


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def _is_msgspec(cls: type) -> bool:
    msgspec = sys.modules.get("msgspec")
    return msgspec is not None and issubclass(cls, msgspec.Struct)


def is_class_with_fields(cls: type) -> bool:
    """Tell whether :func:`class_fields_of` knows the kind of a class."""
    return any(matches(cls) for matches, _ in _KINDS)


def class_fields_of(hint: Any) -> ClassFields:
    """Describe a class.

    :param hint: a class with fields, or a generic one with its arguments.
    """
    cls = get_origin(hint) or hint
    describe = next(describe for matches, describe in _KINDS if matches(cls))
    return describe(cls, field_hints(hint))


def _attrs_shape(cls: type, hints: dict[str, Any]) -> ClassFields:
    fields = [
        Field(
            name=one.name,
            hint=hints.get(one.name, Any if isinstance(one.type, str) or one.type is None else one.type),
            argument=one.alias or one.name,
            required=one.default is attrs.NOTHING and one.init,
            init=one.init,
        )
        for one in attrs.fields(cls)
    ]
    plain = _is_generated(cls) and not (
        any(one.converter is not None or not one.init for one in attrs.fields(cls))
        or hasattr(cls, "__attrs_pre_init__")
        or hasattr(cls, "__attrs_post_init__")
    )
    return ClassFields(fields=tuple(fields), faithful=plain)


def _dataclass_shape(cls: Any, hints: dict[str, Any]) -> ClassFields:
    missing = dataclasses.MISSING
    fields = [
        Field(
            name=one.name,
            hint=hints.get(one.name, Any if isinstance(one.type, str) else one.type),
            argument=one.name,
            required=one.default is missing and one.default_factory is missing and one.init,
            init=one.init,
        )
        for one in dataclasses.fields(cls)
    ]
    plain = _is_generated(cls) and not (
        any(not one.init for one in fields)
        or any("INITVAR" in repr(one._field_type) for one in cls.__dataclass_fields__.values())
        or hasattr(cls, "__post_init__")
    )
    return ClassFields(fields=tuple(fields), faithful=plain)


_ATTRS_FILE = attrs.fields.__code__.co_filename


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


def _named_tuple_shape(cls: Any, hints: dict[str, Any]) -> ClassFields:
    fields = _simple_fields(cls._fields, hints, cls._field_defaults)
    # A class that only derives from one made by NamedTuple may have a constructor and attributes of its own.
    return ClassFields(fields=fields, faithful="_make" in vars(cls), hidden=_attributes)


def _attributes(value: Any) -> Any:
    return getattr(value, "__dict__", None) or None


def _simple_fields(names: Iterable[str], hints: dict[str, Any], optional: Iterable[str]) -> tuple[Field, ...]:
    return tuple(
        Field(name=name, hint=hints.get(name, Any), argument=name, required=name not in optional) for name in names
    )


def _typed_dict_shape(cls: Any, hints: dict[str, Any]) -> ClassFields:
    def is_required(name: str) -> bool:
        # With postponed evaluation the class itself does not know what its annotations say of this.
        forms = {special_name(form) for form in _origins(hints[name])}
        return "Required" in forms or (name in cls.__required_keys__ and "NotRequired" not in forms)

    optional = [name for name in hints if not is_required(name)]
    return ClassFields(fields=_simple_fields(hints, hints, optional), faithful=True)


def _origins(hint: Any) -> Iterator[Any]:
    while (origin := get_origin(hint)) is not None:
        yield origin
        hint = hint.__args__[0] if hasattr(hint, "__args__") else None


def _msgspec_shape(cls: Any, hints: dict[str, Any]) -> ClassFields:
    no_default = sys.modules["msgspec"].NODEFAULT
    names: tuple[str, ...] = cls.__struct_fields__
    defaults = cls.__struct_defaults__
    with_default = [
        name
        for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=True)
        if default is not no_default
    ]
    plain = not hasattr(cls, "__post_init__") and not inspect.isfunction(cls.__init__)
    return ClassFields(fields=_simple_fields(names, hints, with_default), faithful=plain)


_KINDS: tuple[tuple[Callable[[type], bool], Callable[[Any, dict[str, Any]], ClassFields]], ...] = (
    (_is_attrs, _attrs_shape),
    (_is_dataclass, _dataclass_shape),
    (is_typed_dict, _typed_dict_shape),
    (_is_named_tuple, _named_tuple_shape),
    (_is_msgspec, _msgspec_shape),
)
