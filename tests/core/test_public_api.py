"""The names that programs outside this repository import. One may be added; none may go, or change its meaning."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import omniq
from omniq import TaskQueue, errors

PUBLIC = {
    # Queues and tasks.
    "AsyncTaskFunction",
    "Attempt",
    "CurrentTask",
    "Progress",
    "QueueStats",
    "Debounce",
    "Limit",
    "Rate",
    "Reason",
    "ReasonKind",
    "Selection",
    "Step",
    "Task",
    "Ended",
    "Flow",
    "FlowHandle",
    "Gate",
    "TaskCall",
    "TaskGroup",
    "each",
    "gather",
    "TaskError",
    "TaskFunction",
    "TaskHandle",
    "TaskQueue",
    "TaskState",
    "Worker",
    "WorkerAbout",
    "WorkerInfo",
    "as_completed",
    "current_task",
    # What a task is given beside its arguments.
    "Depends",
    "WorkerState",
    # When a failed task runs again.
    "Exponential",
    "Fixed",
    "Linear",
    "RetryPolicy",
    # Schedules.
    "At",
    "Cron",
    "Every",
    "Misfire",
    "Overlap",
    "Schedule",
    "Trigger",
    # Plugins.
    "acting_as",
    "hookimpl",
    "hookspec",
} | set(errors.__all__)

# The methods of a queue that do I/O: each is there for coroutines, with an `a` before its name, and for others without.
TWINS = {
    "cancel",
    "close",
    "delete",
    "delete_schedule",
    "enqueue",
    "enqueue_many",
    "explain",
    "get",
    "limits",
    "pause",
    "pause_schedule",
    "purge",
    "put_limit",
    "resume",
    "resume_schedule",
    "retry",
    "run_now",
    "schedule",
    "schedules",
    "stats",
    "tasks",
    "trigger_schedule",
    "unlimit",
}


MODULES = {
    "cli",
    "contrib",
    "dashboard",
    "errors",
    "flow",
    "hookspecs",
    "limit",
    "plugins",
    "retry",
    "schedule",
    "serialization",
    "storage",
    "task",
    "testing",
    "triggers",
}


def test_a_module_is_public_and_in_the_reference_or_begins_with_an_underscore() -> None:
    public = {module.name for module in pkgutil.iter_modules(omniq.__path__) if not module.name.startswith("_")}
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    paths = reference.split("## Import paths", 1)[1].split("\n## ", 1)[0]

    assert public == MODULES
    assert [name for name in sorted(public) if f"`omniq.{name}`" not in paths] == []


def test_exactly_these_names_are_exported() -> None:
    assert set(omniq.__all__) == PUBLIC
    assert omniq.__all__ == sorted(omniq.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_an_exported_name_is_there_and_says_what_it_is(name: str) -> None:
    thing = getattr(omniq, name)

    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert inspect.getdoc(thing)


def test_nothing_else_of_the_package_looks_public() -> None:
    looks_public = {
        name for name in dir(omniq) if not name.startswith("_") and not inspect.ismodule(getattr(omniq, name))
    }

    assert looks_public == PUBLIC


def test_a_type_checker_sees_each_name_where_it_is_at_run_time() -> None:
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(omniq))) if isinstance(node, ast.ImportFrom)]
    declared = {alias.asname or alias.name: (node.module, alias.name) for node in imports for alias in node.names}

    assert set(declared) == PUBLIC
    for name, (module, own_name) in declared.items():
        assert getattr(omniq, name) is getattr(importlib.import_module(str(module)), own_name)


def test_a_name_that_is_not_there_is_an_attribute_error_that_names_it() -> None:
    name = "Tusk"

    with pytest.raises(AttributeError, match="module 'omniq' has no attribute 'Tusk'"):
        getattr(omniq, name)


@pytest.mark.parametrize("name", sorted(TWINS))
def test_what_does_io_comes_in_two_forms_that_take_the_same(name: str) -> None:
    for_others, for_coroutines = getattr(TaskQueue, name), getattr(TaskQueue, f"a{name}")

    assert inspect.iscoroutinefunction(for_coroutines)
    assert not inspect.iscoroutinefunction(for_others)
    assert inspect.signature(for_others).parameters == inspect.signature(for_coroutines).parameters
    assert inspect.getdoc(for_others)
    assert for_others.__name__ == name


@pytest.mark.parametrize("name", sorted(name for name in dir(TaskQueue) if not name.startswith("_")))
def test_a_method_of_a_queue_says_what_it_does(name: str) -> None:
    if callable(getattr(TaskQueue, name)):
        assert inspect.getdoc(getattr(TaskQueue, name))


def test_the_errors_that_users_catch_are_all_under_one() -> None:
    exported = {
        name for name in PUBLIC if inspect.isclass(getattr(omniq, name)) and issubclass(getattr(omniq, name), Exception)
    }

    assert exported == set(errors.__all__)
    assert all(issubclass(getattr(omniq, name), omniq.OmniQError) for name in exported)
