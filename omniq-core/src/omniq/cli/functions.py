"""``omniq functions``: which tasks an application declares, and how they are called."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from omniq._tasks.functions import TaskFunction
from omniq.cli.app import load_queue
from omniq.cli.arguments import add_app, add_json, configuring
from omniq.cli.columns import Column, Table
from omniq.cli.failures import OperationFailed
from omniq.cli.terminal import Screen, human_duration, picked

__all__ = ["as_json", "configure", "run"]

Function = TaskFunction[Any, Any]


configure = configuring(
    "Show every task that an application declares: its name, its arguments, its queue, where it runs.\n"
    "Nothing connects to the store. The exit code is 1 if there are none.",
    "omniq functions shop.tasks:queue\nomniq functions shop.tasks:queue --json",
    add_app,
    add_json,
)


def run(options: argparse.Namespace) -> int:
    """Show the functions."""
    queue = load_queue(options.app)
    functions = [function for _, function in sorted(queue.functions.items())]
    screen = Screen()
    screen.answer(options.json, lambda: as_json(functions), lambda: Table(_COLUMNS, screen).lines(functions))
    if not functions:
        raise OperationFailed(
            f"{options.app} has no tasks: is the module imported that declares them with @queue.task?"
        )
    return 0


def as_json(functions: Sequence[Function]) -> list[dict[str, Any]]:
    """Return the functions as what ``--json`` prints."""
    return [
        {
            "name": function.name,
            "signature": _signature(function),
            "executor": function.definition.executor,
            **picked(function.options, "queue", "max_retries", "timeout", "priority"),
        }
        for function in functions
    ]


def _signature(function: Function) -> str:
    return str(function.definition.signature)


def _timeout(function: Function) -> str:
    return "-" if function.options.timeout is None else human_duration(function.options.timeout)


_COLUMNS: tuple[Column[Function], ...] = (
    Column(title="name", cell=lambda function: function.name, least=12, keep_end=True),
    Column(title="arguments", cell=_signature, least=12, rank=1),
    Column(title="queue", cell=lambda function: function.options.queue, least=6),
    Column(title="runs on", cell=lambda function: function.definition.executor, rank=2),
    Column(title="retries", cell=lambda function: str(function.options.max_retries), right=True, rank=3),
    Column(title="timeout", cell=_timeout, right=True, rank=4),
)
