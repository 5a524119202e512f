from __future__ import annotations

import inspect

import pluggy
import pytest

import omniq
from omniq import hookspecs
from omniq.hookspecs import AROUND_HOOKS, EVENT_HOOKS

MAKING_HOOKS = ("omniq_storages", "omniq_serializers", "omniq_retry_policies", "omniq_triggers", "omniq_commands")
HOOKS = (*MAKING_HOOKS, *AROUND_HOOKS, *EVENT_HOOKS)


def test_the_hooks_are_those_that_make_things_those_around_something_and_the_events() -> None:
    manager = pluggy.PluginManager("omniq")
    manager.add_hookspecs(hookspecs)

    assert set(HOOKS) == {name for name in vars(manager.hook) if not name.startswith("_")}


def test_the_markers_that_plugins_use_are_in_the_package_itself() -> None:
    assert omniq.hookimpl is hookspecs.hookimpl
    assert omniq.hookspec is hookspecs.hookspec


# Plugins outside this repository are written against these: a parameter may be added, none may go or change its name.
@pytest.mark.parametrize(
    ("hook", "parameters"),
    [
        ("omniq_storages", []),
        ("omniq_serializers", []),
        ("omniq_retry_policies", []),
        ("omniq_triggers", []),
        ("omniq_commands", []),
        ("omniq_around_task", ["task", "worker"]),
        ("omniq_around_enqueue", ["tasks"]),
        ("omniq_task_enqueued", ["task"]),
        ("omniq_task_started", ["task", "worker"]),
        ("omniq_task_succeeded", ["task", "worker", "seconds"]),
        ("omniq_task_failed", ["task", "worker", "seconds", "error"]),
        ("omniq_task_retrying", ["task", "worker", "seconds", "error", "delay"]),
        ("omniq_task_cancelled", ["task", "worker", "seconds"]),
        ("omniq_task_recovered", ["task", "worker"]),
        ("omniq_task_rejected", ["task", "worker", "reason"]),
        ("omniq_task_released", ["task", "worker", "seconds", "delay", "error"]),
        ("omniq_lease_lost", ["task", "worker"]),
        ("omniq_outcome_refused", ["task", "worker", "outcome"]),
        ("omniq_schedule_fired", ["schedule", "tasks", "worker"]),
        ("omniq_schedule_rejected", ["schedule", "worker", "reason"]),
        ("omniq_worker_heartbeat", ["worker", "seconds", "error"]),
        ("omniq_action_taken", ["action", "targets", "done", "actor"]),
        ("omniq_worker_started", ["worker", "queues"]),
        ("omniq_worker_stopped", ["worker"]),
    ],
)
def test_a_hook_keeps_its_name_and_its_parameters(hook: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(hookspecs, hook)).parameters) == parameters


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_says_what_it_is_for(hook: str) -> None:
    assert inspect.getdoc(getattr(hookspecs, hook))
