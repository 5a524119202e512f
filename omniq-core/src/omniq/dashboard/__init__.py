"""The dashboard: what a queue's store holds and does, in a browser, as an ASGI application that can be mounted.

It takes the extra ``omniq-core[dashboard]``: starlette, jinja2 and, for the command ``omniq dashboard``, uvicorn. Each
name is imported when it is first used, so that the command can say what is missing.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from omniq.dashboard.access import EVERYTHING, READ_ONLY, Access, Permission, Visitor
    from omniq.dashboard.app import Dashboard

__all__ = ["EVERYTHING", "READ_ONLY", "Access", "Dashboard", "Permission", "Visitor"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "omniq.dashboard.app" if name == "Dashboard" else "omniq.dashboard.access"
    try:
        return getattr(_importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("omniq"):
            raise
        raise ImportError(
            f"omniq.dashboard needs {error.name}: pip install 'omniq-core[dashboard]'", name=error.name
        ) from error
