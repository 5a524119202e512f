"""What the fields of forms hold, as values."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["json_field"]

_EXAMPLES = {list: '[1, "a"]', dict: '{"width": 200}'}


def json_field(text: str, name: str, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """Return the value that a field holds as JSON.

    :param name: of the field, for the error.
    :param kind: what the value must be.
    :raises ValueError: if it is no JSON, or of another kind; names the field.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: this is no JSON ({error})") from None
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be such as {_EXAMPLES[kind]}")
    return value
