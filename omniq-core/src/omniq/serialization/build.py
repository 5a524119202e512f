"""From an annotation to its codec."""

from __future__ import annotations

import enum
import inspect
import threading
import typing
from collections import OrderedDict, abc, deque
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from omniq.serialization import containers
from omniq.serialization.class_fields import is_class_with_fields
from omniq.serialization.codec import ATOMS, Codec
from omniq.serialization.hints import bare_hint, hint_name, union_members
from omniq.serialization.scalars import derived_codec, enum_codec, literal_codec
from omniq.serialization.unions import combined, union_codec
from omniq.serialization.values import value_codec, value_types
from omniq.storage.escaping import get_logger

if typing.TYPE_CHECKING:
    import cattrs

__all__ = ["ANY", "Codecs"]

_log = get_logger(__name__)
_ARRAYS: tuple[type, ...] = (tuple, set, frozenset)
_MAPPINGS: tuple[type, ...] = (dict, OrderedDict)
# What the abstract classes of collections may be, as far as it can be sent.
_ABSTRACT: dict[Any, tuple[type, ...]] = {
    abc.Sequence: (list, tuple, deque),
    abc.MutableSequence: (list, deque),
    abc.Collection: (list, tuple, set, frozenset, deque),
    abc.Iterable: (list, tuple, set, frozenset, deque),
    abc.Container: (list, tuple, set, frozenset, deque),
    abc.Reversible: (list, tuple, deque),
    abc.Set: (set, frozenset),
    abc.MutableSet: (set,),
    abc.Mapping: _MAPPINGS,
    abc.MutableMapping: _MAPPINGS,
}


def _any_codec() -> Codec:
    codec = Codec(name="Any")
    items = [_container(kind, "Any", [codec, codec]) for kind in (list, *_ARRAYS, deque, *_MAPPINGS)]
    values = [made for made in map(value_codec, value_types()) if made is not None]
    codec.become(combined("Any", [Codec(name="Any", exact=ATOMS), *items, *values]))
    return codec


def _container(kind: type, name: str, arguments: list[Codec]) -> Codec:
    if kind in _MAPPINGS:
        return containers.mapping_codec(name, kind, *arguments)
    if kind is list:
        return containers.list_codec(name, arguments[0])
    if kind is deque:
        return containers.deque_codec(name, arguments[0])
    return containers.array_codec(name, kind, arguments[0])


ANY = _any_codec()
"""The codec of values that no annotation announces."""
_RESERVED = frozenset(ANY.tags)


class _Making(threading.local):
    """The annotations whose codecs a thread is making, one inside the other."""

    def __init__(self) -> None:
        self.under_way: dict[int, Codec | None] = {}
        """By the annotation's id, what stands for its codec where the annotation refers to itself."""
        self.made: dict[Any, Codec] = {}
        """What is made, but may hold one that only stands for another, so that other threads must not see it yet."""


class Codecs:
    """Makes codecs, each once.

    :param converter: gives the cattrs converter that is asked for classes of no kind known here.
    """

    def __init__(self, converter: Callable[[], cattrs.Converter]) -> None:
        self._converter = converter
        self._made: dict[Any, Codec] = {}
        self._making = _Making()

    def of(self, hint: Any) -> Codec:
        """Return the codec of an annotation."""
        if hint is Any:
            return ANY
        try:
            codec = self._made.get(hint)
        except TypeError:  # metadata that cannot be hashed
            return self._make(hint)
        if codec is None:
            making = self._making
            codec = making.made.get(hint)
            if codec is None:
                codec = self._make(hint)
                if making.under_way:
                    making.made[hint] = codec
                else:
                    self._made |= {**making.made, hint: codec}
                    making.made.clear()
        return codec

    def _make(self, hint: Any) -> Codec:
        # Only an alias can come back to itself here; classes look at their fields later.
        making = self._making
        if id(hint) in making.under_way:
            inside = making.under_way[id(hint)] or Codec(name=hint_name(hint), self_describing=False)
            making.under_way[id(hint)] = inside
            return inside
        making.under_way[id(hint)] = None
        try:
            codec = self._make_of(hint)
        except BaseException:
            making.made.clear()
            making.under_way.pop(id(hint))
            raise
        referring = making.under_way.pop(id(hint))
        if referring is not None:
            referring.become(codec)
        return codec

    def _make_of(self, hint: Any) -> Codec:
        members = union_members(hint)
        name = hint_name(hint)
        if members is not None:
            return union_codec(name, [self.of(member) for member in members], _RESERVED)
        bare = bare_hint(hint)
        if bare is not hint:
            return self.of(bare)
        origin = get_origin(hint)
        arguments = get_args(hint)
        if origin is Literal:
            return literal_codec(name, arguments, self._of_class)
        base = None if hint is None else origin or hint
        codec = self._of_builtin(name, hint, base, arguments)
        if codec is None and isinstance(base, type):
            codec = self._of_class(hint)
        if codec is None:
            _log.debug("annotation %s counts as Any", name)
            codec = ANY
        return codec

    def _of_builtin(self, name: str, hint: Any, base: Any, arguments: tuple[Any, ...]) -> Codec | None:
        if base is None:
            base = type(None)
        if base is object:
            return ANY
        if base is tuple and hasattr(hint, "__args__") and arguments[1:] != (...,):
            return self._of_fixed_tuple(name, arguments)
        kinds = _ABSTRACT.get(base, (base,))
        if all(kind in {list, deque, *_ARRAYS, *_MAPPINGS} for kind in kinds):
            items = [self.of(argument) for argument in arguments if argument is not ...] or [ANY, ANY]
            codec = combined(name, [_container(kind, name, items) for kind in kinds])
            codec.label, codec.full_label = name, hint_name(hint, full=True)
            return codec
        return value_codec(base)

    def _of_fixed_tuple(self, name: str, arguments: tuple[Any, ...]) -> Codec:
        if any(get_origin(argument) is typing.Unpack or "*" in repr(argument)[:1] for argument in arguments):
            return _container(tuple, name, [ANY])
        codec = containers.fixed_tuple_codec(name, [self.of(argument) for argument in arguments])
        codec.label = codec.full_label = name
        return codec

    def _of_class(self, hint: Any) -> Codec:
        cls = get_origin(hint) or hint
        name, full_name = hint_name(hint), hint_name(hint, full=True)
        known = value_codec(cls)
        if known is not None:
            return known
        if issubclass(cls, enum.Enum):
            return enum_codec(name, full_name, cls)
        if is_class_with_fields(cls):
            from omniq.serialization.classes import class_codec

            return class_codec(hint, self.of)
        from omniq.serialization.models import is_model, model_codec

        if is_model(cls):
            return model_codec(cls)
        derived = derived_codec(name, full_name, cls)
        if derived is not None:
            return derived
        if inspect.isabstract(cls) or getattr(cls, "_is_protocol", False) or cls.__module__ == "numbers":
            # Whatever is sent for it says itself what it is.
            return ANY
        from omniq.serialization.foreign import foreign_codec

        return foreign_codec(name, full_name, cls, self._converter, ANY)
