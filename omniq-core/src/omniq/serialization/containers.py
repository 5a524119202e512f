"""Lists, tuples, sets, dicts and their like: built from the codecs of what they hold.

A list is a JSON array and a dict with str keys a JSON object; the others are tagged. Where every item passes as it
is, the container itself does, without being walked in Python.
"""

from __future__ import annotations

import operator
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

from omniq.serialization.codec import (
    MAX_PAYLOAD_DEPTH,
    TAG,
    Codec,
    CodecError,
    Function,
    Malformed,
    deeper,
    guarded,
    key_step,
    tagged,
    unwrapping,
    wrapping,
)
from omniq.serialization.json_text import dumps

__all__ = ["CONTAINERS", "container_codec", "fixed_tuple_codec", "unpairing"]

_MAPPINGS: frozenset[type] = frozenset({dict, OrderedDict})
CONTAINERS: frozenset[type] = frozenset({list, tuple, set, frozenset, deque}) | _MAPPINGS
"""The classes of which :func:`container_codec` makes codecs."""

_MOST_COLLISIONS = 1_000
_STR: frozenset[type] = frozenset({str})
_INT: frozenset[type] = frozenset({int})
_NOTHING: Mapping[str, Any] = {}

_Tables: TypeAlias = tuple[Function, dict[Any, Function]]
"""The encoder of a class, and its decoders by the form of the JSON."""


def container_codec(hint: Any, kind: type, parts: Sequence[Codec]) -> Codec:
    """Make the codec of a container whose items, or whose keys and whose values, are all of one annotation.

    :param kind: one of :data:`CONTAINERS`.
    :param parts: the codec of its items, or those of its keys and of its values.
    """
    parts = parts[: 2 if kind in _MAPPINGS else 1]
    tables: Callable[..., _Tables] = _mapping if kind in _MAPPINGS else _collection
    encode, decoders = tables(kind, *parts)
    describing = all(part.self_describing for part in parts)
    return Codec(hint, encoders={kind: encode}, decoders=decoders, self_describing=describing)


def fixed_tuple_codec(hint: Any, items: Sequence[Codec]) -> Codec:
    """Make the codec of a tuple with a type for each position."""

    def encode(values: Any) -> Any:
        if len(values) != len(items):
            raise CodecError(f"expected {codec.name}, was given a tuple of {len(values)}")
        return _each(map(operator.call, [item.encode for item in items], values))

    def decode(trees: Any) -> Any:
        if len(trees) != len(items):
            raise CodecError(f"expected {codec.name}, but the payload has a tuple of {len(trees)}")
        return tuple(_each(map(operator.call, [item.decode for item in items], trees)))

    codec = Codec(
        hint,
        encoders={tuple: wrapping("tuple", deeper(encode))},
        decoders={"tuple": unwrapping("tuple", deeper(decode, MAX_PAYLOAD_DEPTH), form=list)},
        self_describing=all(item.self_describing for item in items),
    )
    return codec


def _each(made: Iterable[Any], keys: Iterable[Any] | None = None) -> list[Any]:
    """Make values one after the other, and put into the path of a refusal at which one it was.

    :param made: what makes them.
    :param keys: the keys that stand in the path for them; None: their indexes.
    """
    done: list[Any] = []
    try:
        # It keeps what came before a refusal, so that its length says where that was.
        done.extend(made)
    except CodecError as refusal:
        index = len(done)
        refusal.steps.append(f"[{index}]" if keys is None else key_step(next(islice(keys, index, None))))
        raise
    return done


# Lists, tuples, deques and sets


def _collection(kind: Any, item: Codec) -> _Tables:
    tag = kind.__name__
    encode_each = deeper(lambda values: _each(map(item.encode, values)))
    decode_each = deeper(lambda trees: _each(map(item.decode, trees)), MAX_PAYLOAD_DEPTH)

    def encode(values: Any) -> Any:
        return values if item.exact.issuperset(map(type, values)) else encode_each(values)

    def decode(trees: Any) -> Any:
        return trees if item.exact.issuperset(map(type, trees)) else decode_each(trees)

    if kind is list:
        return encode, {list: decode}
    if kind is tuple:
        # A list may be had from a tuple only by copying it; to JSON they are the same.
        return wrapping(tag, encode), {tag: unwrapping(tag, lambda trees: tuple(decode(trees)), form=list)}

    def encode_deque(values: Any) -> Any:
        tree = tagged(tag, list(encode(values)))
        return tree if values.maxlen is None else {**tree, "maxlen": values.maxlen}

    def decode_deque(trees: Any, beside: Mapping[str, Any] = _NOTHING) -> Any:
        maxlen = beside.get("maxlen")
        if maxlen is not None and (type(maxlen) is not int or not len(trees) <= maxlen <= sys.maxsize):
            raise Malformed("the payload has a deque with a maxlen that cannot be")
        return deque(decode(trees), maxlen)

    if kind is deque:
        return encode_deque, {tag: unwrapping(tag, decode_deque, "maxlen", form=list)}

    def encode_set(values: Any) -> Any:
        _check_hashes(kind, values)
        return _sorted(encode(values))

    hashed = _hashing(kind)

    def decode_set(trees: Any) -> Any:
        values = decode(trees)
        return hashed(values, values)

    return wrapping(tag, encode_set), {tag: unwrapping(tag, decode_set, form=list)}


def _sorted(trees: Iterable[Any]) -> list[Any]:
    # Equal sets make equal bytes, whatever order they iterate in.
    kinds = set(map(type, trees))
    if kinds <= _STR or kinds <= _INT:
        return sorted(trees)
    return sorted(trees, key=dumps)


def _check_hashes(kind: type, values: Collection[Any]) -> None:
    """Refuse values so many of which have the same hash that a set or dict of them takes minutes to make.

    Strings and bytes are hashed by a secret; numbers are not, so that a payload can be written on purpose to be slow.

    :raises Malformed: if they are so.
    """
    if len(values) > _MOST_COLLISIONS:
        collisions = len(values) - len(set(map(hash, values)))
        if collisions > _MOST_COLLISIONS:
            raise Malformed(f"has a {kind.__name__} of which {collisions:,} items or keys have the hash of another")


def _hashing(kind: Any) -> Callable[[Collection[Any], Iterable[Any]], Any]:
    """Make a function from a payload's items or keys, and from these or its pairs, to a set or mapping of all of them.

    Hashing and comparing may be the application's code.
    """

    def make(keys: Collection[Any], content: Iterable[Any]) -> Any:
        _check_hashes(kind, keys)
        made = kind(content)
        if len(made) != len(keys):
            raise Malformed(f"the payload has an item or key of a {kind.__name__} twice")
        return made

    return guarded(make, f"the payload has a {kind.__name__} with an item or key that cannot be one", Malformed)


# Mappings


def _mapping(kind: Any, key: Codec, value: Codec) -> _Tables:
    tag, hashed = kind.__name__, _hashing(kind)

    def passes(mapping: Any) -> bool:
        return str in key.exact and value.exact.issuperset(map(type, mapping.values()))

    def encode_pairs(mapping: Any) -> Any:
        _check_hashes(kind, mapping)
        keys = _each_key(key.encode, mapping)
        pairs = zip(keys, _each(map(value.encode, mapping.values()), mapping), strict=True)
        return tagged(tag, list(map(list, pairs)))

    def encode_object(mapping: Any) -> Any:
        keys = mapping if str in key.exact else _each_key(key.encode, mapping)
        return dict(zip(keys, _each(map(value.encode, mapping.values()), mapping), strict=True))

    def decode_pairs(keys: Iterable[Any], trees: Iterable[Any]) -> Any:
        keys = _each_key(key.decode, keys)
        return hashed(keys, zip(keys, _each(map(value.decode, trees), keys), strict=True))

    def decode_object(tree: Any) -> Any:
        if str in key.exact:
            return dict(zip(tree, _each(map(value.decode, tree.values()), tree), strict=True))
        return decode_pairs(tree, tree.values())

    deeper_pairs, deeper_object = deeper(encode_pairs), deeper(encode_object)
    deeper_tree = deeper(decode_object, MAX_PAYLOAD_DEPTH)

    def encode(mapping: Any) -> Any:
        if kind is not dict or TAG in mapping or not _STR.issuperset(map(type, mapping)):
            return deeper_pairs(mapping)
        return mapping if passes(mapping) else deeper_object(mapping)

    def decode(tree: Any) -> Any:
        return tree if passes(tree) else deeper_tree(tree)

    decoders: dict[Any, Function] = {tag: deeper(unpairing(tag, decode_pairs), MAX_PAYLOAD_DEPTH)}
    return encode, decoders | {dict: decode} if kind is dict else decoders


def _each_key(function: Function, keys: Iterable[Any]) -> list[Any]:
    try:
        return _each(map(function, keys), keys)
    except CodecError as refusal:
        refusal.message = f"its key {refusal.steps[-1][1:-1]}: {refusal.message}"
        refusal.steps.clear()
        raise


def unpairing(tag: str, decode: Callable[[list[Any], list[Any]], Any]) -> Function:
    """Make a decoder of a mapping that was written as tagged pairs.

    :param decode: is given the keys and the values, as JSON.
    """

    def unpair(pairs: Any) -> Any:
        if not all(type(pair) is list and len(pair) == 2 for pair in pairs):
            raise Malformed(f"a payload tagged {tag!r} holds no pairs")
        return decode([key for key, _ in pairs], [value for _, value in pairs])

    return unwrapping(tag, unpair, form=list)
