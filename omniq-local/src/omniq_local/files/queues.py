"""What is kept of each queue apart from its tasks: counts, whether it is paused, and the orders its tasks stand in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from attrs import Factory, define

from omniq.storage.corrupt_records import corrupt, log_once
from omniq.storage.escaping import get_logger
from omniq.storage.validation import UNREADABLE, check_text
from omniq.task import TaskState
from omniq_local.files.journal import LARGEST
from omniq_local.files.names import flow_path, is_key, parse_entry, queue_path, text_of, token
from omniq_local.files.records import LINED
from omniq_local.files.state_folders import StateFolder
from omniq_local.files.tree import NO_FILE, Tree

__all__ = ["DUE", "EXPIRING", "KEPT", "LINED", "SHELVES", "FlowLine", "Queue", "check_queue", "shelves_of"]

_log = get_logger("omniq.files")

EXPIRING = "expiring"
"""The folder of ready and scheduled tasks that expire, by when."""
SHELVES = (*(state.value for state in TaskState), LINED, EXPIRING)
DUE, KEPT = "due", "kept"
"""The folders of flows: of those that have not ended, by when there is something to do about them, and of the others,
by when they are removed."""


class Queue:
    """One queue, as far as this process knows it. Used under the store's lock.

    :param tree: the namespace's files.
    :param name: the queue's name.
    :param foreign: told of files that are none of ours.
    """

    def __init__(self, tree: Tree, name: str, foreign: Callable[[str], None]) -> None:
        folder = token(name)
        state_folders = {
            state: StateFolder(tree, f"{state}/{folder}", foreign, ranked=state in (TaskState.READY, LINED))
            for state in SHELVES
        }
        self._set_up(tree, name, queue_path(name), state_folders)

    def _set_up(self, tree: Tree, name: str, path: str, state_folders: dict[str, StateFolder]) -> None:
        self.name = name
        self.path = path
        self._name_text = json.dumps(name, ensure_ascii=False)
        self.paused = False
        self.counts = dict.fromkeys(state_folders, 0)
        self.state_folders = state_folders
        self.raw: bytes | None = None
        """The file as it is; None if there is none."""
        self.written: bytes | None = None
        """The file as the change under way writes it."""
        self.read_at = -1
        """The generation of the store that this was read in."""
        self._tree = tree

    @property
    def is_empty(self) -> bool:
        """Whether nothing has to be remembered."""
        return not self.paused and not any(self.counts.values())

    def read(self, generation: int) -> None:
        """Read the file, and forget what has changed."""
        self.read_at = generation
        try:
            data = self._tree.read(self.path)
        except FileNotFoundError:
            self._take(_Numbers(), generation)
            self.raw = None
            return
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            self.raw = None
            self._count(error, generation)
            return
        if data == self.raw:
            return
        self.raw = data
        try:
            numbers = _parse(data, self.name, self.state_folders)
        except UNREADABLE as error:
            self._count(error, generation)
        else:
            self._take(numbers, generation)

    def _count(self, error: Exception, generation: int) -> None:
        """Find out anew what the file was to say, and cannot be read; the next change of the queue writes it."""
        log_once(_log, corrupt("queue", self.name, error, place=f"{self._tree.base}/{self.path}"))
        numbers = _Numbers()
        for state, state_folder in self.state_folders.items():
            state_folder.forget_folders()
            state_folder.last = ""
            for path in state_folder.all():
                entry = parse_entry(path.rpartition("/")[2])
                assert entry is not None
                state_folder.stretch(entry.key)
                numbers.counts[state] = numbers.counts.get(state, 0) + 1
            numbers.last[state] = state_folder.last
        self._take(numbers, generation)

    def _take(self, numbers: _Numbers, generation: int) -> None:
        self.paused = numbers.paused
        for state, state_folder in self.state_folders.items():
            self.counts[state] = numbers.counts.get(state, 0)
            # A queue that is gone and comes again must not look like the one of old.
            epoch = generation if numbers.epochs is None else numbers.epochs.get(state, 0)
            if epoch != state_folder.epoch or numbers.epochs is None:
                state_folder.epoch = epoch
                state_folder.forget_names()
            state_folder.last = numbers.last.get(state, "")

    def dump(self) -> bytes:
        """Return the file."""
        # By hand, since it is done for each change of a task; only the name needs an encoder.
        counts = ", ".join([f'"{state}": {count}' for state, count in self.counts.items() if count])
        state_folders = self.state_folders.items()
        epochs = ", ".join(
            [f'"{state}": {state_folder.epoch}' for state, state_folder in state_folders if state_folder.epoch]
        )
        last = ", ".join(
            [f'"{state}": "{state_folder.last}"' for state, state_folder in state_folders if state_folder.last]
        )
        return (
            f'{{"queue": {self._name_text}, "paused": {"true" if self.paused else "false"}, "counts": {{{counts}}}, '
            f'"epochs": {{{epochs}}}, "last": {{{last}}}}}\n'
        ).encode(errors="surrogatepass")

    @staticmethod
    def name_in(tree: Tree, path: str) -> str | None:
        """Return the queue that a file is about: by what is in it, or else by its name; None if it is about none."""
        try:
            name = check_text(json.loads(tree.read(path))["queue"], "name")
        except (OSError, *UNREADABLE):
            name = ""
        stem = path.removeprefix("queues/").removesuffix(".json")
        return name if queue_path(name) == path else text_of(stem)

    @staticmethod
    def files(tree: Tree) -> list[str]:
        """Return the paths of the files of all queues."""
        return [f"queues/{name}" for name in sorted(tree.names("queues")) if name.endswith(".json")]


class FlowLine(Queue):
    """All flows, as far as this process knows them: a line like that of a queue's tasks, without a name."""

    def __init__(self, tree: Tree, foreign: Callable[[str], None]) -> None:
        state_folders = {
            state: StateFolder(
                tree, f"flows/{state}", foreign, ranked=False, home_of=lambda entry: flow_path(entry.id_token)
            )
            for state in (DUE, KEPT)
        }
        self._set_up(tree, "", "flows/line.json", state_folders)

    def next_at(self, shelf: str) -> int | None:
        """Return when something is to be done about the first flow of a folder; None if there is none."""
        name = self.state_folders[shelf].peek() if self.counts[shelf] else None
        return None if name is None else int(name[:18])

    def has_due(self, shelf: str, now: int) -> bool:
        """Return whether the time of a flow of a folder has come.

        :param now: microseconds.
        """
        at = self.next_at(shelf)
        return at is not None and at <= now


def shelves_of(state: TaskState) -> tuple[str, ...]:
    """Return the folders of tasks in a state."""
    return (state.value, LINED) if state is TaskState.READY else (state.value,)


def check_queue(tree: Tree, path: str) -> None:
    """Read the file of a queue.

    :raises CorruptRecord: if it cannot be read.
    """
    name = Queue.name_in(tree, path)
    try:
        if name is None:
            raise ValueError("it is about no queue")
        _parse(tree.read(path), name, SHELVES)
    except (OSError, *UNREADABLE) as error:
        raise corrupt("queue", name or path, error, place=f"{tree.base}/{path}") from error


@define
class _Numbers:
    """What stands in a queue's file."""

    paused: bool = False
    counts: dict[str, int] = Factory(dict)
    epochs: dict[str, int] | None = None
    """None: there is none, so that they begin with the generation of the store."""
    last: dict[str, str] = Factory(dict)


def _parse(data: bytes, queue: str, shelves: Iterable[str]) -> _Numbers:
    text = json.loads(data)
    paused, counts, epochs, last = text["paused"], text["counts"], text["epochs"], text["last"]
    if text["queue"] != queue:
        raise ValueError("it is about another queue")
    if not isinstance(paused, bool):
        raise TypeError("paused is neither true nor false")
    for state in shelves:
        for number in (counts.get(state, 0), epochs.get(state, 0)):
            if type(number) is not int or not 0 <= number < LARGEST:
                raise ValueError(f"{number!r} is no count")
        key = last.get(state, "")
        if key and (not isinstance(key, str) or not is_key(key)):
            raise ValueError(f"{key!r} is no key")
    return _Numbers(paused=paused, counts=counts, epochs=epochs, last=last)
