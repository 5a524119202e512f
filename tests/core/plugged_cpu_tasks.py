"""A task for processes whose queue has plugins that were registered by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import omniq
from omniq import TaskQueue
from omniq.plugins import Plugins
from omniq.serialization import ArgumentTypes, Serializer


class UpperCase:
    """Writes JSON in capitals."""

    name = "capitals"

    def dump_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], types: ArgumentTypes) -> bytes:
        return json.dumps([args, kwargs]).upper().encode()

    def load_arguments(self, data: bytes, types: ArgumentTypes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = json.loads(data)
        return tuple(args), kwargs

    def dump_result(self, value: Any, hint: Any) -> bytes:
        return json.dumps(value).upper().encode()

    def load_result(self, data: bytes, hint: Any) -> Any:
        return json.loads(data)


class Registered:
    """The plugin."""

    @omniq.hookimpl
    def omniq_serializers(self) -> Mapping[str, Serializer]:
        return {"capitals": UpperCase()}


plugins = Plugins()
plugins.register(Registered(), name="capitals")
queue = TaskQueue("memory://plugged", serializer="capitals", plugins=plugins)


@queue.task(executor="process", max_retries=0)
def shout(text: str) -> tuple[str, int]:
    return text, os.getpid()
