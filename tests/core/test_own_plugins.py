"""Plugins of one queue alone: ``TaskQueue(plugins=[…])``."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import pytest

from omniq import ConfigurationError, TaskQueue, hookimpl
from omniq.plugins import default_plugins
from omniq.serialization import Serializer
from omniq.task import NewTask
from tests.core.plugged_cpu_tasks import Registered


class Counter:
    """Counts what is enqueued."""

    def __init__(self) -> None:
        self.tasks: list[NewTask] = []

    @hookimpl
    def omniq_task_enqueued(self, task: NewTask) -> None:
        self.tasks.append(task)


class Kept:
    """Needs no instance of its own, and gets one all the same."""

    tasks: list[NewTask] = []  # noqa: RUF012  # shared on purpose

    @hookimpl
    def omniq_task_enqueued(self, task: NewTask) -> None:
        self.tasks.append(task)


def enqueue_one(queue: TaskQueue) -> None:
    @queue.task
    def note() -> None: ...

    with queue:
        note.enqueue()


def test_plugins_are_told_beside_the_installed_ones_and_for_this_queue_alone() -> None:
    mine, theirs = Counter(), Counter()
    first = TaskQueue("memory://", plugins=[mine, theirs])
    second = TaskQueue("memory://", plugins=[theirs])

    enqueue_one(first)
    enqueue_one(second)
    enqueue_one(TaskQueue("memory://"))

    assert (len(mine.tasks), len(theirs.tasks)) == (1, 2)
    installed = {plugin.name for plugin in default_plugins().found}
    assert installed < {plugin.name for plugin in first.plugins.found}
    assert first.plugins is not default_plugins()


def test_a_module_and_a_class_are_plugins_too() -> None:
    counter = Counter()
    module = types.ModuleType("shop_hooks")

    @hookimpl
    def omniq_task_enqueued(task: NewTask) -> None:
        counter.tasks.append(task)

    module.omniq_task_enqueued = omniq_task_enqueued  # type: ignore[attr-defined]  # made here

    queue = TaskQueue("memory://", plugins=(module, Kept))
    enqueue_one(queue)

    assert len(counter.tasks) == 1
    assert Kept.tasks == counter.tasks
    assert [plugin.name for plugin in queue.plugins.found][-2:] == ["shop_hooks", f"{__name__}.Kept"]


def test_two_of_one_class_are_told_apart_by_their_names() -> None:
    queue = TaskQueue("memory://", plugins=[Counter(), Counter()])

    assert [plugin.name for plugin in queue.plugins.found][-2:] == [f"{__name__}.Counter", f"{__name__}.Counter-2"]


def test_a_plugin_may_bring_a_serializer() -> None:
    queue = TaskQueue("memory://", serializer="capitals", plugins=[Registered()])

    @queue.task
    def note(text: str) -> None: ...

    with queue:
        task = note.enqueue("loud").task()
        assert task.args == ("LOUD",)


class Needy:
    """Cannot be made without an argument."""

    def __init__(self, needed: int) -> None:
        raise AssertionError

    @hookimpl
    def omniq_task_enqueued(self) -> None: ...


class Misspelt:
    """Has a hook that does not exist."""

    @hookimpl
    def omniq_task_enqueud(self) -> None: ...


class Unknown:
    """Takes an argument that the hook does not have."""

    @hookimpl
    def omniq_task_enqueued(self, tsak: NewTask) -> None: ...


class Bare:
    """Has forgotten the marker."""

    def omniq_task_enqueued(self) -> None: ...


class Broken:
    """Raises when it is asked."""

    @hookimpl
    def omniq_serializers(self) -> Mapping[str, Serializer]:
        raise ZeroDivisionError("broken")


_counter = Counter()


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ([Needy], r"plugin '.*\.Needy' is a class, and none can be made of it without arguments: TypeError.*instance"),
        ([Misspelt()], r"plugin '.*\.Misspelt'.*omniq_task_enqueud"),
        ([Unknown()], r"plugin '.*\.Unknown'(?s:.*)tsak"),
        ([Bare()], r"plugin '.*\.Bare' has no hook: none of its functions .* carries @omniq.hookimpl"),
        ([Broken()], r"plugin '.*\.Broken'.*ZeroDivisionError: broken"),
        ([_counter, _counter], r"plugin '.*\.Counter-2'.*"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(plugins: list[object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TaskQueue("memory://", plugins=plugins)


@pytest.mark.parametrize("plugins", ["omniq_acme", Counter(), 3])
def test_plugins_must_be_a_list(plugins: Any) -> None:
    with pytest.raises(TypeError, match=r"plugins must be a list of plugin objects, not .*; write plugins=\["):
        TaskQueue("memory://", plugins=plugins)


@pytest.mark.parametrize("plugin", ["omniq_acme.plugin", enqueue_one, None])
def test_what_can_be_no_plugin_is_named(plugin: Any) -> None:
    with pytest.raises(TypeError, match="is no plugin: give the module, instance or class itself"):
        TaskQueue("memory://", plugins=[plugin])
