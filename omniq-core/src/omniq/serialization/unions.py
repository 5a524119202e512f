"""Unions: the tables of several codecs as one.

Most members tell themselves apart: by JSON's own types, or by their tags. Instances of classes do not (a JSON object
of fields says not of which class), so where a union has two members or more beside None, those get a tag: the name of
the class, looked up among the members of the union and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import evolve

from omniq.serialization.codec import Codec, Function, unwrapping, wrapping
from omniq.serialization.errors import CodecError

__all__ = ["combined", "union_codec"]


def combined(name: str, codecs: Iterable[Codec]) -> Codec:
    """Make one codec of several whose JSON tells which of them made it."""
    exact: set[type] = set()
    encoders: dict[type, list[Function]] = {}
    tags: dict[str, list[Function]] = {}
    arrays, plains, scalars = [], [], []
    codecs = list(codecs)
    for codec in codecs:
        exact |= codec.exact
        for kind, encode in codec.encoders.items():
            _add(encoders.setdefault(kind, []), encode)
        for tag, decode in codec.tags.items():
            _add(tags.setdefault(tag, []), decode)
        arrays += [codec.array] if codec.array else []
        plains += [codec.plain] if codec.plain else []
        scalars += [codec.scalar] if codec.scalar else []
    return Codec(
        name=name,
        exact=frozenset(exact),
        encoders={kind: _first(functions) for kind, functions in encoders.items()},
        tags={tag: _first(functions) for tag, functions in tags.items()},
        array=_first(arrays) if arrays else None,
        plain=_first(plains) if plains else None,
        scalar=_first(scalars) if scalars else None,
        self_describing=all(codec.self_describing for codec in codecs),
        flat=all(codec.flat for codec in codecs),
    )


def _add(functions: list[Function], function: Function) -> None:
    # Two members may share one, as date and datetime do.
    if function not in functions:
        functions.append(function)


def _first(functions: Sequence[Function]) -> Function:
    """Make one function of several: the first that does not refuse."""
    if len(functions) == 1:
        return functions[0]

    def attempt(value: Any) -> Any:
        deepest: CodecError | None = None
        for function in functions:
            try:
                return function(value)
            except CodecError as refusal:
                # The member that got furthest is the one that was meant.
                if deepest is None or len(refusal.steps) > len(deepest.steps):
                    deepest = refusal
        raise deepest or CodecError("has no member")

    return attempt


def union_codec(name: str, codecs: Sequence[Codec], reserved: frozenset[str]) -> Codec:
    """Make the codec of a union.

    :param codecs: those of its members, each once.
    :param reserved: tags that no class may take.
    """
    others = [codec for codec in codecs if codec.exact != {type(None)}]
    if len(others) == 1:
        return combined(name, codecs)
    shared = Counter(kind for codec in others for kind in codec.encoders)
    alike = [
        codec
        for codec in others
        if codec.named or (not codec.self_describing and any(shared[kind] > 1 for kind in codec.encoders))
    ]
    labels = _labels(alike, reserved)
    members = [_labelled(codec, labels[id(codec)]) for codec in alike]
    members += [codec for codec in codecs if id(codec) not in labels]
    union = combined(name, members)
    if union.plain is None:
        union.plain = _by_fields(name, alike)
    return union


def _labels(codecs: Sequence[Codec], reserved: frozenset[str]) -> dict[int, str]:
    seen = Counter(codec.label for codec in codecs)
    labels: dict[int, str] = {}
    for codec in codecs:
        label = codec.full_label if seen[codec.label] > 1 or codec.label in reserved else codec.label
        while label in labels.values():
            label += "'"
        labels[id(codec)] = label
    return labels


def _labelled(codec: Codec, label: str) -> Codec:
    """Make a codec whose JSON carries its name.

    The name of an enum's member is taken without it too: the enum may have been alone when it was written.
    """
    return evolve(
        codec,
        encoders={kind: wrapping(label, encode) for kind, encode in codec.encoders.items()},
        array=None,
        plain=None,
        tags={label: unwrapping(label, codec.decode)},
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
