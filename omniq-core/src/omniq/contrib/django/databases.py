"""Where a queue is that is in a database of the project's own, which in tests is Django's test database."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote, urlencode

from omniq.contrib import _needs

with _needs("django"):
    from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]  # it brings no types
    from django.db import connections  # type: ignore[import-untyped]  # the same

__all__ = ["is_in_memory", "url_of"]

_OF_DJANGO = ("assume_role", "isolation_level", "pool", "server_side_binding")
"""Options of a database that are not the driver's."""


def url_of(alias: str) -> str:
    """Return the storage URL of a database as it is now: while Django tests it is the test database.

    :param alias: its name in ``DATABASES``.
    :raises ImproperlyConfigured: if no queue can be there.
    """
    wrapper = connections[alias]
    if wrapper.vendor == "postgresql":
        return _postgresql(wrapper.settings_dict)
    if wrapper.vendor != "sqlite":
        raise ImproperlyConfigured(
            f"a queue cannot be in DATABASES[{alias!r}], as {wrapper.display_name} keeps none: "
            "name another store by a 'url'"
        )
    if is_in_memory(alias):
        raise ImproperlyConfigured(
            f"a queue cannot be in DATABASES[{alias!r}] while that is in memory, as test databases of SQLite are by "
            f"default: give the database a file there, DATABASES[{alias!r}]['TEST'] = {{'NAME': BASE_DIR / 'test.db'}}"
        )
    given = wrapper.settings_dict
    options = {"foreign": "allow", "busy_timeout": given["OPTIONS"].get("timeout", 5)}
    return f"sqlite:///{quote(os.path.abspath(given['NAME']))}?{urlencode(options)}"


def is_in_memory(alias: str) -> bool:
    """Return whether a database is one of SQLite's in memory, where no other connection finds anything.

    :param alias: its name in ``DATABASES``.
    """
    wrapper = connections[alias]
    return wrapper.vendor == "sqlite" and bool(wrapper.is_in_memory_db())


def _postgresql(given: dict[str, Any]) -> str:
    options = {
        name: value
        for name, value in given["OPTIONS"].items()
        if name not in _OF_DJANGO and isinstance(value, str | int)
    }
    host = given["HOST"] or ""
    if host.startswith("/"):  # the folder of a socket
        options["host"], host = host, ""
    user = quote(given["USER"] or "", safe="")
    if given["PASSWORD"]:
        user += ":" + quote(given["PASSWORD"], safe="")
    port = f":{given['PORT']}" if given["PORT"] and host else ""
    if given["PORT"] and not host:
        options["port"] = given["PORT"]
    place = f"{user}@{host}{port}" if user else f"{host}{port}"
    return f"postgresql://{place}/{quote(given['NAME'] or '', safe='')}" + (f"?{urlencode(options)}" if options else "")
