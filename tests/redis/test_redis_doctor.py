"""What ``omniq doctor`` says about a Redis store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from omniq.storage import Finding, Severity
from tests.redis.redis_support import new_task, opened
from tests.servers.redis import RedisServer, binary_of


def findings_of(server: RedisServer, namespace: str = "omniq") -> dict[str, Finding]:
    async def ask() -> dict[str, Finding]:
        async with opened(server.url, namespace) as store:
            findings = await store.diagnose()
            assert len({finding.subject for finding in findings}) == len(findings)
            return {finding.subject: finding for finding in findings}

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_server_that_is_well_has_nothing_but_good_findings(tmp_path: Path, kind: str) -> None:
    with RedisServer(tmp_path, binary=binary_of(kind), appendonly=True, appendfsync="always") as server:
        findings = findings_of(server)
        assert {finding.severity for finding in findings.values()} == {Severity.OK}
        assert kind.title() in findings["server"].message
        assert "of its machine" in findings["persistence"].message


def test_a_server_without_persistence_is_warned_of(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        finding = findings_of(server)["persistence"]
        assert finding.severity is Severity.WARNING
        assert "appendonly yes" in finding.message
        server.ask("CONFIG", "SET", "save", "3600 1")
        assert "snapshots" in findings_of(server)["persistence"].message


def test_a_server_that_throws_keys_away_is_an_error(tmp_path: Path) -> None:
    with RedisServer(tmp_path, config={"maxmemory-policy": "allkeys-lru"}) as server:
        finding = findings_of(server)["eviction"]
        assert finding.severity is Severity.ERROR
        assert "noeviction" in finding.message


def test_a_server_that_removes_keys_with_an_expiry_alone_keeps_all_tasks(
    redis_server: RedisServer, namespace: str
) -> None:
    redis_server.ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    try:
        finding = findings_of(redis_server, namespace)["eviction"]
    finally:
        redis_server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert finding.severity is Severity.OK
    assert "refuses new tasks" in finding.message


def test_a_server_that_is_nearly_full_is_warned_of(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        findings_of(server)
        used = server.info("memory")["used_memory"]
        assert isinstance(used, int)
        server.ask("CONFIG", "SET", "maxmemory", int(used * 1.05))
        assert findings_of(server)["memory"].severity is Severity.WARNING


def test_a_replica_is_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as master, RedisServer(tmp_path) as server:
            async with opened(server.url) as store:
                await store.enqueue([new_task()])
                server.ask("CONFIG", "SET", "replica-read-only", "no")
                server.ask("REPLICAOF", "127.0.0.1", master.port)
                findings = {finding.subject: finding for finding in await store.diagnose()}
                assert findings["role"].severity is Severity.ERROR

    asyncio.run(scenario())


def test_a_clock_that_differs_is_warned_of(
    redis_server: RedisServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert findings_of(redis_server, namespace)["clock"].severity is Severity.OK
    monkeypatch.setattr("omniq_redis.doctor.time.time", lambda: 1_000_000_000.0)
    finding = findings_of(redis_server, namespace)["clock"]
    assert finding.severity is Severity.WARNING
    assert "ahead" in finding.message
