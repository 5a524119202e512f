"""Lists, tuples, sets, dicts and their like: built from the codecs of what they hold.

A list is a JSON array and a dict with str keys a JSON object; the others are tagged. Where every item passes as it
is, the container itself does, without being walked in Python.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeAlias

from omniq.serialization.codec import Codec, Function, deeper, deeper_in_payloads, is_tagged, tagged, wrapping
from omniq.serialization.errors import CodecError, Malformed, describe, key_step
from omniq.serialization.json_text import TAG, VALUE, dumps

__all__ = ["array_codec", "deque_codec", "fixed_tuple_codec", "list_codec", "mapping_codec", "pairs_of"]

_Build: TypeAlias = Callable[[list[Any]], Any]
_MOST_COLLISIONS = 1_000
_STR: frozenset[type] = frozenset({str})
_INT: frozenset[type] = frozenset({int})


def _each(function: Function, values: Iterable[Any]) -> list[Any]:
    done: list[Any] = []
    try:
        # It keeps what came before a refusal, so that its length says where that was.
        done.extend(map(function, values))
    except CodecError as refusal:
        refusal.steps.append(f"[{len(done)}]")
        raise
    return done


def _each_by_its_own(functions: Iterable[Function], values: Iterable[Any]) -> list[Any]:
    done: list[Any] = []
    try:
        for function, value in zip(functions, values, strict=True):
            done.append(function(value))
    except CodecError as refusal:
        refusal.steps.append(f"[{len(done)}]")
        raise
    return done


def _array(tree: Any, tag: str, *optional: str) -> list[Any]:
    items = tree.get(VALUE)
    if type(items) is not list or not is_tagged(tree, *optional):
        raise Malformed(f"a payload tagged {tag!r} has another shape than that form has")
    return items


def _items(item: Codec) -> tuple[Function, Function]:
    """Make the functions from values to a list of JSON trees, and from such a list to one of values."""

    def encode_each(values: Any) -> list[Any]:
        return _each(item.encode, values)

    def decode_each(trees: Any) -> list[Any]:
        return _each(item.decode, trees)

    encode_nested, decode_nested = deeper(encode_each), deeper_in_payloads(decode_each)

    def encode(values: Any) -> Any:
        return values if item.exact.issuperset(map(type, values)) else encode_nested(values)

    def decode(trees: Any) -> Any:
        return trees if item.exact.issuperset(map(type, trees)) else decode_nested(trees)

    return encode, decode


def list_codec(name: str, item: Codec) -> Codec:
    """Make the codec of ``list[item]``."""
    encode, decode = _items(item)
    return Codec(name=name, encoders={list: encode}, array=decode, self_describing=item.self_describing)


def array_codec(name: str, kind: type, item: Codec) -> Codec:
    """Make the codec of a ``tuple`` of any length, a ``set`` or a ``frozenset``."""
    tag = kind.__name__
    encode_items, decode_items = _items(item)
    build: _Build = tuple if kind is tuple else _set_of(kind)

    def encode(values: Any) -> Any:
        if kind is not tuple:
            _check_hashes(kind, values)
        trees = encode_items(values)
        # A list may be had from a tuple only by copying it; to JSON they are the same.
        return tagged(tag, trees if kind is tuple else _sorted(trees))

    def decode(tree: Any) -> Any:
        return build(decode_items(_array(tree, tag)))

    return Codec(name=name, encoders={kind: encode}, tags={tag: decode}, self_describing=item.self_describing)


def _sorted(trees: Iterable[Any]) -> list[Any]:
    # Equal sets make equal bytes, whatever order they iterate in.
    kinds = set(map(type, trees))
    if kinds <= _STR or kinds <= _INT:
        return sorted(trees)
    return sorted(trees, key=dumps)


def _check_hashes(kind: type, values: Collection[Any]) -> None:
    """Refuse values so many of which have the same hash that a set or dict of them takes minutes to make.

    Strings and bytes are hashed by a secret; numbers are not, so that a payload can be written on purpose to be slow.

    :raises Refusal: if they are so.
    """
    if len(values) > _MOST_COLLISIONS:
        collisions = len(values) - len(set(map(hash, values)))
        if collisions > _MOST_COLLISIONS:
            raise Malformed(f"has a {kind.__name__} of which {collisions:,} items or keys have the hash of another")


def _set_of(kind: type) -> _Build:
    def build(values: list[Any]) -> Any:
        try:
            _check_hashes(kind, values)
            made = kind(values)
        except CodecError:
            raise
        except Exception as error:
            # Hashing and comparing may be the application's code.
            raise Malformed(f"the payload has a {kind.__name__} of what cannot be in one: {describe(error)}") from error
        if len(made) != len(values):
            raise Malformed(f"the payload has an item of a {kind.__name__} twice")
        return made

    return build


def deque_codec(name: str, item: Codec) -> Codec:
    """Make the codec of ``deque[item]``."""
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

    return Codec(name=name, encoders={deque: encode}, tags={"deque": decode}, self_describing=item.self_describing)


def fixed_tuple_codec(name: str, items: Sequence[Codec]) -> Codec:
    """Make the codec of a tuple with a type for each position."""

    def encode(values: Any) -> Any:
        if len(values) != len(items):
            raise CodecError(f"expected {name}, was given a tuple of {len(values)}")
        return _each_by_its_own([item.encode for item in items], values)

    def decode(tree: Any) -> Any:
        trees = _array(tree, "tuple")
        if len(trees) != len(items):
            raise CodecError(f"expected {name}, but the payload has a tuple of {len(trees)}")
        return tuple(_each_by_its_own([item.decode for item in items], trees))

    return Codec(
        name=name,
        encoders={tuple: wrapping("tuple", deeper(encode))},
        tags={"tuple": deeper_in_payloads(decode)},
        self_describing=all(item.self_describing for item in items),
    )


def pairs_of(tree: Any, tag: str) -> list[list[Any]]:
    """Return the pairs of a mapping that was written as tagged pairs.

    :raises Refusal: if it was not.
    """
    pairs = _array(tree, tag)
    if not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise Malformed(f"a payload tagged {tag!r} holds no pairs")
    return pairs


def _each_value(function: Function, pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
    done: list[Any] = []
    key: Any = None
    try:
        for key, value in pairs:  # noqa: B007  # the handler says at which
            done.append(function(value))
    except CodecError as refusal:
        refusal.steps.append(key_step(key))
        raise
    return done


def _each_key(function: Function, keys: Iterable[Any]) -> list[Any]:
    done: list[Any] = []
    key: Any = None
    try:
        for key in keys:
            done.append(function(key))
    except CodecError as refusal:
        refusal.message = f"its key {key_step(key)[1:-1]}: {refusal.message}"
        refusal.steps.clear()
        raise
    return done


def mapping_codec(name: str, kind: type, key: Codec, value: Codec) -> Codec:
    """Make the codec of ``dict[key, value]`` or ``OrderedDict[key, value]``."""
    tag = kind.__name__

    def passes(mapping: Any) -> bool:
        return str in key.exact and value.exact.issuperset(map(type, mapping.values()))

    @deeper
    def encode_pairs(mapping: Any) -> Any:
        _check_hashes(kind, mapping)
        keys = _each_key(key.encode, mapping)
        values = _each_value(value.encode, mapping.items())
        return tagged(tag, [[k, v] for k, v in zip(keys, values, strict=True)])

    @deeper
    def encode_object(mapping: Any) -> Any:
        keys = mapping if str in key.exact else _each_key(key.encode, mapping)
        return dict(zip(keys, _each_value(value.encode, mapping.items()), strict=True))

    def encode(mapping: Any) -> Any:
        if kind is not dict or TAG in mapping or not _STR.issuperset(map(type, mapping)):
            return encode_pairs(mapping)
        return mapping if passes(mapping) else encode_object(mapping)

    @deeper_in_payloads
    def decode_pairs(tree: Any) -> Any:
        pairs = pairs_of(tree, tag)
        keys = _each_key(key.decode, [pair[0] for pair in pairs])
        values = _each_value(value.decode, zip(keys, [pair[1] for pair in pairs], strict=True))
        return _mapping_of(kind, keys, values)

    @deeper_in_payloads
    def decode_object(tree: Any) -> Any:
        keys = tree if str in key.exact else _each_key(key.decode, tree)
        return _mapping_of(kind, list(keys), _each_value(value.decode, tree.items()))

    def decode(tree: Any) -> Any:
        return tree if passes(tree) else decode_object(tree)

    return Codec(
        name=name,
        encoders={kind: encode},
        plain=decode if kind is dict else None,
        tags={tag: decode_pairs},
        self_describing=key.self_describing and value.self_describing,
    )


def _mapping_of(kind: type, keys: list[Any], values: list[Any]) -> Any:
    try:
        _check_hashes(kind, keys)
        made = kind(zip(keys, values, strict=True))
    except CodecError:
        raise
    except Exception as error:
        # Hashing and comparing may be the application's code.
        raise Malformed(
            f"the payload has a {kind.__name__} with a key that cannot be one: {describe(error)}"
        ) from error
    if len(made) != len(keys):
        raise Malformed(f"the payload has a key of a {kind.__name__} twice")
    return made
