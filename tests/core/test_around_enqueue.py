"""The hook that stands around a call that enqueues: where it is entered, what it adds, and that it changes nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from omniq import Every, StorageUnavailable, TaskQueue, hookimpl
from omniq._tasks import enqueueing as entering
from omniq.plugins import Plugins
from omniq.storage import Enqueued
from omniq.storage.ids import new_id
from omniq.task import NewTask, Task
from omniq.testing import await_until, trial
from tests.core.running import MakeQueue

KEY = "0123456789abcdef"


@pytest.fixture
def url() -> str:
    """Return the URL of one store: nothing here depends on which it is."""
    return f"memory://{new_id()}"


class Stamp:
    """Adds headers, and notes what it was given."""

    def __init__(self, **headers: str) -> None:
        self.headers = headers
        self.given: list[list[str]] = []
        self.answers: list[Sequence[Enqueued]] = []
        self.errors: list[BaseException] = []
        self.threads: list[int] = []

    @hookimpl
    def omniq_around_enqueue(
        self, tasks: Sequence[NewTask]
    ) -> Generator[Sequence[Mapping[str, str]] | None, Sequence[Enqueued], None]:
        self.given.append([task.name.rpartition(".")[2] for task in tasks])
        self.threads.append(threading.get_ident())
        try:
            self.answers.append((yield [self.headers] * len(tasks)))
        except BaseException as error:
            self.errors.append(error)
            raise


@pytest.fixture
def stamp() -> Stamp:
    return Stamp(trace="t1")


@pytest.fixture
def plugins(stamp: Stamp) -> Plugins:
    plugins = Plugins()
    plugins.register(stamp, name="stamp")
    return plugins


def stored_headers(queue: TaskQueue) -> list[Mapping[str, str]]:
    return [task.headers for task in queue.tasks()]


FORMS: Mapping[str, Callable[[TaskQueue, Any], list[Any]]] = {
    "enqueue": lambda _, note: [note.enqueue(1)],
    "aenqueue": lambda _, note: [asyncio.run(note.aenqueue(1))],
    "queue.enqueue": lambda queue, note: [queue.enqueue(note, 1)],
    "enqueue_many": lambda queue, note: queue.enqueue_many([note.call(1), note.call(2)]),
    "aenqueue_many": lambda queue, note: asyncio.run(queue.aenqueue_many([note.call(1), note.call(2)])),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_enqueue_is_surrounded_once_and_its_tasks_get_the_headers(
    make_queue: MakeQueue, plugins: Plugins, stamp: Stamp, form: str
) -> None:
    queue = make_queue(plugins=plugins, signing_key=KEY)

    @queue.task
    def note(n: int) -> int:
        return n

    handles = FORMS[form](queue, note)

    assert stamp.given == [["note"] * len(handles)]
    assert [[(one.id, one.created) for one in answer] for answer in stamp.answers] == [
        [(handle.id, True) for handle in handles]
    ]
    assert stamp.threads == [threading.get_ident()]
    assert stored_headers(queue) == [{"trace": "t1"}] * len(handles)
    # They are signed, too: what was enqueued can be read.
    assert [queue.get(handle.id).args for handle in handles] == [(n + 1,) for n in range(len(handles))]  # type: ignore[union-attr]  # it is there


def test_the_callers_own_headers_win_and_those_of_an_earlier_hook_over_a_later_one(make_queue: MakeQueue) -> None:
    plugins = Plugins()
    plugins.register(Stamp(a="first", b="first"), name="first")
    plugins.register(Stamp(b="second", c="second", d="second"), name="second")
    queue = make_queue(plugins=plugins)

    @queue.task
    def note() -> None: ...

    note.using(headers={"a": "own", "d": "own", "e": "own"}).enqueue()

    assert stored_headers(queue) == [{"a": "own", "b": "first", "c": "second", "d": "own", "e": "own"}]


def test_a_hook_is_told_that_a_task_was_there_already(make_queue: MakeQueue, plugins: Plugins, stamp: Stamp) -> None:
    queue = make_queue(plugins=plugins)

    @queue.task(unique="only")
    def note() -> None: ...

    first = note.enqueue()
    note.enqueue()

    assert [[(one.id, one.created) for one in answer] for answer in stamp.answers] == [
        [(first.id, True)],
        [(first.id, False)],
    ]


def test_an_empty_call_is_not_surrounded(make_queue: MakeQueue, plugins: Plugins, stamp: Stamp) -> None:
    queue = make_queue(plugins=plugins)

    assert queue.enqueue_many([]) == []
    assert stamp.given == []


@pytest.mark.parametrize("form", FORMS)
def test_an_error_of_the_store_reaches_the_hook_and_the_caller(
    make_queue: MakeQueue,
    plugins: Plugins,
    stamp: Stamp,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    form: str,
) -> None:
    queue = make_queue(plugins=plugins)

    @queue.task
    def note(n: int) -> int:
        return n

    async def refuse(*_: Any) -> Any:
        raise StorageUnavailable("gone")

    sibling = queue.connections.sibling()
    monkeypatch.setattr(type(sibling), "enqueue", refuse)
    monkeypatch.setattr(type(sibling), "enqueue_blocking", lambda *_: None)

    with pytest.raises(StorageUnavailable, match="gone"):
        FORMS[form](queue, note)

    assert [str(error) for error in stamp.errors] == ["gone"]
    assert stamp.answers == []
    assert [record for record in caplog.records if record.name == "omniq.plugins"] == []


def _raises(_: Any) -> Iterator[Any]:
    yield from [None for _ in [1 / 0]]


def _raises_after(_: Any) -> Iterator[Any]:
    yield
    raise ZeroDivisionError("after")


@pytest.mark.parametrize(
    ("hook", "complaint"),
    [
        (_raises, "division"),
        (_raises_after, "after"),
        (lambda tasks: _yields([]), "a mapping of headers for each of 1 tasks"),
        (lambda tasks: _yields([{"Not A Name": "x"}]), "header 'Not A Name' cannot be used"),
        (lambda tasks: _yields([{"n": 1}]), "headers must be texts"),
        (lambda tasks: _yields([{"long": "x" * 9000}]), "at most 8,192 bytes"),
        (lambda tasks: _yields([{f"h{n}": "x" for n in range(32)}]), "at most 32 headers"),
        (lambda tasks: _yields("x"), "a mapping of headers for each of 1 tasks"),
    ],
)
def test_what_a_hook_does_wrong_is_logged_and_the_task_is_stored(
    make_queue: MakeQueue,
    plugins: Plugins,
    caplog: pytest.LogCaptureFixture,
    hook: Callable[[Any], Iterator[Any]],
    complaint: str,
) -> None:
    class Broken:
        @hookimpl
        def omniq_around_enqueue(self, tasks: Sequence[NewTask]) -> Any:
            return hook(tasks)

    plugins.register(Broken(), name="broken")
    queue = make_queue(plugins=plugins)

    @queue.task
    def note() -> None: ...

    note.using(headers={"own": "1"}).enqueue()

    assert stored_headers(queue) == [{"own": "1", "trace": "t1"}]
    (record,) = [record for record in caplog.records if record.name == "omniq.plugins"]
    assert "omniq_around_enqueue of plugin broken:broken" in record.getMessage()
    assert record.exc_info is not None
    assert complaint in str(record.exc_info[1])


def _yields(value: Any) -> Iterator[Any]:
    yield value


async def test_the_firing_of_a_schedule_is_surrounded(make_queue: MakeQueue, plugins: Plugins, stamp: Stamp) -> None:
    queue = make_queue(plugins=plugins, signing_key=KEY)

    @queue.task
    async def tick() -> None: ...

    await queue.aschedule(tick.using(headers={"own": "1"}).call(), Every(0.05), id="often")
    assert stamp.given == []  # storing a schedule enqueues nothing

    async def ended() -> list[Task]:
        return list(await queue.atasks(state="succeeded"))

    async with queue.worker():
        await await_until(ended)
    assert {str(task.headers) for task in await queue.atasks()} == {str({"trace": "t1", "own": "1"})}
    assert all(task.scheduled_for is not None for task in await queue.atasks())
    assert stamp.given[0] == ["tick"]
    assert stamp.answers[0][0].created


async def test_a_schedule_that_is_triggered_by_hand_is_surrounded(
    make_queue: MakeQueue, plugins: Plugins, stamp: Stamp
) -> None:
    queue = make_queue(plugins=plugins, signing_key=KEY)

    @queue.task
    def tick() -> None: ...

    await queue.aschedule(tick.call(), Every(3600), id="seldom")
    handle = await queue.atrigger_schedule("seldom")

    assert (await handle.atask()).headers == {"trace": "t1"}
    assert [[one.id for one in answer] for answer in stamp.answers] == [[handle.id]]


def test_a_trial_surrounds_what_is_enqueued_and_what_is_scheduled(
    make_queue: MakeQueue, plugins: Plugins, stamp: Stamp
) -> None:
    queue = make_queue(plugins=plugins)

    @queue.task(schedule=Every(60))
    def tick() -> None: ...

    with trial(queue) as running:
        tick.enqueue()
        running.run_for(timedelta(seconds=61))
        headers = [task.headers for task in queue.tasks()]

    assert headers == [{"trace": "t1"}] * len(headers)
    assert len(headers) >= 2
    assert len(stamp.answers) == len(headers)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_called_where_no_plugin_stands_around_enqueueing(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("called although nobody listens")

    monkeypatch.setattr(entering, "Enqueueing", forbidden)
    queue = make_queue()

    @queue.task
    def note(n: int) -> int:
        return n

    assert FORMS[form](queue, note)
    assert queue.plugins.around_enqueue is None
