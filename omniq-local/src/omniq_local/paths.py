"""Which file a storage URL means, and who may read it.

Percent signs stand for characters in a URL, but also in the names of files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from urllib.parse import unquote

from omniq.errors import ConfigurationError
from omniq.storage import StorageConfig

__all__ = ["PRIVATE", "file_mode", "path_meant"]

PRIVATE = 0o600
"""The permissions of files, unless the URL says otherwise."""


def path_meant(given: str, shown: str) -> str:
    """Return the path that a URL means: decoded, unless it is there, or its folder is, just as it is written.

    Those who put a path of theirs into a URL do not encode it, and there are folders such as ``feature%2Flogin``.

    :param given: the path as it stands in the URL.
    :param shown: the URL as it may be shown in an error.
    :raises ConfigurationError: if both are there.
    """
    decoded = unquote(given)
    if decoded == given or "\0" in decoded:
        return decoded
    exists: Callable[[str], bool]
    for exists in (os.path.exists, _has_folder):
        as_written, as_decoded = exists(given), exists(decoded)
        if as_written and as_decoded and exists is os.path.exists:
            raise ConfigurationError(
                f"{shown}: both {given!r} and {decoded!r} are there; for the first write %25 instead of %, for the "
                "second write its characters as they are"
            )
        if as_written or as_decoded:
            return decoded if as_decoded else given
    return decoded


def file_mode(config: StorageConfig) -> int:
    """Return the permissions that the files of a store get, from the option ``mode``.

    :raises ConfigurationError: if it is none that a store can do with.
    """
    text = config.options.get("mode", f"{PRIVATE:04o}")
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o666 or mode & 0o600 != 0o600 or mode & 0o111:
        raise ConfigurationError(
            f"{config.redacted}: mode must be the permissions of a file, in octal, that its owner can read and write: "
            f"0600, 0660 (the group, too) or the like, not {text!r}"
        )
    return mode


def _has_folder(path: str) -> bool:
    return os.path.isdir(os.path.dirname(path) or ".")
