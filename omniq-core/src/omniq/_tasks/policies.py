"""Values of plain fields (retry policies, triggers) as text, and back: ``{"kind": "fixed", "delay": 5.0}``.

The kind is looked up among the installed plugins; nothing that a store holds is ever imported.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

from omniq.errors import ConfigurationError, SerializationError
from omniq.storage.posix import at_fork

__all__ = ["decode_value", "encode_value"]


class Kinded(Protocol):
    """A class that is stored under a kind."""

    kind: ClassVar[str]


V = TypeVar("V", bound=Kinded)

LONGEST_TEXT = 100_000
"""Characters of a stored policy or trigger."""
LONGEST_SHOWN = 200
"""Characters of a stored text that an error shows."""


_importing = threading.Lock()
# A child forked in the middle of an import would wait for its end for ever.
at_fork(before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release)


@functools.cache
def _converter() -> Any:
    # cattrs costs tens of milliseconds to import, and most processes never need it here.
    with _importing:
        from cattrs.preconf.json import make_converter

    return make_converter()


def encode_value(value: Kinded) -> str:
    """Return the text of a policy or trigger.

    :raises ConfigurationError: if one of its fields has no JSON form.
    """
    try:
        text = json.dumps({"kind": value.kind, **_converter().unstructure(value)}, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{value!r} cannot be stored: {error}") from error
    if len(text) > LONGEST_TEXT:
        raise ConfigurationError(f"{_shown(text)} cannot be stored: it has more than {LONGEST_TEXT:,} characters")
    return text


def decode_value(text: str, look_up: Callable[[str], type[V]]) -> V:
    """Return the policy or trigger of a text.

    :param text: what :func:`encode_value` made.
    :param look_up: returns the class of a kind.
    :raises UnknownPlugin: if the kind is not installed here.
    :raises SerializationError: if the text does not fit the class.
    """
    if len(text) > LONGEST_TEXT:
        raise SerializationError(f"{_shown(text)} has {len(text):,} characters; no policy or trigger has so many")
    try:
        fields = json.loads(text)
        kind = fields.pop("kind")
        hash(kind)  # it is looked up, and a list could not be
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise SerializationError(f"{_shown(text)} is not a stored policy or trigger") from error
    cls = look_up(kind)
    try:
        value: V = _converter().structure(fields, cls)
    except Exception as error:  # cattrs raises groups of whatever the fields' converters raise
        raise SerializationError(f"{_shown(text)} does not fit {cls.__name__}: {error}") from error
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…")
