"""What is kept of each queue apart from its tasks: counts, whether it is paused, and the orders its tasks stand in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from omniq.escaping import get_logger
from omniq.task import TaskState
from omniq_local.files.names import queue_path, token
from omniq_local.files.shelves import Shelf

__all__ = ["EXPIRING", "SHELVES", "Queue"]

_log = get_logger("omniq.files")

EXPIRING = "expiring"
"""The folder of ready and scheduled tasks that expire, by when."""
SHELVES = (*(state.value for state in TaskState), EXPIRING)


class Queue:
    """One queue, as far as this process knows it. Used under the store's lock.

    :param base: the namespace's folder.
    :param name: the queue's name.
    :param foreign: told of files that are none of ours.
    """

    def __init__(self, base: str, name: str, foreign: Callable[[str], None]) -> None:
        self.name = name
        self.path = queue_path(name)
        self._name_text = json.dumps(name, ensure_ascii=False)
        self.paused = False
        self.counts = dict.fromkeys(SHELVES, 0)
        folder = token(name)
        self.shelves = {state: Shelf(base, f"{state}/{folder}", foreign) for state in SHELVES}
        self.raw: bytes | None = None
        """The file as it is; None if there is none."""
        self.written: bytes | None = None
        """The file as the change under way writes it."""
        self.read_at = -1
        """The generation of the store that this was read in."""
        self._base = base

    @property
    def is_empty(self) -> bool:
        """Whether nothing has to be remembered."""
        return not self.paused and not any(self.counts.values())

    def read(self, generation: int) -> None:
        """Read the file, and forget what has changed."""
        self.read_at = generation
        try:
            with open(f"{self._base}/{self.path}", "rb") as file:
                data = file.read()
        except FileNotFoundError:
            self._take({}, generation)
            self.raw = None
            return
        if data == self.raw:
            return
        self.raw = data
        try:
            self._take(json.loads(data), generation)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            _log.exception("%s/%s cannot be read; run the store's repair", self._base, self.path)
            self._take({}, generation)

    def _take(self, text: dict[str, Any], generation: int) -> None:
        self.paused = bool(text.get("paused", False))
        counts, epochs, last = text.get("counts", {}), text.get("epochs", {}), text.get("last", {})
        for state, shelf in self.shelves.items():
            self.counts[state] = int(counts.get(state, 0))
            # A queue that is gone and comes again must not look like the one of old.
            epoch = int(epochs.get(state, generation if not text else 0))
            if epoch != shelf.epoch or not text:
                shelf.epoch = epoch
                shelf.forget_names()
            shelf.last = str(last.get(state, ""))

    def dump(self) -> bytes:
        """Give the file."""
        # By hand, since it is done for each change of a task; only the name needs an encoder.
        counts = ", ".join([f'"{state}": {count}' for state, count in self.counts.items() if count])
        shelves = self.shelves.items()
        epochs = ", ".join([f'"{state}": {shelf.epoch}' for state, shelf in shelves if shelf.epoch])
        last = ", ".join([f'"{state}": "{shelf.last}"' for state, shelf in shelves if shelf.last])
        return (
            f'{{"queue": {self._name_text}, "paused": {"true" if self.paused else "false"}, "counts": {{{counts}}}, '
            f'"epochs": {{{epochs}}}, "last": {{{last}}}}}\n'
        ).encode(errors="surrogatepass")

    @staticmethod
    def name_in(path: str) -> str | None:
        """Give the queue that a file is about; None if it cannot be read."""
        try:
            with open(path, "rb") as file:
                name = json.loads(file.read())["queue"]
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return None
        return name if isinstance(name, str) else None

    @staticmethod
    def files(base: str) -> list[str]:
        """Give the paths of the files of all queues."""
        folder = f"{base}/queues"
        try:
            return [f"{folder}/{name}" for name in sorted(os.listdir(folder)) if name.endswith(".json")]
        except FileNotFoundError:
            return []
