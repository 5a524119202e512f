"""Which errors pass, and what the others are called."""

from __future__ import annotations

import re

from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    DataError,
    MasterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from omniq.errors import StorageUnavailable
from omniq_redis.connection import LinkLost
from omniq_redis.settings import Settings

__all__ = ["LOST", "is_passing", "reason", "unavailable"]

LOST = (LinkLost, RedisError, OSError, EOFError, TimeoutError)
"""What comes of a connection that cannot be made, or breaks."""

# Of these redis-py drops the word by which the others are known.
_PASSING_KINDS = (
    AskError,
    ClusterDownError,
    EOFError,
    LinkLost,
    MasterDownError,
    NoScriptError,
    OSError,
    ReadOnlyError,
    RedisConnectionError,
    RedisTimeoutError,
    TimeoutError,
    TryAgainError,
)
_PASSING = re.compile(r"\b(ASK|BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MOVED|NOREPLICAS|NOSCRIPT|READONLY|TRYAGAIN)\b")
_ABOUT_THE_SCRIPT = re.compile(
    r" ?script: [0-9a-f]{40}, on @user_script:\d+\.?|(ERR )?Error running script [^:]*: |@user_script: ?\d+: "
)


def is_passing(error: BaseException) -> bool:
    """Say whether the same may work in a moment, perhaps with another server."""
    if isinstance(error, AuthenticationError | DataError):
        return False
    return isinstance(error, _PASSING_KINDS) or _PASSING.search(str(error)) is not None


def unavailable(settings: Settings, error: BaseException) -> StorageUnavailable:
    """Return the error to raise for one of the server's or of the connection."""
    return StorageUnavailable(f"{settings.shown}: {reason(error)}")


def reason(error: BaseException) -> str:
    """Say what an error of the server's or of the connection tells."""
    text = _ABOUT_THE_SCRIPT.sub("", str(error)).strip(" .,")
    if "UNKNOWN" in text:  # redis-py's word for an error without a number
        return "the server closed the connection"
    return text or type(error).__name__
