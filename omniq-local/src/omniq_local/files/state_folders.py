"""The folder of one state of one queue: files whose sorted names are the order, spread over sub-folders.

A sub-folder is named by the first key it may hold; it holds the keys from there up to the name of the next. None grows
much beyond :data:`LIMIT` files, so that whatever is listed costs little. A process reads the names of one sub-folder,
takes them one after the other, and lists again only when it has no more of them, or when somebody else put a file in
front of one that it knows.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator

from omniq_local.files.names import parse_entry
from omniq_local.files.tree import Tree

__all__ = ["LIMIT", "LOWEST", "StateFolder"]

LIMIT = 1000
"""Files in a sub-folder from which on it is divided."""
_FOLDER = re.compile(r"0|(?:\d{3}-)?\d{18}-\d{12}", re.ASCII)
LOWEST = "0"
"""The name of the first sub-folder."""


class StateFolder:
    """The files of one folder, as far as this process knows them. Used under the store's lock.

    :param tree: the namespace's files.
    :param path: the folder, relative to it.
    :param foreign: told of each name that is none of ours: its path.
    :param ranked: whether the keys begin with a priority.
    """

    def __init__(self, tree: Tree, path: str, foreign: Callable[[str], None], *, ranked: bool) -> None:
        self.path = path
        self.epoch = 0
        """Changes when a file is put in front of another."""
        self.last = ""
        """The largest key that was ever put here."""
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
        if key > self.last:
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
        """Tell whether a key begins a new sub-folder, behind all others, and if so note that there is one."""
        if key <= self.last or self._filled(self.folder_of(key)) < LIMIT:
            return False
        insort(self.folders(), key)
        self._fill[key] = 0
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
        if key > self.last:
            self.last = key
            return False
        names = self._known
        name = f"{key}-{id_token}.json"
        if key <= self._after or (self._position < len(names) and name < names[-1]):
            place = bisect_left(names, name, self._position)
            # A name may be there already: another process took its file away since this one read the names.
            if names[place : place + 1] != [name]:
                names.insert(place, name)
        return True

    # Taking

    def peek(self) -> str | None:
        """Return the first name that has not been taken; the file may be gone."""
        if self._position < len(self._known) or self._load():
            return self._known[self._position]
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

    def drop_folder(self, folder: str) -> None:
        """Note that a sub-folder was removed."""
        folders = self.folders()
        if folder in folders and folder != LOWEST:
            folders.remove(folder)
        self._fill.pop(folder, None)
