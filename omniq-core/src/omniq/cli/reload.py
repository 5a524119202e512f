"""``omniq worker --reload``: a worker that starts again when its code changes. For development.

The worker lets its tasks end, and then its process becomes a new one (``exec``), with the same id: nothing of the old
code is left, and the program that started it need not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from omniq._client.queue import TaskQueue
from omniq._runtime.threads import in_thread
from omniq._worker.worker import Worker
from omniq.storage.escaping import get_logger

__all__ = ["Changes", "Restart", "broken", "bury_inherited", "loaded_files", "serve", "source_files", "wait_for_change"]

_log = get_logger("omniq.supervisor")

INTERVAL = 1.0
"""Seconds between two looks at the files."""
SETTLING = 0.1
"""Seconds for which nothing may change before a change counts: an editor, or git, may be in the middle of it."""

LAST_WORDS = 1.0
"""Seconds that helpers of the former process, such as multiprocessing's, get to notice that it has gone."""

Stamps: TypeAlias = Mapping[str, tuple[int, int]]
"""For each file when it was written, and its size: a change shows in one of them."""

_FOREIGN = frozenset({"__pycache__", "node_modules", "site-packages"})


class Restart:
    """Makes this process a new one, in the surroundings that it had when this was made.

    :param command: what to run, the interpreter first.
    """

    def __init__(self, command: list[str]) -> None:
        self.folder = os.getcwd()
        self._command = command
        # Python tells a changed file from its compiled form by the second and the size; two quick edits of a letter
        # would run the old code. So none is written: not here, not by what this process starts, not in the next life.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        self._environment = dict(os.environ)

    def now(self) -> NoReturn:
        """Do it; nothing after this call runs."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir(self.folder)
        os.execve(self._command[0], self._command, self._environment)


def bury_inherited() -> None:
    """Take note of the end of what this process started in its former life, or it would stay in the process table.

    To be called before anything new is started. What does not end within LAST_WORDS is left alone.
    """
    give_up = time.monotonic() + LAST_WORDS
    try:
        while time.monotonic() < give_up:
            ended, _ = os.waitpid(-1, os.WNOHANG)
            if not ended:
                time.sleep(0.01)
    except ChildProcessError:  # there is none, or none any more
        return


def _is_ours(parts: Iterable[str]) -> bool:
    # A virtual environment is often kept in the folder of the project, and is called .venv.
    return not any(part.startswith(".") or part in _FOREIGN for part in parts)


def loaded_files(folder: str) -> set[str]:
    """Return the files of all imported modules that are in a folder, or in one below it, and belong to the project."""
    found = set()
    root = Path(folder).resolve()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if path.is_relative_to(root) and _is_ours(path.relative_to(root).parts):
            found.add(str(path))
    return found


def source_files(folder: str) -> Iterator[str]:
    """Yield every Python file of a project, imported or not."""
    for place, folders, files in os.walk(folder):
        folders[:] = [
            name for name in folders if _is_ours([name]) and not os.path.exists(os.path.join(place, name, "pyvenv.cfg"))
        ]
        yield from (os.path.join(place, name) for name in files if name.endswith(".py"))


def _stamps(files: Iterable[str]) -> dict[str, tuple[int, int]]:
    found = {}
    for file in files:
        try:
            status = os.stat(file)
        except OSError:  # an editor that writes a new file in the place of the old one; or it is gone for good
            continue
        found[file] = (status.st_mtime_ns, status.st_size)
    return found


def _settled(files: Sequence[str]) -> Stamps:
    stamps = _stamps(files)
    while True:
        time.sleep(SETTLING)
        again = _stamps(files)
        if again == stamps:
            return stamps
        stamps = again


class Changes:
    """What has changed since the modules were imported.

    :param folder: only files in it, or below it, are looked at.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._loaded = self._seen = _stamps(loaded_files(folder))

    def look(self) -> list[str]:
        """Return the files that differ from what was imported, if one of them was written since the last look."""
        files = sorted(loaded_files(self._folder))
        stamps: Stamps = _stamps(files)
        # A module that was imported since the last look is as new as its file.
        self._loaded = {**stamps, **self._loaded}
        self._seen = {**stamps, **self._seen}
        if all(stamp == self._seen[file] for file, stamp in stamps.items()):
            return []
        stamps = _settled(files)
        self._seen = {**self._seen, **stamps}
        return [file for file, stamp in stamps.items() if stamp != self._loaded.get(file, stamp)]


def broken(file: str) -> str | None:
    """Say what is wrong with a file that is not Python; None if nothing is."""
    try:
        compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def wait_for_change(folder: str) -> None:
    """Return when a Python file in a folder was written, made or removed."""
    before = _stamps(source_files(folder))
    while _stamps(source_files(folder)) == before:
        time.sleep(INTERVAL)
    _settled(list(source_files(folder)))


async def serve(queue: TaskQueue, worker: Worker, folder: str) -> bool:
    """Run a worker until SIGTERM or SIGINT, or until the code in a folder changes; running tasks may end.

    A change after which a file is no longer Python is reported, and the worker goes on.

    :return: True if the code has changed; False if the worker was told to stop, be it while running tasks end.
    """
    changes = Changes(folder)

    async def stop_on_change() -> None:
        try:
            await _changed(changes, folder)
        finally:
            worker.stop()

    async with queue:
        changing = asyncio.create_task(stop_on_change())
        try:
            await worker.run(own_process=True)
        finally:
            changing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await changing
    return not worker.signalled


async def _changed(changes: Changes, folder: str) -> None:
    """Return when the code has changed and can be compiled."""
    while True:
        await asyncio.sleep(INTERVAL)
        files = await in_thread(changes.look)
        faults = {file: fault for file in files if (fault := broken(file)) is not None}
        for file, fault in faults.items():
            _log.error(
                "%s: changed, but cannot be used (%s); the worker goes on as it is and waits for the next change",
                _short(file, folder),
                fault,
            )
        if files and not faults:
            names = ", ".join(_short(file, folder) for file in files)
            _log.info("%s: changed; the worker starts again when running tasks have ended", names)
            return


def _short(file: str, folder: str) -> str:
    return os.path.relpath(file, os.path.realpath(folder))
