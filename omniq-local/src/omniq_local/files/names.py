"""What files and folders are called: by names that sort as the tasks are to be served, and that any text fits into."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import quote, unquote
from zlib import crc32

__all__ = [
    "HOME_SIZE",
    "LIMITS",
    "LINES",
    "Entry",
    "Member",
    "about_path",
    "flow_key_path",
    "flow_of_folder",
    "flow_path",
    "gates_path",
    "home_path",
    "id_path",
    "is_key",
    "limit_path",
    "line_folder",
    "member_path",
    "members_folder",
    "parse_entry",
    "parse_member",
    "part_of",
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
_MEMBER = re.compile(r"(_|\d{1,10})\.([a-z]+)-(\d{12})-(.+)\.json", re.ASCII)
GATES_IN_A_FILE = 50
"""Gates of a flow, with numbers that follow one another, that are kept in one file."""
MEMBERS_IN_A_FOLDER = 10_000
"""Tasks of a flow, of those that stand behind the gates of one file, that one folder can hold."""


class Entry(NamedTuple):
    """The parts of a file's name in a folder of a state."""

    key: str
    sequence: int
    id_token: str


class Member(NamedTuple):
    """The parts of a file's name in a folder of a flow."""

    behind: int | None
    """The gate that the task stands behind."""
    state: str
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
    # As in _bucket: this is asked for twice for each task that is enqueued.
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


def limit_path(limit_id: str) -> str:
    """Return where a limit is kept, beside :data:`LIMITS`.

    :param limit_id: see :attr:`omniq.limit.Limit.id`.
    """
    return f"limits/{token(limit_id)}.json"


def worker_path(worker: str) -> str:
    """Return where it is noted that a worker is alive."""
    return f"workers/{token(worker)}.json"


LIMITS = "limits/log.jsonl"
"""Where everything about limits is kept but themselves."""
LINES = "lines"
"""The folder of the folders of lines."""


def line_folder(line: str) -> str:
    """Return the folder of the ready tasks of a line.

    :param line: its id, see :func:`omniq.limit.line_id`.
    """
    return f"{LINES}/{line[:2]}/{line}"


def about_path(worker: str) -> str:
    """Return the path of what a worker tells about itself, which is kept apart as it is written more rarely."""
    return f"about/{token(worker)}.json"


def part_of(gate: int | None) -> int:
    """Return which file of a flow's gates has one, and which folders have the tasks behind it (None: behind none)."""
    return 0 if gate is None else gate // GATES_IN_A_FILE


def flow_path(flow_token: str) -> str:
    """Return where a flow is kept."""
    return f"flows/ids/{_bucket(flow_token)}/{flow_token}.json"


def gates_path(flow_token: str, part: int) -> str:
    """Return where some of the gates of a flow are kept."""
    return f"flows/gates/{_bucket(flow_token)}/{flow_token}.{part}.json"


def members_folder(flow_token: str, part: int, block: int) -> str:
    """Return the folder of tasks of a flow that stand behind some of its gates.

    :param block: the sequence numbers of the tasks, divided by :data:`MEMBERS_IN_A_FOLDER`.
    """
    return f"flows/members/{_bucket(flow_token)}/{flow_token}.{part}.{block}"


def flow_of_folder(path: str) -> str:
    """Return the part of a file's name that stands for the flow of which a folder of tasks is."""
    return path.split("/")[3].rsplit(".", 2)[0]


def member_path(flow_token: str, member: Member) -> str:
    """Return where a task of a flow is found by its flow, its gate and its state."""
    folder = members_folder(flow_token, part_of(member.behind), member.sequence // MEMBERS_IN_A_FOLDER)
    behind = "_" if member.behind is None else member.behind
    return f"{folder}/{behind}.{member.state}-{member.sequence:012d}-{member.id_token}.json"


def parse_member(name: str) -> Member | None:
    """Read a file's name in a folder of a flow; None if it is none of ours."""
    match = _MEMBER.fullmatch(name)
    if match is None:
        return None
    return Member(None if match[1] == "_" else int(match[1]), match[2], int(match[3]), match[4])


def flow_key_path(key: str) -> str:
    """Return where the flow that has not ended and has a unique key is found."""
    return f"flows/keys/{unique_path(key).partition('/')[2]}"


def _bucket(text: str) -> str:
    return f"{crc32(text.encode()) & 0xFF:02x}"
