"""The conformance kit, on a server whose URL is in ``MYSQL_SERVER``: ``mysql://root:secret@localhost``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pymysql
import pytest

from omniq.storage.ids import new_id
from omniq.testing import StorageContract


class TestMySql(StorageContract):
    """The kit on the store of this package."""

    @pytest.fixture
    def storage_url(self) -> Iterator[str]:
        """Return the URL of an empty database."""
        server, name = os.environ["MYSQL_SERVER"].rstrip("/"), f"omniq_{new_id()[-12:]}"
        url = urlsplit(server)
        login: dict[str, Any] = {"user": unquote(url.username or ""), "password": unquote(url.password or "")}
        with pymysql.connect(host=url.hostname, port=url.port or 3306, **login) as connection:
            cursor = connection.cursor()
            cursor.execute(f"CREATE DATABASE {name}")
            yield f"{server}/{name}"
            cursor.execute(f"DROP DATABASE {name}")
