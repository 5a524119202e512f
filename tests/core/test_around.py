"""The hooks that stand around a task: where they are entered, what they are told, and that they change nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from omniq import Fixed, TaskFailed, TaskQueue, TaskState, current_task, hookimpl
from omniq._worker import attempt as attempts
from omniq.plugins import Plugins
from omniq.storage.ids import new_id
from omniq.task import Cancelled, Ending, Failed, Released, Retry, Succeeded, Task
from omniq.testing import await_until, trial, wait_until
from tests.core import hooked_cpu_tasks
from tests.core.running import Gate, MakeQueue, working

request: ContextVar[str] = ContextVar("request", default="none")


@pytest.fixture
def url() -> str:
    """Return the URL of one store: nothing here depends on which it is."""
    return f"memory://{new_id()}"


class Recorder:
    """Notes when it is entered and left, and sets a context variable in between."""

    def __init__(self, name: str = "recorder", log: list[str] | None = None) -> None:
        self.name = name
        self.log = [] if log is None else log
        self.threads: list[tuple[int, int]] = []
        self.endings: list[Ending] = []

    @hookimpl
    def omniq_around_task(self, task: Task, worker: str) -> Generator[None, Ending, None]:
        entered = threading.get_ident()
        self.log.append(f"{self.name} entered")
        token = request.set(f"{request.get()}/{task.headers.get('request', self.name)}")
        ending = yield
        request.reset(token)  # which is an error in another context
        self.log.append(f"{self.name} left")
        self.threads.append((entered, threading.get_ident()))
        self.endings.append(ending)


def plugins_with(*objects: object) -> Plugins:
    plugins = Plugins()
    for number, one in enumerate(objects):
        plugins.register(one, name=f"own-{number}")
    return plugins


def declare(queue: TaskQueue, kind: str) -> Any:
    if kind == "loop":

        @queue.task(max_retries=0)
        async def in_coroutine() -> tuple[str, int]:
            await asyncio.sleep(0)  # others run meanwhile
            return request.get(), threading.get_ident()

        return in_coroutine

    @queue.task(max_retries=0)
    def on_thread() -> tuple[str, int]:
        return request.get(), threading.get_ident()

    return on_thread


@pytest.fixture(params=["worker", "trial"])
def running(request: pytest.FixtureRequest) -> Callable[[TaskQueue], Any]:
    def in_worker(queue: TaskQueue) -> Any:
        return working(queue)

    def in_trial(queue: TaskQueue) -> Any:
        return trial(queue, eager=True)

    return in_worker if request.param == "worker" else in_trial


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_a_hook_is_entered_and_left_in_the_tasks_own_context(
    make_queue: MakeQueue, running: Callable[[TaskQueue], Any], kind: str
) -> None:
    log: list[str] = []
    first, second = Recorder("first", log), Recorder("second", log)
    queue = make_queue(plugins=plugins_with(first, second))
    task = declare(queue, kind)

    with running(queue):
        handles = [task.using(headers={"request": name}).enqueue() for name in ("a", "b")]
        results = [handle.result(30) for handle in handles]

    # What one task's hooks have set, the other one's do not see.
    assert sorted(value for value, _ in results) == ["none/a/a", "none/b/b"]
    assert log.count("first entered") == 2
    assert log.index("first entered") < log.index("second entered") < log.index("second left") < log.index("first left")
    assert {entered == left for entered, left in first.threads} == {True}
    assert {thread for _, thread in results} == {entered for entered, _ in first.threads}
    for ending in first.endings:
        assert isinstance(ending.outcome, Succeeded)
        assert ending.error is None
        assert ending.taken is True
        assert ending.seconds > 0


@pytest.mark.parametrize("kind", ["coroutine", "function"])
def test_a_hook_is_told_how_the_attempt_ended_and_what_it_raised(
    make_queue: MakeQueue, running: Callable[[TaskQueue], Any], kind: str
) -> None:
    recorder = Recorder()
    queue = make_queue(plugins=plugins_with(recorder))

    def work(what: str) -> Any:
        if what == "breaks":
            raise ZeroDivisionError(what)
        if what == "asks for another":
            current_task().retry(delay=3600)
        if what == "gives up":
            current_task().fail()
        return {object()} if what == "cannot be written" else what

    async def awork(what: str) -> Any:
        return work(what)

    task = queue.task(max_retries=1, retry=Fixed(3600))(awork if kind == "coroutine" else work)
    cases = ["returns", "breaks", "asks for another", "gives up", "cannot be written"]
    with running(queue):
        for number, case in enumerate(cases, 1):
            task.enqueue(case)
            wait_until(lambda count=number: len(recorder.endings) == count)  # type: ignore[misc]  # it takes none

    told = dict(zip(cases, recorder.endings, strict=True))
    assert [type(ending.outcome) for ending in told.values()] == [Succeeded, Retry, Retry, Failed, Failed]
    assert [type(ending.error).__name__ for ending in told.values()] == [
        "NoneType",
        "ZeroDivisionError",
        "NoneType",
        "NoneType",
        "SerializationError",
    ]
    trace = told["breaks"].error.__traceback__  # type: ignore[union-attr]  # it is one
    assert trace is not None


async def test_a_hook_of_a_task_that_is_cancelled_is_left(make_queue: MakeQueue) -> None:
    recorder = Recorder()
    queue = make_queue(plugins=plugins_with(recorder))

    @queue.task
    async def hold() -> None:
        await asyncio.Event().wait()

    handle = await hold.aenqueue()
    async with queue.worker(lease=1.5):
        await await_until(lambda: recorder.log)
        await handle.acancel()
        await await_until(lambda: recorder.endings)

    (ending,) = recorder.endings
    assert isinstance(ending.outcome, Cancelled)
    assert isinstance(ending.error, asyncio.CancelledError)
    assert ending.taken is True


async def test_a_hook_on_a_thread_learns_that_the_timeout_has_decided(make_queue: MakeQueue) -> None:
    recorder, gate = Recorder(), Gate()
    queue = make_queue(plugins=plugins_with(recorder))

    @queue.task(timeout=0.05, max_retries=0)
    def overdue() -> str:
        gate.wait()
        return "too late"

    handle = await overdue.aenqueue()
    async with queue.worker():
        try:
            with pytest.raises(TaskFailed, match="TaskTimeout"):
                await handle.aresult(30)
            assert recorder.endings == []  # the function still runs
        finally:
            gate.open()
        await await_until(lambda: recorder.endings)

    (ending,) = recorder.endings
    assert ending.taken is False
    assert isinstance(ending.outcome, Succeeded)


async def test_what_a_hook_does_when_it_is_left_is_outside_the_timeout(make_queue: MakeQueue) -> None:
    class Slow:
        @hookimpl
        def omniq_around_task(self) -> Iterator[None]:
            yield
            time.sleep(1.2)  # longer than the timeout

    queue = make_queue(plugins=plugins_with(Slow()))

    @queue.task(timeout=1, max_retries=0)
    def quick() -> str:
        return "in time"

    handle = await quick.aenqueue()
    async with queue.worker():
        assert await handle.aresult(30) == "in time"


async def test_a_hook_on_the_loop_is_told_of_a_timeout(make_queue: MakeQueue) -> None:
    recorder = Recorder()
    queue = make_queue(plugins=plugins_with(recorder))

    @queue.task(timeout=0.05, max_retries=0)
    async def overdue() -> None:
        await asyncio.Event().wait()

    handle = await overdue.aenqueue()
    async with queue.worker():
        with pytest.raises(TaskFailed, match="TaskTimeout"):
            await handle.aresult(30)

    (ending,) = recorder.endings
    assert type(ending.error).__name__ == "TaskTimeout"
    assert isinstance(ending.outcome, Failed)
    assert ending.taken is True


async def test_a_hook_is_told_that_the_worker_stopped(make_queue: MakeQueue) -> None:
    recorder = Recorder()
    queue = make_queue(plugins=plugins_with(recorder))

    @queue.task
    async def hold() -> None:
        await asyncio.Event().wait()

    handle = await hold.aenqueue()
    async with queue.worker(grace=0):
        await await_until(lambda: recorder.log)

    (ending,) = recorder.endings
    assert isinstance(ending.outcome, Released)
    assert (await handle.atask()).state is TaskState.READY


def _raises_before() -> Iterator[None]:
    yield from [None for _ in [1 / 0]]


def _raises_after() -> Iterator[None]:
    yield
    raise SystemExit("after")


def _yields_twice() -> Iterator[None]:
    yield
    yield


def _is_no_generator() -> None: ...


def _ends_at_once() -> Iterator[None]:
    yield from ()


@pytest.mark.parametrize("kind", ["loop", "thread"])
@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (_raises_before, "ZeroDivisionError"),
        (_raises_after, "SystemExit: after"),
        (_yields_twice, "yielded a second time"),
        (_is_no_generator, "must be a generator"),
        (_ends_at_once, "ended without a yield"),
    ],
)
def test_what_a_hook_raises_is_logged_and_changes_nothing(
    make_queue: MakeQueue,
    running: Callable[[TaskQueue], Any],
    caplog: pytest.LogCaptureFixture,
    broken: Callable[[], Any],
    complaint: str,
    kind: str,
) -> None:
    class Broken:
        @hookimpl
        def omniq_around_task(self) -> Any:
            return broken()

    before, after = Recorder("before"), Recorder("after")
    queue = make_queue(plugins=plugins_with(before, Broken(), after))
    task = declare(queue, kind)

    with running(queue):
        assert task.enqueue().result(30)[0] == "none/before/after"
        wait_until(lambda: before.endings and after.endings)

    (record,) = [record for record in caplog.records if record.name == "omniq.plugins"]
    assert "omniq_around_task of plugin own-1:own-1 raised; ignored" in record.getMessage()
    assert complaint in (record.exc_text or "") + str(record.exc_info)


def test_a_plugin_may_ask_to_be_first_or_last(make_queue: MakeQueue) -> None:
    log: list[str] = []

    class Last:
        @hookimpl(trylast=True)
        def omniq_around_task(self) -> Iterator[None]:
            log.append("last")
            yield

    class First:
        @hookimpl(tryfirst=True)
        def omniq_around_task(self) -> Iterator[None]:
            log.append("first")
            yield

    queue = make_queue(plugins=plugins_with(Last(), Recorder("between", log), First()))
    task = declare(queue, "thread")
    with trial(queue, eager=True):
        task.enqueue()

    assert log == ["first", "between entered", "last", "between left"]


def test_hooks_are_entered_in_the_child_process_that_runs_the_task(tmp_path: Path) -> None:
    queue = hooked_cpu_tasks.queue
    journal = tmp_path / "journal"
    headers = {"file": str(journal)}
    with queue, working(queue, processes=1) as worker:
        processes = []
        for name in ("a", "b"):
            value, process = (
                hooked_cpu_tasks.cpu_request.using(headers={**headers, "request": name}).enqueue().result(30)
            )
            processes.append(process)
            assert value == name
        broken = hooked_cpu_tasks.cpu_break.using(headers={**headers, "request": "c"}).enqueue()
        with pytest.raises(TaskFailed, match="ZeroDivisionError"):
            broken.result(30)
        overdue = hooked_cpu_tasks.cpu_overdue.using(headers={**headers, "request": "d"}).enqueue()
        with pytest.raises(TaskFailed, match="TaskTimeout"):
            overdue.result(30)

    lines = journal.read_text().splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["entered", "left"] * 3
    assert [line.split()[0] for line in lines[6:]] in (["entered"], [])  # killed then, or before it came to that
    assert {line.split()[1] for line in lines[:6]} == set(map(str, processes))
    entered = [line.split()[2:] for line in lines if line.startswith("entered")]
    assert entered == [[worker.id, "none"]] * len(entered)  # none sees what was set for the one before
    left = [line.split()[2:] for line in lines if line.startswith("left")]
    assert [ending[:4] for ending in left] == [
        ["Succeeded", "NoneType", "True", "True"],
        ["Succeeded", "NoneType", "True", "True"],
        ["Failed", "ZeroDivisionError", "True", "True"],
    ]
    assert left[2][4] == broken.id


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_nothing_is_called_where_no_plugin_stands_around_tasks(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(attempts, "_enter", lambda *_: calls.append("enter"))
    monkeypatch.setattr(attempts, "_leave", lambda *_: calls.append("leave"))
    queue = make_queue()
    task = declare(queue, kind)
    with working(queue):
        assert task.enqueue().result(30)[0] == "none"

    assert queue.plugins.around_task is None
    assert calls == []


def test_what_a_hook_does_in_a_child_when_it_is_left_is_outside_the_timeout(tmp_path: Path) -> None:
    headers = {"file": str(tmp_path / "journal"), "request": "a", "linger": "2.5"}
    with hooked_cpu_tasks.queue as queue, working(queue, processes=1):
        assert hooked_cpu_tasks.cpu_in_time.using(headers=headers).enqueue().result(60) == "in time"


IN_NO_MODULE = """
import asyncio, os, threading
import omniq


class Marks:
    def __init__(self, mark):
        self.mark = mark

    @omniq.hookimpl
    def omniq_around_task(self, task):
        os.environ["MARK"] = self.mark
        yield


class Stays(Marks):
    def __init__(self):
        self.lock = threading.Lock()


queue = omniq.TaskQueue("memory://", plugins=[Marks("seen"), Stays()])


@queue.task(executor="process")
def mark() -> str:
    return os.environ.get("MARK", "none")


async def main():
    async with queue, queue.worker(processes=1):
        print(await (await mark.aenqueue()).aresult(60))


asyncio.run(main())
"""


def test_the_plugins_of_a_function_that_travels_travel_with_it_and_one_that_cannot_is_named() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", IN_NO_MODULE], capture_output=True, text=True, timeout=120, check=False
    )

    assert ended.stdout == "seen\n", ended.stderr
    assert "plugin __main__.Stays cannot be sent to the child process" in ended.stderr
