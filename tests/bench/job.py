"""What a measuring process is asked to do; travels as JSON from process to process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tests.bench.contenders.contender import Contender, Setting
from tests.bench.marks import Marks
from tests.bench.registry import Entry, find

__all__ = ["Job"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scenario of one contender."""

    contender: str
    store: str
    scenario: str
    size: int
    folder: str
    """A folder of this measurement's own; the runner removes it."""
    url: str = ""
    """Of the store's server, see :class:`Setting`."""
    name: str = ""
    """For what this measurement makes on the server."""
    monitor: str = ""
    """Where the server tells about itself, if that is another URL."""
    python: str = ""
    """Which version of Python the runner has."""
    kind: str = "async"
    """What the tasks are, see :class:`Setting`."""
    start_at_once: bool = False
    """For a worker: not to wait for the word."""
    enqueue_first: bool = False
    """For a worker: to enqueue one task itself, on a store that no other process could have put it into."""

    @classmethod
    def read(cls, text: str) -> Self:
        return cls(**json.loads(text))

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def entry(self) -> Entry:
        return find(self.contender, self.store)

    @property
    def marks_file(self) -> Path:
        return Path(self.folder, "marks")

    def make(self, marks: Marks) -> Contender:
        """Make this job's contender."""
        setting = Setting(
            store=self.store,
            kind=self.kind,
            folder=Path(self.folder),
            marks=marks,
            batch=self.entry.batch,
            url=self.url,
            name=self.name,
        )
        return self.entry.make(setting)
