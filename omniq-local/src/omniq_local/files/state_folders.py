"""The folder of one state of one queue: files whose sorted names are the order, spread over sub-folders.

A sub-folder is named by the first key it may hold; it holds the keys from there up to the name of the next. None grows
much beyond :data:`LIMIT` files, so that whatever is listed costs little. A process reads the names of one sub-folder,
takes them one after the other, and lists again only when it has no more of them, or when another process put a file in
front of one that it knows.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator

from omniq.storage.times import LATEST
from omniq_local.files.names import Entry, home_path, parse_entry, time_key
from omniq_local.files.tree import Tree

__all__ = ["LIMIT", "LOWEST", "StateFolder"]

LIMIT = 1000
"""Files in a sub-folder from which on it is divided."""
_FOLDER = re.compile(r"0|(?:\d{3}-)?\d{18}-\d{12}", re.ASCII)
FOR_GOOD = time_key(LATEST, 0)
"""Where the keys begin of what has no time at which it is to be looked at."""
LOOKED_AT = 3
"""Sub-folders that are looked at for whether they are empty, at a time."""
LOWEST = "0"
"""The name of the first sub-folder."""


class StateFolder:
    """The files of one folder, as far as this process knows them. Used under the store's lock.

    :param tree: the namespace's files.
    :param path: the folder, relative to it.
    :param foreign: told of each name that is none of ours: its path.
    :param ranked: whether the keys begin with a priority.
    :param home_of: returns where the file with a name is all its life.
    """

    def __init__(
        self,
        tree: Tree,
        path: str,
        foreign: Callable[[str], None],
        *,
        ranked: bool,
        home_of: Callable[[Entry], str] = lambda entry: home_path(entry.sequence, entry.id_token),
    ) -> None:
        self.path = path
        self.home_of = home_of
        self.epoch = 0
        """Changes when a file is put in front of another."""
        self.last = ""
        """The largest key that was ever put here, apart from those for good."""
        self._end = "~" if ranked else FOR_GOOD
        self._tree = tree
        self._foreign = foreign
        self._ranked = ranked
        self._folders: list[str] | None = None
        self._fill: dict[str, int] = {}
        self._known: list[str] = []
        self._position = 0
        # Everything up to this key has been taken from the list.
        self._after = ""

    # Where files are

    def folders(self) -> list[str]:
        """Return the names of the sub-folders, in order."""
        if self._folders is None:
            found = self._tree.names(self.path)
            folders = {LOWEST}
            for name in found:
                if _FOLDER.fullmatch(name):
                    folders.add(name)
                else:
                    self._foreign(f"{self.path}/{name}")
            self._folders = sorted(folders)
        return self._folders

    def folder_of(self, key: str) -> str:
        """Return the sub-folder that a key belongs to."""
        folders = self.folders()
        return folders[max(bisect_right(folders, key) - 1, 0)]

    def file(self, key: str, id_token: str) -> str:
        """Return the path of a file."""
        return f"{self.path}/{self.folder_of(key)}/{key}-{id_token}.json"

    def names(self, folder: str) -> list[str]:
        """Return the names in a sub-folder, in order."""
        place = f"{self.path}/{folder}"
        names = []
        for name in self._tree.names(place):
            if parse_entry(name) is None or (name[3] == "-") is not self._ranked:
                self._foreign(f"{place}/{name}")
            else:
                names.append(name)
        names.sort()
        return names

    def all(self) -> Iterator[str]:
        """Yield the paths of all files, in order."""
        for folder in self.folders():
            for name in self.names(folder):
                yield f"{self.path}/{folder}/{name}"

    def until(self, now: int) -> Iterator[str]:
        """Yield the paths of the files whose time has come, in order.

        :param now: microseconds.
        """
        for path in self.all():
            if int(path.rpartition("/")[2][:18]) > now:
                return
            yield path

    # What others did

    def forget_folders(self) -> None:
        """Note that sub-folders came or went."""
        self._folders = None
        self._fill.clear()

    def forget_names(self) -> None:
        """Note that files were put in front of those that are known."""
        self._known = []
        self._position = 0
        self._after = ""

    # Putting

    def crowded(self, key: str) -> str | None:
        """Tell which sub-folder is to be divided before a key is put between others, if one is."""
        if self.last < key < self._end:
            return None
        folder = self.folder_of(key)
        if self._filled(folder) < LIMIT:
            return None
        # Files that were taken away meanwhile have not been counted.
        self._fill[folder] = len(self.names(folder))
        return folder if self._fill[folder] >= LIMIT else None

    def _filled(self, folder: str) -> int:
        fill = self._fill.get(folder)
        if fill is None:
            fill = self._fill[folder] = len(self.names(folder))
        return fill

    def opens(self, key: str) -> bool:
        """Tell whether a key begins a new sub-folder, behind all others, and if so note that there is one.

        What stays for good has sub-folders of its own, so that there is room before it.
        """
        folder, begin = self.folder_of(key), key
        if key > self._end:
            begin = self._end
            if folder >= begin or ((names := self.names(folder)) and names[-1] > begin):
                return False
        elif key <= self.last or self._filled(folder) < LIMIT:
            return False
        insort(self.folders(), begin)
        self._fill[begin] = 0
        return True

    def divide(self, folder: str) -> list[tuple[str, str]]:
        """Tell which files have to move so that a sub-folder becomes two: from where to where."""
        names = self.names(folder)
        moving = names[len(names) // 2 :]
        entry = parse_entry(moving[0])
        assert entry is not None
        return [(f"{self.path}/{folder}/{name}", f"{self.path}/{entry.key}/{name}") for name in moving]

    def put(self, key: str, id_token: str) -> bool:
        """Note that a file is put here; tell whether it is in front of another."""
        folder = self.folder_of(key)
        self._fill[folder] = self._filled(folder) + 1
        if self.stretch(key) or key > self._end:
            return False
        names = self._known
        name = f"{key}-{id_token}.json"
        if key <= self._after or (self._position < len(names) and name < names[-1]):
            place = bisect_left(names, name, self._position)
            # A name may be there already: another process took its file away since this one read the names.
            if names[place : place + 1] != [name]:
                names.insert(place, name)
        return True

    def stretch(self, key: str) -> bool:
        """Note that a key is there; tell whether it is larger than all before, apart from those for good."""
        if self.last < key < self._end:
            self.last = key
            return True
        return False

    def take_away(self, key: str, id_token: str) -> None:
        """Note that a file is moved away from here, wherever it stands."""
        names, name = self._known, f"{key}-{id_token}.json"
        place = bisect_left(names, name, self._position)
        if names[place : place + 1] != [name]:
            return
        if place == self._position:
            self.pop()
        else:
            del names[place]

    # Taking

    def peek(self) -> str | None:
        """Return the first name that has not been taken; the file may be gone."""
        if self._position < len(self._known) or self._load():
            return self._known[self._position]
        return None

    def upcoming(self) -> Iterator[str]:
        """Yield the names that have not been taken, in order, and take none."""
        if self.peek() is None:
            return
        name = ""
        for name in self._known[self._position :]:
            yield name
        folders = self.folders()
        for folder in folders[max(bisect_right(folders, name) - 1, 0) :]:
            for other in self.names(folder):
                if other > name:
                    yield other

    def measure(self) -> None:
        """Find out what the largest key is that may be here, where nothing says so."""
        folder = self.folders()[-1]
        names = self.names(folder)
        entry = parse_entry(names[-1]) if names else None
        self.last = max("" if folder == LOWEST else folder, "" if entry is None else entry.key)

    def first(self) -> str | None:
        """Return the first name whose file is there; those that are gone are taken."""
        while (name := self.peek()) is not None:
            entry = parse_entry(name)
            assert entry is not None
            if self._tree.exists(self.file(entry.key, entry.id_token)):
                return name
            self.pop()
        return None

    def pop(self) -> None:
        """Take the name that :meth:`peek` gave."""
        name = self._known[self._position]
        self._position += 1
        entry = parse_entry(name)
        assert entry is not None
        if entry.key > self._after:
            self._after = entry.key
        if self._position > LIMIT:
            del self._known[: self._position]
            self._position = 0

    def _load(self) -> bool:
        folders = self.folders()
        start = max(bisect_right(folders, self._after) - 1, 0)
        # A name is its key and more, so that all names of a key come after the key itself.
        bound = self._after + "~" if self._after else ""
        for folder in folders[start:]:
            if folder >= self._end:
                break
            names = self.names(folder)
            self._known = names[bisect_left(names, bound) :]
            self._position = 0
            if self._known:
                return True
        return False

    def spent(self) -> list[str]:
        """Return the sub-folders that all files have been taken from."""
        folders = self.folders()
        return folders[: max(bisect_right(folders, self._after) - 1, 0)]

    def hollow(self) -> list[str]:
        """Return the sub-folders in which there is nothing, of some that are chosen at random."""
        folders = self.folders()
        if len(folders) < 3:
            return []
        chosen = random.sample(folders[1:-1], min(LOOKED_AT, len(folders) - 2))
        return [folder for folder in chosen if folder != self._end and not self.names(folder)]
