"""Real processes that act on the store under test (:mod:`omniq.testing.actor`), and what their histories show."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from omniq.storage import Storage, TaskQuery
from omniq.task import StoredTask, TaskState
from omniq.testing.actor import read_history
from omniq.testing.waiting import await_until

__all__ = ["Actor", "Actors", "check_histories"]


class Actor:
    """One process.

    :param url: the store's URL.
    :param role: see :mod:`omniq.testing.actor`.
    :param folder: where it keeps its history and its output.
    :param name: of its files.
    :param options: further arguments, by name.
    """

    popen: ClassVar[type[subprocess.Popen[bytes]]] = subprocess.Popen
    """What starts a process; tests that start hundreds may know a quicker way."""

    def __init__(self, url: str, role: str, folder: Path, name: str, options: dict[str, object]) -> None:
        self.name = name
        self.history = folder / f"{name}.jsonl"
        self._output = folder / f"{name}.txt"
        arguments = [role, str(self.history)]
        for option, value in options.items():
            arguments += [f"--{option.replace('_', '-')}", str(value)]
        self.text = " ".join(arguments)
        with self._output.open("wb") as output:
            self._process = self.popen(
                [sys.executable, "-m", "omniq.testing.actor", *arguments],
                # By the environment, as a command line can be read by all users of the machine.
                env={**os.environ, "OMNIQ_URL": url},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return what it wrote of one kind of event so far."""
        return [line for line in read_history(self.history) if line["event"] == event]

    async def wrote(self, event: str, number: int = 1) -> None:
        """Wait until it has written so many events of a kind."""
        await await_until(
            lambda: len(self.events(event)) >= number or self._process.poll() is not None, 60, f"{self.text}: {event}"
        )
        assert len(self.events(event)) >= number, self._failure(f"ended before it wrote {event}")

    async def ended(self) -> None:
        """Wait until it has done its work."""
        code = await self._wait()
        assert code == 0, self._failure(f"ended with code {code}")

    async def died(self) -> None:
        """Wait until it has killed itself where it was told to."""
        code = await self._wait()
        assert code == -signal.SIGKILL, self._failure(f"ended with code {code} instead of being killed")

    def kill(self) -> None:
        """Kill it as a power cut would, and wait until it is dead."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def go_ahead(self) -> None:
        """Let one that was started with ``on_request`` do its next step."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """Stop it where it stands."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on after :meth:`stop`."""
        self._process.send_signal(signal.SIGCONT)

    async def _wait(self) -> int:
        await await_until(lambda: self._process.poll() is not None, 60, f"{self.text} to end")
        return self._process.wait()

    def _failure(self, what: str) -> str:
        return f"{self.text}: {what}\n{self._output.read_text(errors='replace')[-3000:]}"


class Actors:
    """The processes of one test; none outlives it.

    :param url: the store's URL.
    :param folder: an empty folder.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._numbers = itertools.count(1)
        self._all: list[Actor] = []

    def start(self, role: str, **options: object) -> Actor:
        """Start a process.

        :param options: of :mod:`omniq.testing.actor`, without the hyphens.
        """
        number = next(self._numbers)
        actor = Actor(self._url, role, self._folder, f"{number:02} {role}", {"seed": number, **options})
        self._all.append(actor)
        return actor

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return what all of them wrote; of one kind of event, or everything."""
        lines = [line for path in sorted(self._folder.glob("*.jsonl")) for line in read_history(path)]
        return [line for line in lines if event in (None, line["event"])]

    def history(self, name: str) -> Path:
        """Return the path of a history that the test writes itself."""
        return self._folder / f"{name}.jsonl"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for actor in self._all:
            actor.kill()


async def _all_tasks(store: Storage) -> list[StoredTask]:
    tasks: list[StoredTask] = []
    cursor: str | None = None
    while True:
        page = await store.list_tasks(TaskQuery(limit=500), cursor)
        tasks += page.tasks
        cursor = page.cursor
        if cursor is None:
            return tasks
        await asyncio.sleep(0)


async def check_histories(store: Storage, events: Iterable[dict[str, Any]]) -> None:
    """Compare what processes wrote with what is in the store, once everything has been drained.

    :param events: of all processes that acted on the store; those that were killed, too.
    :raises AssertionError: if something was lost, done twice, or is in no state or two.
    """
    events = list(events)
    tasks = await _all_tasks(store)
    by_id = {task.id: task for task in tasks}
    assert len(by_id) == len(tasks), "a task is listed twice"

    acknowledged = {task_id for event in events if event["event"] == "enqueued" for task_id in event["ids"]}
    assert acknowledged <= by_id.keys(), "acknowledged tasks are lost"
    for event in events:
        if event["event"] == "enqueueing":
            stored = sum(task_id in by_id for task_id in event["ids"])
            assert stored in (0, len(event["ids"])), "half of a batch was stored"

    live = [task.id for task in tasks if not task.state.is_final]
    assert not live, "not everything was drained"
    listed = Counter((task.queue, task.state) for task in tasks)
    counted = {
        (stats.queue, TaskState(state)): count
        for stats in await store.stats()
        for state, count in stats.counts.items()
        if count
    }
    assert counted == listed, "the counts do not agree with the list"

    _check_deliveries(by_id, events)
    _check_keys(tasks)


def _check_deliveries(by_id: dict[str, StoredTask], events: list[dict[str, Any]]) -> None:
    claims = Counter(
        (task_id, delivery) for event in events if event["event"] == "claimed" for task_id, delivery in event["items"]
    )
    assert not [claim for claim, times in claims.items() if times > 1], "one delivery was given to two workers"
    for task_id, delivery in claims:
        assert delivery <= by_id[task_id].delivery, "a fencing token went back"
    accepted: dict[tuple[str, int], list[str]] = {}
    for event in events:
        if event["event"] == "finished":
            for task_id, delivery, kind, was_accepted in event["items"]:
                if was_accepted:
                    accepted.setdefault((task_id, delivery), []).append(kind)
    assert not [kinds for kinds in accepted.values() if len(kinds) > 1], "two outcomes of one delivery were accepted"
    ended: dict[str, int] = {}
    for (task_id, delivery), (kind,) in accepted.items():
        if kind == "Succeeded":
            assert task_id not in ended, "a task has ended twice"
            ended[task_id] = delivery
    for task_id, task in by_id.items():
        if task.state is TaskState.SUCCEEDED:
            assert task.result_payload == b"%d" % task.delivery, "the result is that of a stale delivery"
            assert ended.get(task_id, task.delivery) == task.delivery, "another delivery than the accepted one counts"
            assert task.attempt <= task.delivery


def _check_keys(tasks: Iterable[StoredTask]) -> None:
    by_key: dict[str, list[StoredTask]] = {}
    for task in tasks:
        if task.unique is not None:
            by_key.setdefault(task.unique, []).append(task)
    for key, holders in by_key.items():
        holders.sort(key=lambda task: task.created_at)
        for holder, following in itertools.pairwise(holders):
            assert holder.finished_at is not None
            # A database may stamp a row with the time at which the transaction began.
            overlap = (holder.finished_at - following.created_at).total_seconds()
            assert overlap < 0.05, f"{key!r} belonged to two live tasks at a time"
