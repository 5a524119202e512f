"""The serializer for anything: where it may be used, what it takes, and functions that nobody registered."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omniq import (
    ConfigurationError,
    Exponential,
    Fixed,
    PayloadRejected,
    SerializationError,
    TaskFailed,
    TaskQueue,
    TaskState,
    current_task,
    hookimpl,
)
from omniq._tasks.pickled_functions import PREFIX
from omniq.plugins import Plugins
from omniq.serialization import ArgumentTypes, Serializer
from omniq.serialization.cloudpickle import serializer
from omniq.storage.ids import new_id
from omniq.testing import trial, wait_until
from tests.core.running import working

KEY = "a key for the tests of pickles"
ANY = ArgumentTypes()


@pytest.fixture(params=["memory", "memory with a key", "sqlite", "file"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TaskQueue]:
    urls = {"sqlite": f"sqlite:///{tmp_path}/jobs.db", "file": f"file://{tmp_path}/jobs"}
    url = urls.get(request.param, f"memory://{new_id()}")
    with TaskQueue(url, serializer="cloudpickle", signing_key=None if request.param == "memory" else KEY) as queue:
        yield queue


# Where it may be used


@pytest.mark.parametrize("options", [{"serializer": "cloudpickle"}, {"accept": ["cloudpickle"]}], ids=repr)
def test_a_store_that_others_can_reach_needs_a_signing_key(options: Any, tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/jobs.db", f"file://{tmp_path}/jobs"):
        with pytest.raises(ConfigurationError, match=r"'cloudpickle' runs whatever code .* signing_key .*memory://"):
            TaskQueue(url, **options)
        TaskQueue(url, signing_key=KEY, **options)
    TaskQueue("memory://", **options)
    assert list(tmp_path.iterdir()) == []  # it was told when the queue was made, before anything was opened


def test_the_same_holds_for_a_storage_that_was_made_by_hand(tmp_path: Path) -> None:
    def storage_of(url: str) -> Any:
        return TaskQueue(url).connections.sibling()

    with pytest.raises(ConfigurationError, match="signing_key"):
        TaskQueue(storage_of(f"sqlite:///{tmp_path}/jobs.db"), serializer="cloudpickle")
    TaskQueue(storage_of("memory://"), serializer="cloudpickle")


def test_a_key_of_the_environment_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMNIQ_SIGNING_KEY", KEY)
    TaskQueue(f"sqlite:///{tmp_path}/jobs.db", serializer="cloudpickle")


class Runes:
    """A serializer of a plugin that runs code."""

    name = "runes"
    runs_code = True
    dump_arguments = serializer.dump_arguments
    load_arguments = serializer.load_arguments
    dump_result = serializer.dump_result
    load_result = serializer.load_result


def test_a_plugins_serializer_that_runs_code_is_held_to_the_same_rules(tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def omniq_serializers(self) -> dict[str, Serializer | str]:
            return {"runes": Runes()}

    plugins = Plugins()
    plugins.register(Plugin(), name="runes")
    with pytest.raises(ConfigurationError, match=r"'runes' runs whatever code"):
        TaskQueue(f"sqlite:///{tmp_path}/jobs.db", serializer="runes", plugins=plugins)
    with TaskQueue("memory://", serializer="runes", plugins=plugins) as queue, working(queue):
        assert queue.enqueue(lambda: 5).result(timeout=20) == 5


def test_what_is_not_accepted_is_not_decoded_whatever_the_key(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    with TaskQueue(url, serializer="cloudpickle", signing_key=KEY) as sender, TaskQueue(url, signing_key=KEY) as queue:
        canary = tmp_path / "canary"
        handle = sender.enqueue(canary.touch)
        with working(queue), pytest.raises(TaskFailed, match=r"PayloadRejected: .*'cloudpickle'.*accept=json"):
            queue.handle(handle.id).result(timeout=20)
        assert not canary.exists()


def test_json_is_no_way_around_it() -> None:
    with TaskQueue("memory://") as queue:
        with pytest.raises(TypeError, match=r"decorate it with @queue\.task, or take the serializer 'cloudpickle'"):
            queue.enqueue(lambda: 5)

        @queue.task
        def show(value: object) -> None: ...

        with pytest.raises(SerializationError):
            show.enqueue(lambda: 5)


def test_it_is_not_imported_before_something_is_pickled() -> None:
    script = """
import sys
from omniq import TaskQueue
queue = TaskQueue("memory://", serializer="cloudpickle")
print("cloudpickle" in sys.modules)
queue.enqueue(lambda: 5)
print("cloudpickle" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "True"]


# What it takes


class Point:
    def __init__(self, x: int, inside: Any = None) -> None:
        self.x = x
        self.inside = inside

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    __hash__ = None  # type: ignore[assignment]  # not needed


def everything(n: int) -> Iterator[int]:
    yield n


def local_class() -> type:
    class Local(Point):
        pass

    return Local


@pytest.mark.parametrize(
    "value",
    [Point(1), [Point(2), {Point: 3}], 10**5_000, {1: {2}}, b"\x00", None, ...],
    ids=lambda value: type(value).__name__,
)
def test_arguments_and_results_come_back_as_they_were(value: Any) -> None:
    dumped = serializer.dump_arguments((value,), {"k": value}, ANY)
    assert serializer.load_arguments(dumped, ANY) == ((value,), {"k": value})
    assert serializer.load_result(serializer.dump_result(value, Any), Any) == value


def test_lambdas_closures_and_classes_made_inside_functions_travel_by_value() -> None:
    factor = 3
    _, (double, local) = (
        (),
        serializer.load_arguments(serializer.dump_arguments((lambda n: n * factor, local_class()(7)), {}, ANY), ANY)[0],
    )
    assert double(2) == 6
    assert local.x == 7
    assert type(local).__name__ == "Local"


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((1, threading.Lock()), {}, "args[1]"),
        ((), {"a": 1, "b": [threading.Lock()]}, "kwargs['b']"),
        ((Point(1, iter(everything(1))),), {}, "args[0]"),
    ],
    ids=["by position", "by name", "inside another"],
)
def test_what_cannot_be_pickled_is_refused_with_the_path_to_it(args: Any, kwargs: Any, path: str) -> None:
    with pytest.raises(SerializationError, match=r"cannot be pickled: .*cannot pickle") as caught:
        serializer.dump_arguments(args, kwargs, ANY)
    assert caught.value.path == path
    with pytest.raises(SerializationError, match=r"result: cannot be pickled"):
        serializer.dump_result((args, kwargs), Any)
    with pytest.raises(SerializationError, match=r"^result"):
        serializer.dump_result(Endless(), Any)


class Endless:
    def __reduce__(self) -> Any:
        raise RuntimeError("no way")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"nonsense", pickle.dumps(5), pickle.dumps(((), {1: 2})), pickle.dumps(([], {})), b"cno.such\nn\n."],
    ids=repr,
)
def test_bytes_that_are_not_its_own_are_a_serialization_error(data: bytes) -> None:
    with pytest.raises(SerializationError):
        serializer.load_arguments(data, ANY)


def test_a_class_that_is_gone_fails_its_own_task_only(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker of another version may have it; but not for half an hour in a test.
    monkeypatch.setattr("omniq._worker.releasing.PUT_BACK_LIMIT", 0)

    class Gone:
        def __reduce__(self) -> Any:
            return getattr, (Point, "gone")

    broken = queue.enqueue(lambda value: None, Gone())
    whole = queue.enqueue(lambda: "here")
    with working(queue):
        with pytest.raises(TaskFailed, match="ArgumentsMismatch: the arguments: cannot be unpickled here: Attr"):
            broken.result(timeout=20)
        assert whole.result(timeout=20) == "here"


# Functions that nobody registered


def points(*, b: int) -> list[Point]:
    return [Point(b)]


async def add(a: int, b: int = 1) -> int:
    return a + b


def test_a_lambda_can_be_enqueued_and_gives_its_result(queue: TaskQueue) -> None:
    with working(queue):
        assert queue.enqueue(lambda x: x + 1, 3).result(timeout=20) == 4
        assert queue.enqueue(points, b=5).result(timeout=20) == [Point(5)]


def test_every_kind_of_callable_can_be(queue: TaskQueue) -> None:
    with working(queue):
        assert queue.enqueue(add, 1, b=2).result(timeout=20) == 3
        assert queue.enqueue(functools.partial(add, 1), b=5).result(timeout=20) == 6
        assert queue.enqueue(Point(1).__eq__, Point(1)).result(timeout=20) is True
        assert queue.enqueue(os.path.join, "a", "b").result(timeout=20) == "a/b"


def test_coroutines_enqueue_them_too(queue: TaskQueue) -> None:
    async def scenario() -> None:
        async with queue, queue.worker():
            handle = await queue.aenqueue(lambda: threading.current_thread().name)
            assert "omniq-thread" in await handle.aresult(30)
            loop = await queue.aenqueue(add, 1)
            assert await loop.aresult(30) == 2

    asyncio.run(scenario())


def test_registered_functions_run_beside_them(queue: TaskQueue) -> None:
    @queue.task(name="registered", retry=Fixed(0))
    def registered(function: Callable[[int], int]) -> int:
        return function(20)

    with working(queue):
        handles = [queue.enqueue(lambda: 1), registered.enqueue(lambda n: n + 2), queue.enqueue(add, 2)]
        assert [handle.result(timeout=20) for handle in handles] == [1, 22, 3]


def test_their_tasks_are_known_by_the_functions_own_name(queue: TaskQueue) -> None:
    task = queue.enqueue(add, 1).task()
    assert task.name == f"{PREFIX}async:{add.__module__}.add"
    function, one = task.args
    assert (function.__name__, one) == ("add", 1)
    assert queue.enqueue(lambda: 5).task().name.endswith(".<lambda>")


def test_they_run_by_the_queues_options_and_are_retried(tmp_path: Path) -> None:
    url = f"memory://{new_id()}"
    with TaskQueue(url, serializer="cloudpickle", max_retries=1, retry=Fixed(0), timeout=30) as queue:

        def fail_once(attempts: Path) -> int:
            with attempts.open("a") as file:
                file.write("x")
            if current_task().attempt == 1:
                raise ValueError("not yet")
            return len(attempts.read_text())

        handle = queue.enqueue(fail_once, tmp_path / "attempts")
        assert (handle.task().max_retries, handle.task().timeout, handle.task().retry) == (1, 30, Fixed(0))
        with working(queue):
            assert handle.result(timeout=20) == 2


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda queue: queue.enqueue(lambda x: x), "missing a required argument: 'x'"),
        (lambda queue: queue.enqueue(add, 1, c=2), "unexpected keyword argument 'c'"),
        (lambda queue: queue.enqueue(5), "no task of this queue"),
        (lambda queue: queue.enqueue(Point, 5), "must be a function"),
        (lambda queue: queue.enqueue(everything, 5), "generator"),
    ],
    ids=["argument missing", "unknown argument", "no function", "class", "generator"],
)
def test_what_cannot_be_called_so_is_a_type_error_where_it_is_enqueued(
    call: Callable[[TaskQueue], object], error: str
) -> None:
    with TaskQueue("memory://", serializer="cloudpickle") as queue, pytest.raises(TypeError, match=error):
        call(queue)


def test_no_function_can_be_registered_under_such_a_name() -> None:
    queue = TaskQueue("memory://")
    with pytest.raises(ValueError, match="pickled:x"):
        queue.task(name="pickled:x")(lambda: None)


def test_a_function_that_holds_the_queue_cannot_take_its_key_to_the_store() -> None:
    with TaskQueue("memory://", serializer="cloudpickle", signing_key=KEY) as queue:
        signer = vars(queue.codec)["_signer"]
        with pytest.raises(SerializationError, match="signing keys are never pickled"):
            queue.enqueue(lambda: repr(signer.reveal()))
        with pytest.raises(SerializationError, match="cannot be pickled"):
            queue.enqueue(queue.stats)


def test_a_trial_runs_them_too() -> None:
    queue = TaskQueue("memory://", serializer="cloudpickle")
    with trial(queue) as tried:
        handles = [queue.enqueue(lambda: 5), queue.enqueue(add, 1)]
        assert tried.drain() == 2
        assert [handle.result(timeout=0) for handle in handles] == [5, 2]


def test_a_worker_with_no_functions_of_its_own_serves_them(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    with (
        TaskQueue(url, serializer="cloudpickle", signing_key=KEY) as sender,
        TaskQueue(url, accept=["cloudpickle"], signing_key=KEY) as queue,
        working(queue),
    ):
        handle = sender.enqueue(os.getpid)
        assert handle.result(timeout=20) == os.getpid()
        assert queue.handle(handle.id).result(timeout=20) == os.getpid()


def test_many_more_of_them_than_threads_are_not_claimed_at_once() -> None:
    with TaskQueue("memory://", serializer="cloudpickle") as queue:

        @queue.task(name="coroutine")
        async def coroutine() -> None: ...

        gate = threading.Event()
        arrived: list[None] = []
        GATES[:] = [gate, arrived]
        handles = [queue.enqueue(pass_gate) for _ in range(30)]
        with working(queue, concurrency=100, threads=2):
            wait_until(lambda: len(arrived) == 2, what="both threads")
            states = [handle.task().state for handle in handles]
            gate.set()
            assert [handle.result(timeout=20) for handle in handles] == [None] * 30
        assert states.count(TaskState.RUNNING) < 30


GATES: list[Any] = []


def pass_gate() -> None:
    gate, arrived = GATES
    arrived.append(None)
    gate.wait()


def test_the_policy_of_the_queue_travels_with_them() -> None:
    with TaskQueue("memory://", serializer="cloudpickle", retry=Exponential(delay=7)) as queue:
        assert queue.enqueue(lambda: 1).task().retry == Exponential(delay=7)


def test_a_name_that_claims_a_function_in_a_json_payload_is_rejected() -> None:
    from omniq.task import NewTask
    from tests.bodies import body_of

    with TaskQueue("memory://", accept=["cloudpickle"]) as queue:
        body = body_of(b'[["os.system","true"],{}]')
        order = NewTask(id=new_id(), queue="default", name=f"{PREFIX}os.system", body=body)

        async def store() -> None:
            await (await queue.connections.current()).storage.enqueue([order])

        queue.run(store())
        with working(queue), pytest.raises(TaskFailed, match=r"PayloadRejected: .*'json' cannot hold"):
            queue.handle(order.id).result(timeout=20)
        with pytest.raises(PayloadRejected):
            _ = queue.handle(order.id).task().args
