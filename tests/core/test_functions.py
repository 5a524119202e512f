"""What can be a task, under which name, and what a task function is to whoever calls it directly."""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import inspect
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from omniq import AsyncTaskFunction, Fixed, RetryPolicy, TaskFunction, TaskQueue
from omniq.storage.ids import new_id
from tests.core.running import working


def shop_task(name: str) -> str:
    """Say what is done."""
    return f"done: {name}"


async def shop_coroutine(name: str) -> str:
    return f"done: {name}"


def numbers() -> Iterator[int]:
    yield 1


async def numbers_to_come() -> AsyncIterator[int]:
    yield 1


class Callables:
    def __call__(self, n: int) -> int:
        return n

    def method(self, n: int) -> int:
        return 2 * n


class AsyncCallable:
    async def __call__(self, n: int) -> int:
        return n


@pytest.fixture
def private() -> Iterator[TaskQueue]:
    with TaskQueue("memory://") as queue:
        yield queue


# Declaring


def test_a_task_is_named_after_its_module_and_itself(private: TaskQueue) -> None:
    assert private.task(shop_task).name == f"{__name__}.shop_task"
    assert private.task(name="shop")(shop_coroutine).name == "shop"
    assert set(private.functions) == {f"{__name__}.shop_task", "shop"}


def test_a_task_function_looks_like_the_function(private: TaskQueue) -> None:
    task = private.task(shop_task)

    assert (vars(task)["__name__"], task.__doc__, task.__module__) == ("shop_task", "Say what is done.", __name__)
    assert repr(task) == f"<task function {__name__}.shop_task>"
    assert isinstance(private.task(shop_coroutine), AsyncTaskFunction)
    assert not isinstance(task, AsyncTaskFunction)


def test_attributes_of_the_function_do_not_get_into_the_way_of_ours(private: TaskQueue) -> None:
    def annotated() -> None: ...

    annotated.options = "mine"  # type: ignore[attr-defined]  # as libraries do that leave notes on functions

    assert private.task(annotated).using(priority=3).options.priority == 3


def test_calling_a_task_function_runs_the_function_here_and_now(private: TaskQueue) -> None:
    assert private.task(shop_task)("bread") == "done: bread"
    assert asyncio.run(private.task(shop_coroutine)(name="bread")) == "done: bread"
    assert list(private.tasks()) == []


def test_a_call_shows_what_it_would_run(private: TaskQueue) -> None:
    @private.task(name="pay")
    def pay(amount: int, *, to: str) -> None: ...

    assert repr(pay.call(3, to="me")) == "pay(3, to='me')"


@pytest.mark.parametrize("thing", [numbers, numbers_to_come, Callables, int, "shop_task", 5, None.__class__])
def test_what_is_no_function_with_a_result_is_refused_where_it_is_declared(private: TaskQueue, thing: Any) -> None:
    with pytest.raises(TypeError, match=r"function|generator"):
        private.task()(thing)
    assert private.functions == {}


def test_two_functions_cannot_have_one_name(private: TaskQueue) -> None:
    private.task(name="shop")(shop_task)

    with pytest.raises(ValueError, match=r"'shop' is registered already.*name="):
        private.task(name="shop")(shop_coroutine)
    assert private.functions["shop"].definition.function is shop_task


def test_a_module_that_is_imported_twice_declares_its_tasks_anew(private: TaskQueue, tmp_path: Path) -> None:
    module = tmp_path / "shop.py"
    module.write_text(
        dedent(
            """
            def declare(queue):
                @queue.task(name="shop.pay", max_retries=1)
                def pay(): ...
            """
        )
    )
    for _ in range(2):
        runpy.run_path(str(module))["declare"](private)

    assert list(private.functions) == ["shop.pay"]


def module_of(folder: Path, text: str) -> Any:
    """Import a new module that declares tasks with the queue of the test."""
    name = f"shop_{new_id().replace('-', '_')}"
    text = dedent(text).replace("QUEUE", f"sys.modules[{__name__!r}].current")
    (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


@pytest.fixture
def declared_in(private: TaskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.setattr(sys.modules[__name__], "current", private, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return functools.partial(module_of, tmp_path)


HIDING = """
    import sys

    def hiding(function):
        def wrapper(*args):
            return function(*args)
        return wrapper

    @QUEUE.task
    @hiding
    def charge(amount):
        return f"charge {amount}"
"""


def test_two_functions_behind_a_decorator_that_hides_their_names_are_a_mistake(
    private: TaskQueue, declared_in: Callable[[str], Any]
) -> None:
    refund = """
    @QUEUE.task
    @hiding
    def refund(amount):
        return f"refund {amount}"
    """
    with pytest.raises(ValueError, match=r"hiding.*registered already.*another function.*functools\.wraps"):
        declared_in(HIDING + refund)
    (task,) = private.functions.values()
    assert task(10) == "charge 10"


def test_the_functions_of_a_factory_are_a_mistake_unless_they_do_the_same(
    private: TaskQueue, declared_in: Callable[[str], Any]
) -> None:
    factory = """
    import sys

    def make(number):
        @QUEUE.task
        def give():
            return number
        return give
    """
    declared_in(factory + "make(1)\n    make(1)\n")

    with pytest.raises(ValueError, match=r"registered already.*another function"):
        declared_in(factory + "make(1)\n    make(2)\n")


def test_two_partial_functions_are_a_mistake(private: TaskQueue) -> None:
    declare: Any = private.task(name="shop")
    declare(functools.partial(shop_task, "a"))
    declare(functools.partial(shop_task, "a"))

    with pytest.raises(ValueError, match="registered already"):
        declare(functools.partial(shop_task, "b"))


def test_a_module_that_is_loaded_again_declares_its_tasks_anew(
    private: TaskQueue, declared_in: Callable[[str], Any]
) -> None:
    module = declared_in(HIDING)
    path = Path(module.__file__)
    path.write_text(path.read_text().replace("import sys", "import sys\n\n").replace('f"charge', 'f"now'))
    sys.path.insert(0, str(path.parent))
    try:
        importlib.reload(module)
    finally:
        sys.path.remove(str(path.parent))

    (task,) = private.functions.values()
    assert task(10) == "now 10"


CELL = """
class Shop:
    pass

def priced(shop):
    def around(function):
        def wrapper(*args):
            return function(*args)
        return wrapper
    return around

@queue.task
@priced(Shop())
def charge(amount):
    return f"charge {amount}"
"""


def test_a_cell_of_a_notebook_that_is_run_again_declares_its_tasks_anew(private: TaskQueue) -> None:
    notebook = {"__name__": "__main__", "queue": private}

    def run_cell(text: str, number: int) -> None:
        exec(compile(text, f"/tmp/ipykernel_4711/{number}.py", "exec"), notebook)

    run_cell(CELL, 1)
    run_cell(CELL, 1)
    run_cell(CELL.replace("charge {", "now {"), 2)
    (task,) = private.functions.values()
    assert task(10) == "now 10"
    with pytest.raises(ValueError, match="registered already"):
        run_cell(CELL.replace("charge", "refund"), 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": 5}, TypeError, "name must be a string"),
        ({"name": ""}, ValueError, "name must have 1 to"),
        ({"name": "a\0b"}, ValueError, "name must be text"),
        ({"name": "\ud800"}, ValueError, "name must be text"),
        ({"retry_on": "ValueError"}, TypeError, "retry_on must be a class of errors"),
        ({"retry_on": [ValueError]}, TypeError, "retry_on must be a class of errors"),
        ({"retry_on": (ValueError, int)}, TypeError, "retry_on must be a class of errors"),
        ({"retry": Fixed}, TypeError, "retry must be a RetryPolicy"),
        ({"queue": "a b"}, ValueError, "queue 'a b'"),
        ({"executor": "elsewhere"}, ValueError, "executor must be"),
        ({"executor": "loop"}, TypeError, "plain function"),
    ],
)
def test_a_declaration_that_cannot_be_used_is_refused(
    private: TaskQueue, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        private.task(**options)(shop_task)
    assert private.functions == {}


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_coroutine_function_cannot_run_elsewhere_than_on_a_loop(private: TaskQueue, executor: Any) -> None:
    with pytest.raises(TypeError, match="coroutine function"):
        private.task(executor=executor)(shop_coroutine)


def test_nothing_is_retried_where_no_error_is_named(private: TaskQueue) -> None:
    assert private.task(retry_on=())(shop_task).definition.retry_on == ()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        pytest.param(Callables(), 3, id="an object with __call__"),
        pytest.param(AsyncCallable(), 3, id="an object with async __call__"),
        pytest.param(Callables().method, 6, id="a bound method"),
        pytest.param(functools.partial(shop_task), "done: 3", id="a partial"),
        pytest.param(functools.partial(shop_coroutine), "done: 3", id="a partial of a coroutine function"),
        pytest.param(lambda n: n, 3, id="a lambda"),
    ],
)
def test_whatever_can_be_called_can_be_a_task(private: TaskQueue, function: Callable[..., Any], expected: Any) -> None:
    task = private.task(name="called")(function)
    handle = task.enqueue("3" if isinstance(expected, str) else 3)

    with working(private):
        assert handle.result(30) == expected


def test_a_task_of_one_queue_can_be_declared_for_another_too(private: TaskQueue) -> None:
    with TaskQueue("memory://") as other:
        there = other.task(max_retries=9)(shop_coroutine)
        here = private.task(there)

        handle = here.enqueue("bread")

        assert here.name == there.name
        assert handle.task().max_retries == 3
        assert handle.task().is_async
        assert list(other.tasks()) == []
        with working(private):
            assert handle.result(30) == "done: bread"


# Enqueueing what is not this queue's


@pytest.mark.parametrize("thing", [shop_task, "shop_task", None])
def test_a_function_that_is_no_task_cannot_be_enqueued(private: TaskQueue, thing: Any) -> None:
    with pytest.raises(TypeError, match=r"decorate it with @queue\.task"):
        private.enqueue(thing, 1)
    with pytest.raises(TypeError, match=r"decorate it with @queue\.task"):
        asyncio.run(private.aenqueue(thing, 1))


def test_a_task_of_another_queue_cannot_be_enqueued_in_any_way(private: TaskQueue) -> None:
    with TaskQueue("memory://") as other:
        foreign = other.task(shop_task)

        with pytest.raises(ValueError, match="task of another queue"):
            private.enqueue(foreign, "bread")
        with pytest.raises(ValueError, match="task of another queue"):
            private.enqueue_many([foreign.call("bread")])
        with pytest.raises(ValueError, match="task of another queue"):
            asyncio.run(private.aenqueue(foreign, "bread"))
        with pytest.raises(ValueError, match="task of another queue"):
            asyncio.run(private.aenqueue_many([foreign.call("bread")]))

    assert list(private.tasks()) == []


def test_a_function_that_was_called_instead_of_asked_for_a_call_cannot_be_enqueued(private: TaskQueue) -> None:
    task = private.task(shop_task)

    with pytest.raises(TypeError, match=r"'done: bread' is no call of a task; write function\.call"):
        private.enqueue_many([task("bread")])  # type: ignore[arg-type]  # the mistake that is tested


# Policies of one's own


class Impatient(RetryPolicy):
    """A policy that no plugin brings."""

    kind = "impatient"

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        return 0.0 if attempt < 3 else None


def test_a_policy_that_no_plugin_brings_works_where_it_is_declared_in_code(private: TaskQueue) -> None:
    attempts: list[int] = []

    @private.task(max_retries=9, retry=Impatient())
    def fail() -> None:
        attempts.append(1)
        raise ValueError

    handle = fail.enqueue()
    with working(private), pytest.raises(Exception, match="ValueError"):
        handle.result(30)
    assert len(attempts) == 3
    assert handle.task().retry is None, "only the worker knows it"


def test_a_policy_that_no_plugin_brings_cannot_be_given_to_one_call(private: TaskQueue) -> None:
    task = private.task(shop_task)

    with pytest.raises(TypeError, match=r"cannot travel with a task.*omniq_retry_policies"):
        task.using(retry=Impatient()).enqueue("bread")
    assert list(private.tasks()) == []


# Names of scripts


SCRIPT = """
from omniq import TaskQueue

queue = TaskQueue("memory://")

@queue.task
def pay(): ...

def show():
    print(pay.name, flush=True)

if __name__ == "__main__":
    show()
"""


@pytest.mark.parametrize(
    ("files", "command", "name"),
    [
        (["shop.py"], ["shop.py"], "shop.pay"),
        (["shop.py"], ["-m", "shop"], "shop.pay"),
        (["shop/jobs.py"], ["shop/jobs.py"], "shop.jobs.pay"),
        (["shop/__init__.py", "shop/jobs.py"], ["shop/jobs.py"], "shop.jobs.pay"),
        (["shop/__init__.py", "shop/jobs.py"], ["-m", "shop.jobs"], "shop.jobs.pay"),
        (["src/shop/__init__.py", "src/shop/jobs.py"], ["src/shop/jobs.py"], "shop.jobs.pay"),
        (["a folder/shop.py"], ["a folder/shop.py"], "shop.pay"),
        (["shop/__init__.py", "shop/__main__.py"], ["shop"], "shop.pay"),
        (["shop/__init__.py", "shop/__main__.py"], ["-m", "shop"], "shop.pay"),
    ],
)
def test_a_scripts_tasks_are_named_as_a_worker_that_imports_it_names_them(
    tmp_path: Path, files: list[str], command: list[str], name: str
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("" if file.endswith("__init__.py") else SCRIPT)
    ended = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == name


def test_a_scripts_tasks_have_the_same_name_in_children_of_multiprocessing(tmp_path: Path) -> None:
    more = """
    import multiprocessing
    child = multiprocessing.get_context("spawn").Process(target=show)
    child.start()
    child.join()
"""
    (tmp_path / "shop.py").write_text(SCRIPT + more)
    ended = subprocess.run([sys.executable, "shop.py"], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert ended.stdout == "shop.pay\nshop.pay\n"


# Coroutine functions

asyncio_says: Any = vars(asyncio)["iscoroutinefunction"]  # deprecated from Python 3.14 on, and much used


async def noted(*, note: str = "") -> str:
    return note


@pytest.mark.parametrize("function", [shop_coroutine, functools.partial(noted, note="a")])
def test_a_coroutine_task_is_a_coroutine_function_for_everybody_who_asks(private: TaskQueue, function: Any) -> None:
    task: Any = private.task(name="task")(function)

    for known in (task, task.using(priority=1)):
        assert inspect.iscoroutinefunction(known)
        assert asyncio_says(known)
        assert not inspect.isgeneratorfunction(known)
        assert inspect.signature(known) == inspect.signature(function)


def test_a_plain_task_is_no_coroutine_function(private: TaskQueue) -> None:
    task = private.task(shop_task)

    assert not inspect.iscoroutinefunction(task)
    assert not asyncio_says(task)


def test_a_parameter_may_have_any_name(private: TaskQueue) -> None:
    @private.task
    def odd(self: int, function: int, call: int) -> int:
        return self + function + call

    arguments = {"self": 1, "function": 2, "call": 3}
    assert odd(**arguments) == 6
    assert odd.call(**arguments).kwargs == arguments
    handles = [odd.enqueue(**arguments), private.enqueue(odd, **arguments)]
    assert [dict(handle.task().kwargs) for handle in handles] == [arguments] * 2


def test_a_task_function_keeps_its_kind_when_its_options_change(private: TaskQueue) -> None:
    task = private.task(shop_coroutine)

    assert isinstance(task.using(priority=1), AsyncTaskFunction)
    assert isinstance(private.task(shop_task).using(priority=1), TaskFunction)


def test_the_words_of_other_queues_are_answered_with_ours() -> None:
    queue = TaskQueue("memory://")

    @queue.task
    def resize() -> None: ...

    for word, ours in (("delay", "enqueue"), ("apply_async", "using"), ("send", "enqueue"), ("s", "call")):
        with pytest.raises(AttributeError, match=rf"resize has no attribute '{word}'; OmniQ's word for it is {ours}"):
            getattr(resize, word)
    misspelt = "dealy"
    with pytest.raises(AttributeError, match=rf"no attribute '{misspelt}'$"):
        getattr(resize, misspelt)
    assert not hasattr(copy.copy(resize), "delay"), "a copy is made without __init__"
