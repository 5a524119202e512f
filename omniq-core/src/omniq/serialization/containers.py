"""Lists, tuples, sets, dicts and their like: built from the codecs of what they hold.

A list is a JSON array and a dict with str keys a JSON object; the others are tagged. Where every item passes as it
is, the container itself does, without being walked in Python.
"""

from __future__ import annotations

import operator
import sys
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any

from omniq.serialization.codec import (
    MAX_PAYLOAD_DEPTH,
    TAG,
    VALUE,
    Codec,
    CodecError,
    Function,
    Malformed,
    deeper,
    describe,
    is_tagged,
    key_step,
    tagged,
    wrapping,
)
from omniq.serialization.json_text import dumps

__all__ = ["CONTAINERS", "container_codec", "fixed_tuple_codec", "pairs_of"]

_MAPPINGS: frozenset[type] = frozenset({dict, OrderedDict})
CONTAINERS: frozenset[type] = frozenset({list, tuple, set, frozenset, deque}) | _MAPPINGS
"""The classes of which :func:`container_codec` makes codecs."""

_MOST_COLLISIONS = 1_000
_STR: frozenset[type] = frozenset({str})
_INT: frozenset[type] = frozenset({int})


def container_codec(name: str, kind: type, parts: Sequence[Codec]) -> Codec:
    """Make the codec of a container whose items, or whose keys and whose values, are all of one annotation.

    :param kind: one of :data:`CONTAINERS`.
    :param parts: the codec of its items, or those of its keys and of its values.
    """
    if kind in _MAPPINGS:
        return _mapping_codec(name, kind, *parts[:2])
    if kind is list:
        return _list_codec(name, parts[0])
    if kind is tuple:
        return _tuple_codec(name, parts[0])
    return _deque_codec(name, parts[0]) if kind is deque else _set_codec(name, kind, parts[0])


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


def _each_key(function: Function, keys: Iterable[Any]) -> list[Any]:
    try:
        return _each(map(function, keys), keys)
    except CodecError as refusal:
        refusal.message = f"its key {refusal.steps[-1][1:-1]}: {refusal.message}"
        refusal.steps.clear()
        raise


def _array(tree: Any, tag: str, *optional: str) -> list[Any]:
    items = tree.get(VALUE)
    if type(items) is not list or not is_tagged(tree, *optional):
        raise Malformed(f"a payload tagged {tag!r} has another shape than that form has")
    return items


def _items(item: Codec) -> tuple[Function, Function]:
    """Make the functions from values to a list of JSON trees, and from such a list to one of values."""
    encode_each = deeper(lambda values: _each(map(item.encode, values)))
    decode_each = deeper(lambda trees: _each(map(item.decode, trees)), MAX_PAYLOAD_DEPTH)

    def encode(values: Any) -> Any:
        return values if item.exact.issuperset(map(type, values)) else encode_each(values)

    def decode(trees: Any) -> Any:
        return trees if item.exact.issuperset(map(type, trees)) else decode_each(trees)

    return encode, decode


def _list_codec(name: str, item: Codec) -> Codec:
    encode, decode = _items(item)
    return Codec(name=name, encoders={list: encode}, decoders={list: decode}, self_describing=item.self_describing)


def _tagged_codec(name: str, kind: type, item: Codec, encode: Function, decode: Function) -> Codec:
    return Codec(
        name=name,
        encoders={kind: encode},
        decoders={kind.__name__: decode},
        self_describing=item.self_describing,
    )


def _tuple_codec(name: str, item: Codec) -> Codec:
    encode, decode = _items(item)
    # A list may be had from a tuple only by copying it; to JSON they are the same.
    return _tagged_codec(
        name, tuple, item, wrapping("tuple", encode), lambda tree: tuple(decode(_array(tree, "tuple")))
    )


def _deque_codec(name: str, item: Codec) -> Codec:
    encode_items, decode_items = _items(item)

    def encode(values: Any) -> Any:
        tree = tagged("deque", list(encode_items(values)))
        if values.maxlen is not None:
            tree["maxlen"] = values.maxlen
        return tree

    def decode(tree: Any) -> Any:
        values = decode_items(_array(tree, "deque", "maxlen"))
        maxlen = tree.get("maxlen")
        if maxlen is not None and (type(maxlen) is not int or not len(values) <= maxlen <= sys.maxsize):
            raise Malformed("the payload has a deque with a maxlen that cannot be")
        return deque(values, maxlen)

    return _tagged_codec(name, deque, item, encode, decode)


def _set_codec(name: str, kind: type, item: Codec) -> Codec:
    tag = kind.__name__
    encode_items, decode_items = _items(item)

    def encode(values: Any) -> Any:
        _check_hashes(kind, values)
        return tagged(tag, _sorted(encode_items(values)))

    def decode(tree: Any) -> Any:
        values = decode_items(_array(tree, tag))
        return _hashed(kind, values, values)

    return _tagged_codec(name, kind, item, encode, decode)


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


def _hashed(kind: Any, keys: list[Any], content: Iterable[Any]) -> Any:
    """Make a set or a mapping of what a payload has.

    :param keys: its items or its keys.
    :param content: its items or its pairs.
    :raises Malformed: if it cannot be made, or has fewer than those.
    """
    try:
        _check_hashes(kind, keys)
        made = kind(content)
    except CodecError:
        raise
    except Exception as error:
        # Hashing and comparing may be the application's code.
        raise Malformed(
            f"the payload has a {kind.__name__} with an item or key that cannot be one: {describe(error)}"
        ) from error
    if len(made) != len(keys):
        raise Malformed(f"the payload has an item or key of a {kind.__name__} twice")
    return made


def fixed_tuple_codec(name: str, items: Sequence[Codec]) -> Codec:
    """Make the codec of a tuple with a type for each position."""

    def encode(values: Any) -> Any:
        if len(values) != len(items):
            raise CodecError(f"expected {name}, was given a tuple of {len(values)}")
        return _each(map(operator.call, [item.encode for item in items], values))

    def decode(tree: Any) -> Any:
        trees = _array(tree, "tuple")
        if len(trees) != len(items):
            raise CodecError(f"expected {name}, but the payload has a tuple of {len(trees)}")
        return tuple(_each(map(operator.call, [item.decode for item in items], trees)))

    return Codec(
        name=name,
        encoders={tuple: wrapping("tuple", deeper(encode))},
        decoders={"tuple": deeper(decode, MAX_PAYLOAD_DEPTH)},
        label=name,
        full_label=name,
        self_describing=all(item.self_describing for item in items),
    )


def pairs_of(tree: Any, tag: str) -> list[list[Any]]:
    """Return the pairs of a mapping that was written as tagged pairs.

    :raises Malformed: if it was not.
    """
    pairs = _array(tree, tag)
    if not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise Malformed(f"a payload tagged {tag!r} holds no pairs")
    return pairs


def _mapping_codec(name: str, kind: type, key: Codec, value: Codec) -> Codec:
    tag = kind.__name__

    def passes(mapping: Any) -> bool:
        return str in key.exact and value.exact.issuperset(map(type, mapping.values()))

    def encode_pairs(mapping: Any) -> Any:
        _check_hashes(kind, mapping)
        keys = _each_key(key.encode, mapping)
        values = _each(map(value.encode, mapping.values()), mapping)
        return tagged(tag, [[k, v] for k, v in zip(keys, values, strict=True)])

    def encode_object(mapping: Any) -> Any:
        keys = mapping if str in key.exact else _each_key(key.encode, mapping)
        return dict(zip(keys, _each(map(value.encode, mapping.values()), mapping), strict=True))

    deeper_pairs, deeper_object = deeper(encode_pairs), deeper(encode_object)

    def encode(mapping: Any) -> Any:
        if kind is not dict or TAG in mapping or not _STR.issuperset(map(type, mapping)):
            return deeper_pairs(mapping)
        return mapping if passes(mapping) else deeper_object(mapping)

    def decode_pairs(tree: Any) -> Any:
        pairs = pairs_of(tree, tag)
        keys = _each_key(key.decode, [one for one, _ in pairs])
        values = _each(map(value.decode, [item for _, item in pairs]), keys)
        return _hashed(kind, keys, zip(keys, values, strict=True))

    def decode_object(tree: Any) -> Any:
        if str in key.exact:
            return dict(zip(tree, _each(map(value.decode, tree.values()), tree), strict=True))
        keys = _each_key(key.decode, tree)
        return _hashed(kind, keys, zip(keys, _each(map(value.decode, tree.values()), keys), strict=True))

    deeper_tree = deeper(decode_object, MAX_PAYLOAD_DEPTH)

    def decode(tree: Any) -> Any:
        return tree if passes(tree) else deeper_tree(tree)

    decoders: dict[Any, Function] = {tag: deeper(decode_pairs, MAX_PAYLOAD_DEPTH)}
    if kind is dict:
        decoders[dict] = decode
    return Codec(
        name=name,
        encoders={kind: encode},
        decoders=decoders,
        self_describing=key.self_describing and value.self_describing,
    )
