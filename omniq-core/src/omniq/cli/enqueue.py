"""``omniq enqueue``: hands over one task, by the name of its function and arguments in JSON."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from typing import Any, NoReturn

from omniq._client.queue import TaskQueue
from omniq._tasks.functions import TaskCall, TaskFunction
from omniq._tasks.handle import TaskHandle
from omniq.cli.app import load_queue, require_shared
from omniq.cli.arguments import add_app, configuring, flag, moment, seconds, seconds_or_moment, value
from omniq.cli.failures import OperationFailed, UsageError, suggestion
from omniq.cli.terminal import Screen, picked
from omniq.cli.values import plain_json, structure_arguments
from omniq.errors import ResultTimeout, SerializationError, TaskCancelled, TaskFailed
from omniq.task import Task

__all__ = ["configure", "find_function", "read_arguments", "run"]

_KEYWORD = re.compile(r"([^\W\d]\w*)=(.*)", re.DOTALL)


configure = configuring(
    "Hand one task to the queue and print its id; with --wait print its result instead.\n"
    "Each argument is JSON, and becomes what the function's annotation says; key=JSON gives it by name.",
    "omniq enqueue shop.tasks:queue resize '\"a.png\"' width=200\n"
    "omniq enqueue shop.tasks:queue fetch '\"https://example.com\"' --wait\n"
    "omniq enqueue shop.tasks:queue report '{\"year\": 2025}' --delay 60 --queue slow\n"
    "omniq enqueue shop.tasks:queue add -- -1 -2.5e3          after -- nothing is an option",
    add_app,
    value("name", str, "NAME", "the task's name, or its end if no other ends like that: resize for shop.resize"),
    value("arguments", str, "JSON", "an argument: 3, '\"text\"', '[1, 2]', key=3", nargs="*"),
    value("--queue", str, "QUEUE", "the queue to put it into, instead of the function's own"),
    value("--priority", int, "N", "-100 to 100; larger is claimed first"),
    value("--delay", seconds, "S", "seconds from now until it may start"),
    value("--run-at", moment, "TIME", "when it may start: 2030-01-31T09:00+01:00"),
    value("--expires", seconds_or_moment, "S|TIME", "seconds from now, or a time, after which it must not start"),
    value("--tag", str, "TAG", "a word to find it by; may be given several times", dest="tags", action="append"),
    value("--unique", str, "KEY", "if a task with this key waits or runs, print its id instead"),
    flag("--wait", "print the result as JSON (and the id on stderr)"),
    value("--wait-timeout", seconds, "S", "with --wait: how many seconds at most"),
)


def run(options: argparse.Namespace) -> int:
    """Enqueue, and wait if asked to."""
    queue = load_queue(options.app)
    with queue:
        function = find_function(queue, options.name, options.app)
        args, kwargs = read_arguments(options.arguments)
        call = _call(queue, _with_options(function, options), args, kwargs)
        require_shared(queue)
        handle = queue.submit(call)
        if not options.wait:
            print(handle.id)
            return 0
        print(f"task {handle.id} was enqueued", file=sys.stderr)
        print(_result(handle, options))
    return 0


def find_function(queue: TaskQueue, name: str, app: str) -> TaskFunction[Any, Any]:
    """Return the registered function of that name, or the only one whose name ends in it.

    :raises UsageError: if there is none, or several.
    """
    exact = queue.functions.get(name)
    if exact is not None:
        return exact
    # An end counts from a boundary only: "size" does not mean "shop.tasks.resize".
    ending = re.compile(rf"(^|\W){re.escape(name)}$")
    found = [known for known in sorted(queue.functions) if ending.search(known)]
    if len(found) == 1:
        return queue.functions[found[0]]
    if found:
        raise UsageError(f"{name!r} may mean {' or '.join(found)}; write more of the name")
    if not queue.functions:
        raise UsageError(f"{app} has no tasks; is the module imported that declares them with @queue.task?")
    ends = {re.split(r"\W", known)[-1]: known for known in queue.functions}
    hint = suggestion(name, [*queue.functions, *ends]) or f"; it has {', '.join(sorted(queue.functions))}"
    raise UsageError(f"{app} has no task {name!r}{hint}")


def read_arguments(words: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """Read the arguments of a call: ``JSON`` by position, ``key=JSON`` by name.

    :raises UsageError: if one is not JSON; the message shows how to quote a text.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        keyword = _KEYWORD.fullmatch(word)
        if keyword is None:
            args.append(_json(word))
            continue
        name, text = keyword.groups()
        if name in kwargs:
            raise UsageError(f"argument {name} is given twice")
        kwargs[name] = _json(text, f"{name}=")
    return args, kwargs


def _json(text: str, prefix: str = "") -> Any:
    try:
        return json.loads(text, parse_constant=_no_json)
    except ValueError:
        quoted = shlex.quote(prefix + json.dumps(text, ensure_ascii=False))
        raise UsageError(f"{prefix}{text} is not JSON; for a text write {quoted}") from None


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _with_options(function: TaskFunction[Any, Any], options: argparse.Namespace) -> TaskFunction[Any, Any]:
    try:
        return function.using(**picked(options, "queue", "priority", "delay", "run_at", "expires", "unique", "tags"))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _call(queue: TaskQueue, function: TaskFunction[Any, Any], args: list[Any], kwargs: dict[str, Any]) -> TaskCall[Any]:
    try:
        function.call(*args, **kwargs)
        types = function.definition.types[0]
        given, named = structure_arguments(args, kwargs, types, queue.plugins.serializer("json"))
        return function.call(*given, **named)
    except TypeError as error:
        raise UsageError(str(error)) from error
    except SerializationError as error:
        raise UsageError(f"{function.name}: {error}") from error


def _result(handle: TaskHandle[Any], options: argparse.Namespace) -> str:
    try:
        value = handle.result(timeout=options.wait_timeout)
    except TaskFailed as error:
        if options.verbose and error.error.traceback:
            Screen(sys.stderr).say_lines(error.error.traceback.rstrip())
        raise OperationFailed(f"the task failed with {error.error.type}: {error.error.message}") from None
    except (TaskCancelled, ResultTimeout) as error:
        raise OperationFailed(str(error)) from None
    text = plain_json(value)
    if text is None:
        text = _stored_form(handle.task())
    return text if text.isprintable() and Screen().can_show(text) else json.dumps(json.loads(text))


def _stored_form(task: Task) -> str:
    if task.serializer != "json" or task.result_payload is None:
        raise OperationFailed(f"the task succeeded, but its result has no form in JSON: {task.result!r}")
    return task.result_payload.decode()
