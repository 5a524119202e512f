"""What ``omniq doctor`` says about a PostgreSQL store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from attrs import frozen

from omniq.storage import Finding, Severity
from omniq_postgres import binary_params
from omniq_postgres.connecting import Connector
from omniq_postgres.operations import Context, Rows, Steps
from omniq_postgres.session import Session
from omniq_postgres.settings import INDEXES, TABLES, Settings
from omniq_postgres.statements import migration_files

__all__ = ["diagnose"]

OK, WARNING, ERROR = Severity.OK, Severity.WARNING, Severity.ERROR

SCARCE = 0.1
"""Of the connections; fewer that are free are few."""
LONG = 300.0
"""Seconds after which an open transaction is worth a word."""
DEAD = 50_000
"""Dead rows of a table that are worth a word if they are more than the live ones, too."""
SKEW = 5.0
"""Seconds by which clocks may differ unmentioned."""


@frozen
class _Looked:
    """What was found on the server."""

    server: tuple[Any, ...]
    tables: Rows
    indexes: frozenset[str]
    holders: Rows
    before: datetime
    after: datetime


def _look(settings: Settings, context: Context) -> Steps[_Looked]:
    names = settings.names
    schema = binary_params.text(names.schema)
    before = datetime.now(UTC)
    (server,) = yield context.query("doctor.server", prepare=False)
    after = datetime.now(UTC)
    tables = binary_params.texts([names.plain(table) for table in TABLES])
    return _Looked(
        server,
        (yield context.query("doctor.tables", schema, tables, prepare=False)),
        frozenset(row[0] for row in (yield context.query("doctor.indexes", schema, prepare=False))),
        (yield context.query("doctor.oldest", prepare=False)),
        before,
        after,
    )


async def diagnose(session: Session, settings: Settings, connector: Connector) -> list[Finding]:
    """Return the findings; see :meth:`~omniq.storage.Storage.diagnose`."""
    looked = await session.run(lambda context: _look(settings, context))
    return [
        *_about_server(looked),
        *_about_schema(looked, settings),
        *_about_vacuum(looked, settings),
        *_about_holders(looked),
        *_about_connections(looked, settings, connector),
        _about_clocks(looked),
    ]


def _finding(severity: Severity, subject: str, message: str) -> Finding:
    return Finding(severity=severity, subject=subject, message=message)


def _about_server(looked: _Looked) -> Iterator[Finding]:
    version, standby, read_only, fsync, commit, full_pages, *_ = looked.server
    yield _finding(OK, "version", f"PostgreSQL {version}")
    if standby or read_only:
        what = "a standby" if standby else "read-only by default"
        yield _finding(
            ERROR, "writable", f"the server is {what}: nothing can be enqueued; use the primary, or list all hosts in "
            "the URL with target_session_attrs=read-write",
        )  # fmt: skip
    if not fsync or not full_pages:
        off = "fsync" if not fsync else "full_page_writes"
        yield _finding(WARNING, "durability", f"{off} is off: a crash of the machine may destroy the database")
    elif commit == "off":
        yield _finding(
            WARNING, "durability", "synchronous_commit is off: a crash of the server loses what it acknowledged last"
        )
    else:
        yield _finding(OK, "durability", f"fsync on, synchronous_commit {commit}")


def _about_schema(looked: _Looked, settings: Settings) -> Iterator[Finding]:
    # An older or newer one would not have been opened.
    yield _finding(
        OK,
        "schema",
        f"version {max(migration_files())}, tables {settings.names.schema}.{settings.names.plain('*')}",
    )
    missing = [name for name in map(settings.names.plain, INDEXES) if name not in looked.indexes]
    if missing:
        yield _finding(
            ERROR,
            "indexes",
            f"missing or invalid: {', '.join(missing)}; claims will slow down as the store grows. Create them anew, as "
            "omniq migrate --sql shows for an empty namespace, or REINDEX what is invalid",
        )
    else:
        yield _finding(OK, "indexes", "all there and valid")


def _about_vacuum(looked: _Looked, settings: Settings) -> Iterator[Finding]:
    if not looked.server[6]:
        yield _finding(
            ERROR, "autovacuum", "autovacuum is off on this server: tables will grow and claims slow down; turn it on"
        )
    elif switched_off := [row[0] for row in looked.tables if row[4]]:
        yield _finding(ERROR, "autovacuum", f"switched off for {', '.join(switched_off)}; ALTER TABLE … RESET it")
    else:
        yield _finding(OK, "autovacuum", "on")
    size = sum(row[5] for row in looked.tables)
    dead = [(row[0], row[2], row[3]) for row in looked.tables if row[2] > max(DEAD, row[1])]
    for table, number, seconds in dead:
        when = "never vacuumed" if seconds is None else f"last vacuumed {_span(seconds)} ago"
        yield _finding(
            WARNING,
            "dead rows",
            f"{table} holds {number:,} dead rows, {when}: something holds vacuum back, or it does not keep up",
        )
    if not dead:
        total = sum(row[2] for row in looked.tables)
        yield _finding(OK, "dead rows", f"{total:,} in {size / 2**20:,.1f} MiB of tables and indexes")


def _about_holders(looked: _Looked) -> Iterator[Finding]:
    found = False
    for kind, name, state, seconds, age in looked.holders:
        if seconds is not None and seconds < LONG:
            continue
        if kind == "replication slot" and state == "active":
            continue
        found = True
        since = "" if seconds is None else f" for {_span(seconds)}"
        who = f"{kind} {name}, {state}," if state else f"{kind} {name}"
        mend = {
            "transaction": f"end it, or pg_terminate_backend({name.split(' ')[0]})",
            "prepared transaction": f"COMMIT PREPARED or ROLLBACK PREPARED '{name}'",
        }.get(kind, "drop the slot if it is not needed any more")
        yield _finding(
            WARNING,
            "oldest transaction",
            f"{who} holds back vacuum{since} ({age or 0:,} transactions): {mend}",
        )
    if not found:
        yield _finding(OK, "oldest transaction", f"none older than {LONG / 60:.0f} minutes holds back vacuum")


def _about_connections(looked: _Looked, settings: Settings, connector: Connector) -> Iterator[Finding]:
    most, used = looked.server[7], looked.server[8]
    needed = settings.connections + 2
    if connector.pooled:
        yield _finding(
            WARNING,
            "pooler",
            "a proxy stands before the server and pools by transaction: workers and callers look for work and results "
            "every second instead of being told; give them a direct URL for low latency",
        )
    else:
        yield _finding(OK, "notifications", "LISTEN on a connection of its own")
    room = most - used
    if room < max(needed, SCARCE * most):
        yield _finding(
            WARNING,
            "connections",
            f"{used} of {most} are in use; a worker process opens up to {needed}: raise max_connections, lower "
            "connections= in the URL, or put PgBouncer before the server",
        )
    else:
        yield _finding(OK, "connections", f"{used} of {most} in use; a worker process opens up to {needed}")


def _about_clocks(looked: _Looked) -> Finding:
    # Read between the two looks at the clock here: what is outside of them is a difference.
    theirs = looked.server[9]
    skew = max((looked.before - theirs).total_seconds(), (theirs - looked.after).total_seconds(), 0.0)
    if skew > SKEW:
        return _finding(
            WARNING,
            "clock",
            f"the server's clock and this machine's differ by {_span(skew)}; all times are the server's, so a run_at "
            "that is computed here is off by as much: run NTP on both",
        )
    return _finding(OK, "clock", "the server's agrees with this machine's")


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
