"""What of arguments, results and headers is not shown: the values under keys that speak of secrets."""

from __future__ import annotations

import re
from typing import Any

from omniq.storage.urls import redact_all

__all__ = ["HIDDEN", "is_secret", "redacted", "restored"]

HIDDEN = "•••••"
"""What stands for a value that is not shown."""

_SECRET = re.compile(
    r"passw|passphrase|pwd|secret|token|api[-_ ]?key|access[-_ ]?key|private[-_ ]?key|signing[-_ ]?key|authorization"
    r"|(^|[-_. ])auth([-_. ]|$)|credential|cookie|session|signature|(^|[-_. ])(pin|otp|cvv|cvc|jwt|ssn)([-_. ]|$)",
    re.IGNORECASE,
)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def is_secret(key: str) -> bool:
    """Return whether a key speaks of a secret: ``password``, ``apiKey``, ``X-Auth-Token``."""
    return _SECRET.search(_HUMP.sub("_", key)) is not None


def redacted(value: Any) -> Any:
    """Return a value of JSON without the secrets in it: under such keys, however deep, and in URLs.

    :param value: what :func:`json.loads` returned; it is not changed.
    """
    match value:
        case dict():
            return {key: HIDDEN if is_secret(key) and one is not None else redacted(one) for key, one in value.items()}
        case list():
            return [redacted(one) for one in value]
        case str():
            return redact_all(value) if "://" in value else value
    return value


def restored(edited: Any, original: Any) -> Any:
    """Return an edited copy of what :func:`redacted` returned, with the secrets that were left as they were shown.

    :param edited: the edited value.
    :param original: the value as it is stored.
    """
    if edited == redacted(original):
        return original
    match edited, original:
        case dict(), dict():
            return {
                key: original[key]
                if key in original and one == HIDDEN and is_secret(key)
                else restored(one, original.get(key))
                for key, one in edited.items()
            }
        case list(), list():
            return [restored(one, original[n] if n < len(original) else None) for n, one in enumerate(edited)]
    return edited
