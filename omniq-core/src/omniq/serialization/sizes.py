"""Whether values are too large to be sent, told before they are encoded.

Encoding 600 MB takes seconds, in which nothing else in the process gets on, and three times the memory, only to find
out that they are over the limit. In JSON a character takes a byte or more, and so does a byte; an item of a list two
with its comma, one of a dict five. What is less than that cannot come of it, so a value is refused only if its encoded
form would be. Counting ends where the limit is reached.
"""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Any

from omniq.serialization.classes import fields_of, is_class_with_fields

__all__ = ["exceeds"]

_FLAT: frozenset[type] = frozenset({int, float, bool, type(None)})
_STR: frozenset[type] = frozenset({str})
_BYTES: frozenset[type] = frozenset({bytes, bytearray})
_COLLECTIONS: frozenset[type] = frozenset({list, tuple, set, frozenset, deque})
_MANY = 50
"""Items from which on looking at all types at once is quicker."""


def exceeds(values: Iterable[Any], limit: int) -> bool:
    """Tell whether values certainly take more bytes than a limit in JSON.

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
