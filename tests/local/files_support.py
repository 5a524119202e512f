"""What the tests of the file storage share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from omniq.flow import GateState
from omniq.limit import Scope, line_id
from omniq.storage import TaskQuery
from omniq.storage.limit_transitions import is_lined
from omniq.storage.urls import parse_url
from omniq.task import StoredTask, Succeeded, TaskState
from omniq.testing.contract.spoiling import Value
from omniq_local.files import FileStorage
from omniq_local.files.names import members_folder, token, unique_path
from tests.fork_server import run

STATES = [state.value for state in TaskState]


def storage(root: Path, query: str = "", clock: Callable[[], float] = time.time) -> FileStorage:
    """Return an unopened storage on a folder."""
    return FileStorage(parse_url(f"file://{root}{query}"), clock=clock)


@asynccontextmanager
async def opened(root: Path, query: str = "", clock: Callable[[], float] = time.time) -> AsyncIterator[FileStorage]:
    """Yield an open storage on a folder, and close it afterwards."""
    store = storage(root, query, clock)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def take(store: FileStorage, limit: int = 1, *, lease: float = 300.0) -> list[StoredTask]:
    """Claim tasks of queue ``q``."""
    return await store.claim({"q": limit}, worker="w", lease=lease)


async def succeed(store: FileStorage, tasks: list[StoredTask]) -> list[bool]:
    """Finish claimed tasks."""
    return await store.finish([Succeeded(id=task.id, delivery=task.delivery, result=b"1") for task in tasks])


def listing(root: Path, state: str) -> list[Path]:
    """Return the files of queue ``q`` in the folder of a state, as a sorted listing shows them."""
    return sorted((root / "omniq" / state / "q").glob("*/*"))


def contents(root: Path) -> dict[str, bytes]:
    """Return all that is in a store but the journal, the count of changes, and who waits."""
    base = root / "omniq"
    own = {"journal", "control", "waiters", "lock"}
    return {
        str(path.relative_to(base)): path.read_bytes()
        for path in base.rglob("*")
        if path.is_file() and path.name not in own and path.parent.name != "marks"
    }


async def check_whole(store: FileStorage, root: Path) -> dict[str, StoredTask]:
    """Fail unless each task is in exactly one state, by whichever way one comes to it; give all tasks."""
    base = root / "omniq"
    tasks = {task.id: task for task in (await store.list_tasks(TaskQuery(limit=10_000))).tasks}
    inodes = {os.stat(path).st_ino: path for path in base.glob("tasks/*/*")}
    assert len(inodes) == len(tasks)
    found = [path for state in (*STATES, "lined") for path in sorted(base.glob(f"{state}/*/*/*"))]
    assert sorted(os.stat(path).st_ino for path in found) == sorted(inodes), (
        "each has one name in the folder of a state"
    )
    assert {os.stat(path).st_ino for path in base.glob("ids/*/*")} == set(inodes), "each has one name by its id"
    for path in found:
        (task,) = await store.get([path.name.rpartition(".json")[0][-36:]])
        assert task is not None
        assert path.relative_to(base).parts[0] == ("lined" if is_lined(task) and task.state == "ready" else task.state)
        assert tasks[task.id] == task
    held = sorted(task.unique for task in tasks.values() if task.unique and not task.state.is_final)
    assert len(held) == len(set(held)) == len(list(base.glob("unique/*/*")))
    for stats in await store.stats():
        for state, count in stats.counts.items():
            assert count == sum(task.queue == stats.queue and task.state is state for task in tasks.values()), state
    assert not list(base.glob("aside/*"))
    await check_flows(store, root, tasks)
    await check_limits(store, root, tasks)
    return tasks


async def check_limits(store: FileStorage, root: Path, tasks: dict[str, StoredTask]) -> None:
    """Fail unless each ready task with a key or a named limit stands in its line, and what runs holds its slots."""
    lined = [task for task in tasks.values() if is_lined(task)]
    waiting = {task.id: line_id(task.queue, task.key, task.limit) for task in lined if task.state is TaskState.READY}
    names = {path.name[-41:-5]: path.parts[-3] for path in (root / "omniq").glob("lines/*/*/*/*")}
    assert names == waiting
    assert len(list((root / "omniq").glob("lines/*/*/*/*"))) == len(waiting), "each has one name in its line"
    running = [task for task in lined if task.state is TaskState.RUNNING]
    scopes = [Scope(task.queue, task.key) for task in lined if task.key is not None]
    scopes += [Scope(name=task.limit) for task in lined if task.limit is not None]
    for usage in await store.get_limit_usage(list(dict.fromkeys(scopes))):
        held = usage.scope
        of_it = [task for task in running if held in (Scope(task.queue, task.key), Scope(name=task.limit))]
        assert usage.running == len(of_it), held


async def check_flows(store: FileStorage, root: Path, tasks: dict[str, StoredTask]) -> None:
    """Fail unless each flow says of its tasks and its gates what these are."""
    base = root / "omniq"
    members = [task for task in tasks.values() if task.flow is not None]
    names = [path.name for path in base.glob("flows/members/*/*/*")]
    assert sorted(names) == sorted(
        f"{'_' if task.behind is None else task.behind}.{task.state}-{name}"
        for task in members
        for name in (path.name for path in base.glob(f"tasks/*/*-{task.id}.json"))
    )
    ids = [path.stem for path in base.glob("flows/ids/*/*")]
    due = sorted(
        path.name[32:].removesuffix(".json") for path in base.glob("flows/[dk]*/*/*") if path.parts[-3] != "keys"
    )
    assert due == sorted(ids), "each is found by when it is due"
    flows = [flow for flow in await store.get_flows(ids) if flow is not None]
    assert len(flows) == len(ids)
    assert {task.flow for task in members} <= set(ids)
    live_keys = [flow.unique for flow in flows if flow.unique is not None and flow.finished_at is None]
    assert len(list(base.glob("flows/keys/*/*"))) == len(live_keys)
    for flow in flows:
        own = [task for task in members if task.flow == flow.id]
        assert flow.counts == {state: sum(task.state is state for task in own) for state in TaskState}
        assert (flow.finished_at is not None) == all(task.state.is_final for task in own)
        for gate in flow.gates:
            fed = [task for task in own for feed in task.feeds if feed.gate == gate.n]
            live, held = sum(not task.state.is_final for task in fed), flow.hold_until is not None
            assert gate.state is GateState.OPEN or gate.unmet in (live, live + held)


class SpoiledFiles:
    """Reads and writes the files of single records, see :class:`omniq.testing.contract.Spoil`.

    :param root: the folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def _files(self, kind: str, name: str, wanted: str | None = None) -> dict[str, Path]:
        """Return the files of a record by their places.

        :param wanted: the only place that is asked for; None: all.
        """
        own = f"{token(name)}.json"
        patterns = {
            "task": {
                "file": f"tasks/*/*-{own}",
                "place": f"[blrs]*/*/*/*-{own}",
                "id": f"ids/*/{own}",
            },
            "schedule": {"file": f"schedules/{own}"},
            "worker": {"file": f"workers/{own}", "about": f"about/{own}"},
            "queue": {"file": f"queues/{own}"},
            "unique": {"file": unique_path(name)},
            "limit": {"file": f"limits/{own}"},
            "line": {"file": f"lines/*/*/*/*-{own}"},
        }
        found = {}
        for place, pattern in patterns.get(kind, {}).items():
            for path in self.root.glob(f"*/{pattern}") if wanted in (None, place) else ():
                found[place] = path
        for path in self._members(name) if kind == "task" and wanted in (None, "member") else ():
            found["member"] = path
        return found

    def _members(self, name: str) -> Iterator[Path]:
        """Yield the name that a task of a flow has for that."""
        for path in self.root.glob(f"*/tasks/*/*-{token(name)}.json"):
            try:
                flow = json.loads(path.read_bytes().partition(b"\n")[0]).get("flow")
            except ValueError:
                continue
            if flow is not None:
                yield from self.root.glob(
                    f"*/{members_folder(token(flow), 0, 0).rpartition('.')[0]}.*/*-{token(name)}.json"
                )

    def read(self, kind: str, name: str) -> dict[str, Value]:
        return {place: path.read_bytes() for place, path in self._files(kind, name).items()}

    def write(self, kind: str, name: str, place: str, value: Value) -> bool:
        path = self._files(kind, name, place)[place]
        assert isinstance(value, bytes)
        if (kind, place) != ("task", "file"):
            # Else the file itself is damaged, whatever it is found by.
            path.unlink()
        path.write_bytes(value)
        return True


def run_python(program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own; its ``sys.argv[1:]`` are the arguments."""
    return run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments],
        check=check,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
