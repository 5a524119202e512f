"""The default serializer: JSON that a person can read, typed by the function's annotations.

Arguments are written as ``[[positional...], {"keyword": ...}]``, a result as itself. What comes out of it is equal to
what went in and of the same type, or it did not go in: a value that JSON and the annotations cannot hold is refused
when the task is enqueued, with the path to it. Nothing that a payload says is imported or evaluated; classes come
from annotations only.
"""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omniq.errors import SerializationError
from omniq.serialization import ArgumentTypes
from omniq.serialization.build import Codecs
from omniq.serialization.classes import fields_of, is_class_with_fields
from omniq.serialization.codec import CodecError
from omniq.serialization.json_text import dumps, loads

if TYPE_CHECKING:
    import cattrs

__all__ = ["JsonSerializer", "exceeds", "serializer"]

_MAX_PLANS = 4_096
_FLAT: frozenset[type] = frozenset({int, float, bool, type(None)})
_STR: frozenset[type] = frozenset({str})
_BYTES: frozenset[type] = frozenset({bytes, bytearray})
_COLLECTIONS: frozenset[type] = frozenset({list, tuple, set, frozenset, deque})
_MANY = 50
"""Items from which on looking at all types at once is quicker."""


def exceeds(values: Iterable[Any], limit: int) -> bool:
    """Tell whether values certainly take more bytes than a limit in JSON, before they are encoded.

    Encoding 600 MB takes seconds, in which nothing else in the process gets on, and three times the memory, only to
    find out that they are over the limit. A character takes a byte or more, and so does a byte; an item of a list two
    with its comma, one of a dict five. What is less than that cannot come of it, so a value is refused only if its
    encoded form would be. Counting ends where the limit is reached.

    :param values: such as a call's arguments.
    :param limit: bytes.
    """
    left = limit
    # It grows while it is gone through: not recursive, as values may be nested deeply, or hold themselves.
    found: list[Iterable[Any]] = [values]
    for inside in found:
        for value in inside:
            kind = type(value)
            if kind is str:
                left -= len(value)
            elif kind in _FLAT:
                continue
            elif kind is dict or kind is OrderedDict:
                left -= 5 * len(value)
                found.append(value.values())
            elif kind in _COLLECTIONS:
                left -= 2 * len(value)
                if len(value) < _MANY:
                    found.append(value)
                elif left >= 0:
                    kinds = set(map(type, value))
                    if kinds == _STR:
                        left -= sum(map(len, value))
                    elif not kinds <= _FLAT:
                        found.append(value)
            elif kind in _BYTES:
                left -= len(value)
            elif names := _field_names(kind):  # type: ignore[arg-type]  # mypy takes no class for hashable
                found.append([getattr(value, name, None) for name in names])
        if left < 0:
            return True
    return False


@functools.lru_cache(maxsize=1024)
def _field_names(kind: type) -> Sequence[str]:
    return [one.name for one in fields_of(kind).all] if is_class_with_fields(kind) else ()


class JsonSerializer:
    """JSON with the types of the annotations. See the module."""

    name = "json"

    def __init__(self) -> None:
        self._converter: cattrs.Converter | None = None
        self._codecs = Codecs(lambda: self.converter)
        self._plans: dict[int, tuple[ArgumentTypes, ArgumentTypes]] = {}
        """By the id of types, as they cannot be hashed: these, so that no others can have it, and their codecs."""

    @property
    def converter(self) -> cattrs.Converter:
        """The cattrs converter that is asked for classes of no kind that OmniQ knows.

        An application that sends such values registers a structure and an unstructure hook for their class here, in
        producers and workers alike. What the unstructure hook gives may be anything that can be sent without
        annotation.
        """
        if self._converter is None:
            import cattrs

            self._converter = cattrs.Converter()
        return self._converter

    exceeds = staticmethod(exceeds)

    def dump_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], types: ArgumentTypes) -> bytes:
        positional, keyword = [*args], {**kwargs}
        self._convert("encode", positional, keyword, types)
        return self.dump_tree([positional, keyword])

    def load_arguments(self, data: bytes, types: ArgumentTypes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tree = _read(data, "the arguments")
        if type(tree) is not list or len(tree) != 2 or type(tree[0]) is not list or type(tree[1]) is not dict:
            raise SerializationError("the payload is no array of an array and an object", "the arguments")
        positional, keyword = tree
        self._convert("decode", positional, keyword, types)
        return tuple(positional), keyword

    def _convert(self, verb: str, positional: list[Any], keyword: dict[str, Any], types: ArgumentTypes) -> None:
        """Encode or decode each argument in its place, by the codec of its type."""
        _, codecs = self._plans.get(id(types)) or self._plan(types)
        each = codecs.positional
        if len(positional) > len(each):
            each += (codecs.var_positional,) * (len(positional) - len(each))
        index, name = 0, None
        try:
            for index, value in enumerate(positional):
                codec = each[index]
                if type(value) not in codec.exact:
                    positional[index] = getattr(codec, verb)(value)
            for name, value in keyword.items():
                codec = codecs.keyword.get(name, codecs.var_keyword)
                if type(value) not in codec.exact:
                    keyword[name] = getattr(codec, verb)(value)
        except (CodecError, RecursionError) as error:
            root = f"args[{index}]" if name is None else f"kwargs[{name!r}]"
            raise _public(error, root, of_arguments=verb == "decode") from error.__cause__

    def dump_result(self, value: Any, hint: Any) -> bytes:
        try:
            return dumps(self._codecs.of(hint).encode(value))
        except (CodecError, RecursionError) as error:
            raise _public(error, "result") from error.__cause__

    def load_result(self, data: bytes, hint: Any) -> Any:
        try:
            return self._codecs.of(hint).decode(loads(data))
        except (CodecError, RecursionError) as error:
            raise _public(error, "result") from error.__cause__

    def load_tree(self, data: bytes) -> Any:
        return _read(data, "the result of another task")

    def dump_tree(self, tree: Any) -> bytes:
        try:
            return dumps(tree)
        except CodecError as refusal:
            raise refusal.error("the arguments") from None

    def _plan(self, types: ArgumentTypes) -> tuple[ArgumentTypes, ArgumentTypes]:
        codec_of = self._codecs.of
        codecs = ArgumentTypes(
            tuple(map(codec_of, types.positional)),
            codec_of(types.var_positional),
            {name: codec_of(hint) for name, hint in types.keyword.items()},
            codec_of(types.var_keyword),
        )
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        self._plans[id(types)] = plan = types, codecs
        return plan


def _public(error: CodecError | RecursionError, root: str, *, of_arguments: bool = False) -> SerializationError:
    if isinstance(error, RecursionError):
        return SerializationError("is nested too deeply", root)
    return error.error(root, of_arguments=of_arguments)


def _read(data: bytes, root: str) -> Any:
    try:
        return loads(data)
    except CodecError as refusal:
        raise refusal.error(root) from None


serializer = JsonSerializer()
