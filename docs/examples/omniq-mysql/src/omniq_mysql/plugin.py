"""Names the storage; imports no driver."""

from __future__ import annotations

from collections.abc import Mapping

from omniq import hookimpl
from omniq.storage import StorageFactory


@hookimpl
def omniq_storages() -> Mapping[str, StorageFactory | str]:
    """Return the URL schemes that this plugin opens."""
    return dict.fromkeys(("mysql", "mariadb"), "omniq_mysql.storage:MySqlStorage")
