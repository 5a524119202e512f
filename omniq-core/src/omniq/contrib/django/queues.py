"""The queues of a Django project for the command line: ``omniq.contrib.django.queues:default``.

An attribute has the name of an alias in ``TASKS``. Child processes of a worker import this module, too, outside of
``manage.py``: so it sets Django up by itself.
"""

from __future__ import annotations

import django  # type: ignore[import-untyped]  # it brings no types
from django.apps import apps  # type: ignore[import-untyped]  # the same

from omniq import TaskQueue
from omniq.contrib.django.backend import queue_of

__all__: list[str] = []

if not apps.ready:
    django.setup()


def __getattr__(alias: str) -> TaskQueue:
    if alias.startswith("__"):
        raise AttributeError(alias)
    return queue_of(alias)
