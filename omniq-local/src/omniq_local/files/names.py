"""What files and folders are called: by names that sort as the tasks are to be served, and that any text fits into."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import quote, unquote
from zlib import crc32

__all__ = [
    "HOME_SIZE",
    "Entry",
    "about_path",
    "home_path",
    "id_path",
    "is_key",
    "parse_entry",
    "place_key",
    "queue_path",
    "schedule_path",
    "text_of",
    "time_key",
    "token",
    "unique_path",
    "worker_path",
]

HOME_SIZE = 1000
"""Tasks in one folder of ``tasks/``."""
LONGEST = 100
"""Characters that a text may take within a file's name."""
_ENTRY = re.compile(r"((?:\d{3}-)?\d{18}-(\d{12}))-(.+)\.json", re.ASCII)
_KEY = re.compile(r"(?:\d{3}-)?\d{18}-\d{12}", re.ASCII)
_MIDDLE = 500


class Entry(NamedTuple):
    """The parts of a file's name in a folder of a state."""

    key: str
    sequence: int
    id_token: str


def token(text: str) -> str:
    """Return a text as part of a file's name: legible, without separators, not hidden, not too long."""
    quoted = quote(text, safe=" ,;=@+()", errors="surrogatepass")
    if quoted.startswith("."):
        quoted = "%2E" + quoted[1:]
    if len(quoted) > LONGEST:
        digest = sha256(text.encode(errors="surrogatepass")).hexdigest()
        return f"{quoted[:60]}%~{digest[:32]}"
    return quoted or "%"


def text_of(token_: str) -> str | None:
    """Return the text that is part of a file's name; None if it was too long to be legible there."""
    text = unquote(token_, errors="surrogatepass") if token_ != "%" else ""
    return text if token(text) == token_ else None


def place_key(priority: int, at: int, sequence: int) -> str:
    """Return the key of a ready task: larger priorities first, then by time, then by sequence number.

    :param at: microseconds.
    """
    return f"{min(max(_MIDDLE - priority, 0), 999):03d}-{at:018d}-{sequence:012d}"


def time_key(at: int, sequence: int) -> str:
    """Return the key of a task that is ordered by a time.

    :param at: microseconds.
    """
    return f"{at:018d}-{sequence:012d}"


def parse_entry(name: str) -> Entry | None:
    """Read a file's name in a folder of a state; None if it is none of ours."""
    match = _ENTRY.fullmatch(name)
    return None if match is None else Entry(match[1], int(match[2]), match[3])


def is_key(text: str) -> bool:
    """Return whether a text can be the key of a file in a folder of a state."""
    return _KEY.fullmatch(text) is not None


def home_path(sequence: int, id_token: str) -> str:
    """Return where a task's file is all its life."""
    return f"tasks/{sequence // HOME_SIZE:09d}/{sequence:012d}-{id_token}.json"


def id_path(id_token: str) -> str:
    """Return where a task is found by its id."""
    return f"ids/{crc32(id_token.encode()) & 0xFF:02x}/{id_token}.json"


def unique_path(key: str) -> str:
    """Return where the live task with a unique key is found."""
    digest = sha256(key.encode(errors="surrogatepass")).hexdigest()
    return f"unique/{digest[:2]}/{digest[2:42]}.json"


def queue_path(queue: str) -> str:
    """Return where the numbers of a queue are kept."""
    return f"queues/{token(queue)}.json"


def schedule_path(schedule_id: str) -> str:
    """Return where a schedule is kept."""
    return f"schedules/{token(schedule_id)}.json"


def worker_path(worker: str) -> str:
    """Return where it is noted that a worker is alive."""
    return f"workers/{token(worker)}.json"


def about_path(worker: str) -> str:
    """Return the path of what a worker tells about itself, which is kept apart as it is written more rarely."""
    return f"about/{token(worker)}.json"
