"""Tasks in MySQL 8 or MariaDB 10.6 or later: ``mysql://user:password@host:3306/database``."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import pymysql
from pymysql.constants import CLIENT, ER

from omniq.errors import ConfigurationError, SchemaMismatch, StorageUnavailable
from omniq.storage import Capability, Finding, Severity, SimpleStorage, SqlTx, StorageConfig, StorageLimits

TYPES = {"key": "VARCHAR(250)", "text": "LONGTEXT", "blob": "LONGBLOB", "float": "DOUBLE"}
COLLATIONS = {True: "utf8mb4_nopad_bin", False: "utf8mb4_0900_bin"}
"""Of MariaDB and MySQL, in which texts are compared as they are: by their bytes, blanks at their ends included."""
BOUNDS = {True: "idle_transaction_timeout = 10", False: "wait_timeout = 30"}
"""What frees the locks of a client that stops in the middle of a transaction."""

REFUSED = {ER.ACCESS_DENIED_ERROR, ER.DBACCESS_DENIED_ERROR, ER.TABLEACCESS_DENIED_ERROR, ER.BAD_DB_ERROR}
"""Errors that a second try does not cure."""
NOT_OURS = {ER.NO_SUCH_TABLE, ER.BAD_FIELD_ERROR}
UNFIT = {ER.DATA_TOO_LONG, ER.TRUNCATED_WRONG_VALUE_FOR_FIELD, ER.WARN_DATA_OUT_OF_RANGE, ER.NET_PACKET_TOO_LARGE}


class MySqlTx(SqlTx):
    """One transaction."""

    quote = "`"
    lock = " FOR UPDATE"
    skip_locked = " FOR UPDATE SKIP LOCKED"
    clock = "UTC_TIMESTAMP(6)"
    exists = "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s"
    indexes_apart = False


class MySqlStorage(SimpleStorage):
    """A storage in a MySQL or MariaDB database."""

    capabilities: Set[Capability] = frozenset(
        {Capability.DURABLE, Capability.SHARED_BETWEEN_PROCESSES, Capability.SHARED_BETWEEN_MACHINES}
    )
    limits = StorageLimits(stalled_client=30, flows=True)

    def __init__(self, config: StorageConfig) -> None:
        config.check_options(("ssl_ca", "ssl_cert", "ssl_key"))
        super().__init__(config)
        url = urlsplit(config.location)
        database = unquote(url.path.strip("/"))
        if not url.hostname or not database:
            raise ConfigurationError(f"{config.redacted}: name a host and a database: {config.scheme}://host/database")
        self.server: dict[str, Any] = {
            "host": url.hostname,
            "port": url.port or 3306,
            "user": unquote(url.username or ""),
            "password": unquote(url.password or ""),
            "database": database,
            "ssl_verify_cert": "ssl_ca" in config.options or None,
            "ssl_verify_identity": "ssl_ca" in config.options,
            **config.options,
        }

    def connect(self) -> pymysql.Connection[Any]:
        try:
            connection = pymysql.connect(
                **self.server,
                charset="utf8mb4",
                sql_mode="STRICT_ALL_TABLES",
                client_flag=CLIENT.FOUND_ROWS,
                connect_timeout=5,
                read_timeout=self.timeout,
                write_timeout=self.timeout,
                autocommit=True,
                init_command="SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            )
            self.create(connection)
        except pymysql.Error as error:
            if error.args[0] not in REFUSED:
                raise
            raise StorageUnavailable(f"{self.config.redacted} cannot be used: {error.args[1]}") from error
        return connection

    def create(self, connection: pymysql.Connection[Any]) -> None:
        with connection.cursor() as cursor:
            tx = MySqlTx(cursor, self.config.namespace)
            mariadb = "MariaDB" in tx.rows("SELECT VERSION()")[0][0]
            tx.types = {**TYPES, "suffix": f" ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE {COLLATIONS[mariadb]}"}
            cursor.execute(f"SET innodb_lock_wait_timeout = 10, {BOUNDS[mariadb]}")
            cursor.execute("SELECT GET_LOCK(CONCAT('omniq ', LEFT(DATABASE(), 50)), 10)")
            tx.create()
            cursor.execute("SELECT RELEASE_LOCK(CONCAT('omniq ', LEFT(DATABASE(), 50)))")

    @contextmanager
    def transaction(self, connection: pymysql.Connection[Any], write: bool) -> Iterator[SqlTx]:
        connection.begin()
        with connection.cursor() as cursor:
            tx = MySqlTx(cursor, self.config.namespace, write=write)
            tx.check()
            yield tx
        connection.commit()

    def fault(self, error: BaseException) -> Exception | None:
        if not isinstance(error, pymysql.Error):
            return None
        code, text = (*error.args, type(error).__name__)[:2] if error.args else (0, type(error).__name__)
        if code in NOT_OURS:
            return SchemaMismatch(f"{self.config.redacted} has not the tables that this version needs: {text}")
        if code in UNFIT:
            return ValueError(f"{self.config.redacted} cannot hold this: {text}")
        return StorageUnavailable(f"{self.config.redacted}: {text}")

    def findings(self, tx: SqlTx) -> list[Finding]:
        ((version, flush),) = tx.rows("SELECT VERSION(), @@innodb_flush_log_at_trx_commit")
        ok = Severity.OK if flush == 1 else Severity.WARNING
        return [
            Finding(severity=Severity.OK, subject="server", message=str(version)),
            Finding(severity=ok, subject="durability", message=f"innodb_flush_log_at_trx_commit = {flush}"),
        ]
