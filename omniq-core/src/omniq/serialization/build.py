"""From an annotation to its codec, and from several codecs to that of a union.

Most members of a union tell themselves apart: by JSON's own types, or by their tags. Instances of classes do not (a
JSON object of fields says not of which class), so where a union has two members or more beside None, those get a tag:
the name of the class, looked up among the members of the union and nowhere else.
"""

from __future__ import annotations

import enum
import functools
import inspect
import typing
from collections import Counter, OrderedDict, abc, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from attrs import evolve

from omniq.serialization.classes import fields_codec, is_class_with_fields
from omniq.serialization.codec import ATOMS, Codec, CodecError, Function, chained, unwrapping, wrapping
from omniq.serialization.containers import CONTAINERS, container_codec, fixed_tuple_codec
from omniq.serialization.custom_types import derived_codec, enum_codec, foreign_codec, is_model, model_codec
from omniq.serialization.hints import bare_hint, hint_name, union_members
from omniq.serialization.values import VALUE_TYPES, value_codec
from omniq.storage.escaping import get_logger

if typing.TYPE_CHECKING:
    import cattrs

__all__ = ["ANY", "Codecs"]

_log = get_logger(__name__)
_SEQUENCES: tuple[type, ...] = (list, tuple, deque)
_MAPPINGS: tuple[type, ...] = (dict, OrderedDict)
# What the abstract classes of collections may be, as far as it can be sent.
_ABSTRACT: dict[Any, tuple[type, ...]] = {
    abc.Sequence: _SEQUENCES,
    abc.MutableSequence: (list, deque),
    abc.Collection: (*_SEQUENCES, set, frozenset),
    abc.Iterable: (*_SEQUENCES, set, frozenset),
    abc.Container: (*_SEQUENCES, set, frozenset),
    abc.Reversible: _SEQUENCES,
    abc.Set: (set, frozenset),
    abc.MutableSet: (set,),
    abc.Mapping: _MAPPINGS,
    abc.MutableMapping: _MAPPINGS,
}


# Unions


def _combined(hint: Any, codecs: Sequence[Codec]) -> Codec:
    """Make one codec of several whose JSON tells which of them made it."""
    return Codec(
        hint,
        exact=frozenset().union(*(codec.exact for codec in codecs)),
        encoders=_merged(codec.encoders for codec in codecs),
        decoders=_merged(codec.decoders for codec in codecs),
        self_describing=all(codec.self_describing for codec in codecs),
        flat=all(codec.flat for codec in codecs),
    )


def _merged(tables: Iterable[dict[Any, Function]]) -> dict[Any, Function]:
    functions: dict[Any, list[Function]] = {}
    for table in tables:
        for key, function in table.items():
            # Two members may share one, as date and datetime do.
            if function not in functions.setdefault(key, []):
                functions[key].append(function)
    return {key: _first(several) for key, several in functions.items()}


def _first(functions: Sequence[Function]) -> Function:
    """Make one function of several: the first that does not refuse."""
    if len(functions) == 1:
        return functions[0]

    def attempt(value: Any) -> Any:
        refusals: list[CodecError] = []
        for function in functions:
            try:
                return function(value)
            except CodecError as refusal:
                refusals.append(refusal)
        # The member that got furthest is the one that was meant.
        raise max(refusals, key=lambda refusal: len(refusal.steps))

    return attempt


def _union_codec(hint: Any, codecs: Sequence[Codec]) -> Codec:
    """Make the codec of a union.

    :param codecs: those of its members, each once.
    """
    others = [codec for codec in codecs if codec.exact != {type(None)}]
    if len(others) == 1:
        return _combined(hint, codecs)
    shared = Counter(kind for codec in others for kind in codec.encoders)
    alike = [
        codec
        for codec in others
        if codec.named or (not codec.self_describing and any(shared[kind] > 1 for kind in codec.encoders))
    ]
    labels = _labels(alike)
    members = [_labelled(codec, labels[id(codec)]) for codec in alike]
    union = _combined(hint, members + [codec for codec in codecs if id(codec) not in labels])
    by_fields = _by_fields(union.name, alike)
    if by_fields is not None:
        union.decoders.setdefault(dict, by_fields)
    return union


def _labels(codecs: Sequence[Codec]) -> dict[int, str]:
    seen = Counter(codec.name for codec in codecs)
    labels: dict[int, str] = {}
    for codec in codecs:
        # A tag of ours is none that a class may take.
        ambiguous = seen[codec.name] > 1 or codec.name in ANY.decoders
        label = hint_name(codec.hint, full=ambiguous)
        while label in labels.values():
            label += "'"
        labels[id(codec)] = label
    return labels


def _labelled(codec: Codec, label: str) -> Codec:
    """Make a codec whose JSON carries its name.

    The name of an enum's member is taken without it too: the enum may have been alone when it was written.
    """
    decoders = {form: decode for form, decode in codec.decoders.items() if form in ATOMS}
    return evolve(
        codec,
        encoders={kind: wrapping(label, encode) for kind, encode in codec.encoders.items()},
        decoders={**decoders, label: unwrapping(label, codec.decode_now)},
    )


def _by_fields(name: str, codecs: Sequence[Codec]) -> Function | None:
    """Make a decoder of objects without a tag, written when their class was the only one of the annotation."""
    choices = [(codec.fits, codec.decode) for codec in codecs if codec.fits is not None]

    def decode(tree: Any) -> Any:
        fitting = [function for fits, function in choices if fits(tree)]
        if len(fitting) != 1:
            found = "more than one class" if fitting else "no class"
            raise CodecError(f"expected {name}, but the payload has an object with the fields of {found} among these")
        return fitting[0](tree)

    return decode if choices else None


def _literal_codec(hint: Any, codec_of: Callable[[Any], Codec]) -> Codec:
    """Make the codec of a ``Literal``.

    :param codec_of: gives the codec of a class.
    """
    allowed = {(type(value), value) for value in get_args(hint)}

    def check(value: Any) -> Any:
        if (type(value), value) not in allowed:
            raise CodecError(f"expected {codec.name}, found another {type(value).__name__}")
        return value

    codecs = {kind: codec_of(kind) for kind in map(type, get_args(hint))}
    labels = _labels([of_kind for of_kind in codecs.values() if of_kind.named])
    codec = Codec(hint, self_describing=not labels, flat=True)
    for kind, of_kind in codecs.items():
        encode, decoders = of_kind.encode, {**of_kind.decoders}
        if kind in of_kind.exact:
            decoders[kind] = check
        if of_kind.named:
            # Its JSON is a string, which another of the literals may be.
            label = labels[id(of_kind)]
            encode, decoders = wrapping(label, encode), {label: unwrapping(label, of_kind.decode)}
        codec.encoders[kind] = chained(check, encode)
        codec.decoders |= {form: chained(decode, check) for form, decode in decoders.items()}
    return codec


# Annotations


def _any_codec() -> Codec:
    codec = Codec(Any)
    containers = [container_codec(Any, kind, [codec, codec]) for kind in CONTAINERS]
    codec.become(_combined(Any, [Codec(Any, exact=ATOMS), *containers, *map(value_codec, VALUE_TYPES)]))
    return codec


ANY = _any_codec()
"""The codec of values that no annotation announces."""


class Codecs:
    """Makes codecs, each once.

    :param converter: gives the cattrs converter that is asked for classes of no kind known here.
    """

    def __init__(self, converter: Callable[[], cattrs.Converter]) -> None:
        self._converter = converter
        self._made: dict[Any, Codec] = {Any: ANY}
        """By annotation: those that are whole, as all threads look here."""

    def of(self, hint: Any) -> Codec:
        """Return the codec of an annotation."""
        try:
            codec = self._made.get(hint)
        except TypeError:  # metadata that cannot be hashed
            codec = None
        if codec is None:
            making: dict[Any, Codec] = {}
            codec = self._inside(hint, making)
            self._made.update(making)
        return codec

    def _inside(self, hint: Any, making: dict[Any, Codec]) -> Codec:
        """Return the codec of an annotation, or inside itself, where only an alias leads, what will become that.

        :param making: by annotation, those that are made together with it.
        """
        try:
            codec = self._made.get(hint) or making.get(hint)
        except TypeError:
            return self._make(hint, making)
        if codec is None:
            making[hint] = inside = Codec(hint, self_describing=False)
            codec = making[hint] = self._make(hint, making)
            inside.become(codec)
        return codec

    def _make(self, hint: Any, making: dict[Any, Codec]) -> Codec:
        of = functools.partial(self._inside, making=making)
        members = union_members(hint)
        if members is not None:
            return _union_codec(hint, [of(member) for member in members])
        bare = bare_hint(hint)
        if bare is not hint:
            return of(bare)
        origin = get_origin(hint)
        if origin is Literal:
            return _literal_codec(hint, of)
        base = type(None) if hint is None else origin or hint
        codec = _builtin_codec(hint, base, of)
        if codec is None and isinstance(base, type):
            codec = self._of_class(hint, base)
        if codec is None:
            _log.debug("annotation %s counts as Any", hint_name(hint))
            codec = ANY
        return codec

    def _of_class(self, hint: Any, cls: type) -> Codec:
        if issubclass(cls, enum.Enum):
            return enum_codec(cls)
        if is_class_with_fields(cls):
            return fields_codec(hint, self.of)
        if is_model(cls):
            return model_codec(cls)
        derived = derived_codec(hint, cls)
        if derived is not None:
            return derived
        if inspect.isabstract(cls) or getattr(cls, "_is_protocol", False) or cls.__module__ == "numbers":
            # Whatever is sent for it says itself what it is.
            return ANY
        return foreign_codec(hint, cls, self._converter, ANY)


def _builtin_codec(hint: Any, base: Any, of: Callable[[Any], Codec]) -> Codec | None:
    arguments = get_args(hint)
    if base is object:
        return ANY
    if base in VALUE_TYPES:
        return value_codec(base)
    if base is tuple and hasattr(hint, "__args__") and arguments[1:] != (...,):
        if any(get_origin(argument) is typing.Unpack or "*" in repr(argument)[:1] for argument in arguments):
            return container_codec(hint, tuple, [ANY])
        return fixed_tuple_codec(hint, [of(argument) for argument in arguments])
    kinds = _ABSTRACT.get(base, (base,))
    if not CONTAINERS.issuperset(kinds):
        return None
    items = [of(argument) for argument in arguments if argument is not ...] or [ANY, ANY]
    return _combined(hint, [container_codec(hint, kind, items) for kind in kinds])
