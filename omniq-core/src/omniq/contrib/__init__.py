"""OmniQ beside other libraries: each module needs one, and is imported by the programs that use it.

``omniq-core[django]``, ``[flask]``, ``[otel]``, ``[sentry]`` and ``[structlog]`` install what the module of that name
needs. The classes here are plugins, but for Django's: an object of one goes into ``TaskQueue(plugins=[…])``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__: list[str] = []


@contextlib.contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Say what to install where an import fails.

    :raises ImportError: instead of the one that only names a module.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'omniq-core[{extra}]'", name=error.name) from error
