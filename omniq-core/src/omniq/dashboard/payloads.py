"""What a task carries, as it is stored: nothing is ever made into an object of a class here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from attrs import evolve, frozen

from omniq._client.queue import TaskQueue
from omniq.cli.task_records import stored_arguments, stored_result, unread
from omniq.dashboard.redaction import HIDDEN, is_secret, redacted, restored
from omniq.task import Task

__all__ = [
    "Shown",
    "arguments_of",
    "headers_of",
    "redacted_arguments",
    "restored_arguments",
    "result_of",
    "text_of",
]

LONGEST = 20_000
"""Characters that are shown."""


@frozen(kw_only=True)
class Shown:
    """A value as it is shown."""

    text: str
    is_json: bool = True
    """Whether the text is JSON; if not, it says why there is none."""
    results: int = 0
    """How many results of other tasks take places in it when the task runs; there is null in them."""


def text_of(value: Any) -> str:
    """Return JSON for people. What cannot be printed is escaped as JSON has it, so that it can be sent back edited."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return "\n".join(
        line if line.isprintable() else "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)
        for line in text.split("\n")
    )


def arguments_of(task: Task, queue: TaskQueue) -> list[tuple[str, Shown]]:
    """Return the arguments of a task, each with its name; by position if the function is not known here."""
    stored = stored_arguments(task, queue)
    if stored is None:
        return [("", _unread(task.payload, task, queue))]
    args, kwargs = stored
    names = _names(task.name, queue, len(args))
    pairs = [*zip(names, args, strict=True), *kwargs.items()]
    taken = _taken(task, names)
    shown = [(name, _shown(name, value)) for name, value in pairs]
    return [(name, evolve(value, results=taken[name])) for name, value in shown]


def _taken(task: Task, names: Sequence[str]) -> Counter[str]:
    """Return how many results of other tasks each argument takes, by its name."""
    taken: Counter[str] = Counter()
    for reference in task.references:
        count = sum(count for _, count in reference.runs)
        match reference.path:
            case ["args", int() as place, *_] if 0 <= place < len(names):
                taken[names[place]] += count
            case ["kwargs", str() as name, *_]:
                taken[name] += count
    return taken


def redacted_arguments(task: Task, queue: TaskQueue, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return arguments as they may be edited: without secrets, also those that are given by position.

    :return: the positional arguments, and the named ones.
    """
    names = _names(task.name, queue, len(args))
    return [
        [_hidden(name, value) for name, value in zip(names, args, strict=True)],
        {name: _hidden(name, value) for name, value in kwargs.items()},
    ]


def restored_arguments(task: Task, queue: TaskQueue, edited: list[Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Return edited arguments with the secrets that were left as :func:`redacted_arguments` shows them."""
    shown, _ = redacted_arguments(task, queue, args, kwargs)
    positional = [
        args[n] if n < len(args) and value == shown[n] else restored(value, args[n] if n < len(args) else None)
        for n, value in enumerate(edited[0])
    ]
    return [positional, restored(edited[1], kwargs)]


def _hidden(name: str, value: Any) -> Any:
    return HIDDEN if is_secret(name) and value is not None else redacted(value)


def _names(function: str, queue: TaskQueue, count: int) -> list[str]:
    known = queue.functions.get(function)
    parameters = [] if known is None else [*known.definition.signature.parameters.values()]
    names = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return [names[n] if n < len(names) else f"{n + 1}." for n in range(count)]


def result_of(task: Task, queue: TaskQueue) -> Shown | None:
    """Return the result of a task; None if it has none."""
    if task.result_payload is None:
        return None
    found = stored_result(task, queue)
    return _unread(task.result_payload, task, queue) if found is None else _shown("", found[0])


def headers_of(task: Task) -> list[tuple[str, str]]:
    """Return the headers of a task."""
    return sorted((key, HIDDEN if is_secret(key) else str(redacted(value))) for key, value in task.headers.items())


def _shown(name: str, value: Any) -> Shown:
    try:
        text = text_of(_hidden(name, value))
    except RecursionError:
        return Shown(text="nested too deep to be shown", is_json=False)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}… ({len(text):,} characters; omniq tasks show --json has all)"
    return Shown(text=text)


def _unread(payload: bytes, task: Task, queue: TaskQueue) -> Shown:
    return Shown(text=unread(payload, task, queue), is_json=False)
