"""What the server says when it cannot, or not at the moment: no finished work is thrown away for it."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from omniq import TaskQueue, TaskState
from omniq.errors import StorageUnavailable
from omniq.testing import wait_until
from tests.core.running import working
from tests.redis.redis_support import new_task, storage
from tests.servers.base import HOST, free_port
from tests.servers.redis import RedisServer

Fault = Callable[[RedisServer], Callable[[], None]]
"""Brings a server into a state, and returns what ends it."""


def out_of_memory(server: RedisServer) -> Callable[[], None]:
    server.ask("CONFIG", "SET", "maxmemory", 1)
    return lambda: _set(server, "maxmemory", "0")


def cannot_save(server: RedisServer) -> Callable[[], None]:
    # Where the snapshot should be there is a folder, which no user can replace by a file.
    (server.data / "dump.rdb" / "full").mkdir(parents=True)
    server.ask("CONFIG", "SET", "save", "3600 1000000")
    server.ask("BGSAVE")
    wait_until(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err")
    return lambda: _set(server, "save", "")


def without_replicas(server: RedisServer) -> Callable[[], None]:
    server.ask("CONFIG", "SET", "min-replicas-to-write", 1)
    return lambda: _set(server, "min-replicas-to-write", "0")


def a_replica(server: RedisServer) -> Callable[[], None]:
    server.ask("REPLICAOF", "127.0.0.1", free_port())
    return lambda: _ask(server, "REPLICAOF", "NO", "ONE")


def busy(server: RedisServer) -> Callable[[], None]:
    server.ask("CONFIG", "SET", "busy-reply-threshold", 1)
    endless = threading.Thread(target=_loop_until_killed, args=(server,))
    endless.start()
    wait_until(lambda: "BUSY" in _answer(server))

    def end() -> None:
        server.ask("SCRIPT", "KILL")
        endless.join()

    return end


def loading(server: RedisServer) -> Callable[[], None]:
    with server.client() as client:
        for number in range(100):
            client.set(f"ballast:{number}", "x" * 100)
    server.ask("SAVE")
    server.kill()
    # Microseconds for each key.
    server.config |= {"key-load-delay": "50000", "loading-process-events-interval-bytes": "1024"}
    server.launch()
    wait_until(lambda: "LOADING" in _answer(server))
    return lambda: _wait_for_an_answer(server)


def _wait_for_an_answer(server: RedisServer) -> None:
    wait_until(lambda: "PONG" in _answer(server))


def _set(server: RedisServer, name: str, value: str) -> None:
    server.ask("CONFIG", "SET", name, value)


def _ask(server: RedisServer, *words: str) -> None:
    server.ask(*words)


def _answer(server: RedisServer) -> str:
    # By itself, as redis-py would ask again and again.
    try:
        with socket.create_connection((HOST, server.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100).decode()
    except OSError:
        return ""


def _loop_until_killed(server: RedisServer) -> None:
    try:
        server.ask("EVAL", "while true do end", 0)
    except RedisError:
        return


FAULTS = {
    "OOM": (out_of_memory, "maxmemory"),
    "MISCONF": (cannot_save, "MISCONF"),
    "NOREPLICAS": (without_replicas, "NOREPLICAS"),
    "READONLY": (a_replica, "read only replica"),
    "BUSY": (busy, "BUSY"),
    "LOADING": (loading, "LOADING"),
}


@contextmanager
def ended(begin: Fault, server: RedisServer) -> Iterator[Callable[[], None]]:
    """Bring a server into a state; give what ends it, which is done in the end in any case."""
    with ExitStack() as stack:
        end = begin(server)
        once = stack.callback(end)

        def end_now() -> None:
            stack.pop_all()
            once()

        yield end_now


@pytest.mark.parametrize("fault", FAULTS)
def test_work_that_ends_while_the_server_refuses_it_is_kept_until_it_does_not(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    begin, said = FAULTS[fault]
    gate = threading.Event()
    with RedisServer(tmp_path) as server:
        queue = TaskQueue(f"{server.url}?retry_for=0.5")

        @queue.task(max_retries=0)
        def wait_for_gate() -> str:
            gate.wait(60)
            return "done"

        with queue, caplog.at_level(logging.WARNING, "omniq"), working(queue, threads=4):
            handles = [wait_for_gate.enqueue() for _ in range(4)]
            wait_until(lambda: all(handle.task().state is TaskState.RUNNING for handle in handles))
            with ended(begin, server) as end:
                gate.set()
                refused = asyncio.run(refusal(server, said))
                if fault != "OOM":  # of memory there is enough for what makes place
                    wait_until(lambda: "cannot" in caplog.text or "lost" in caplog.text)
                end()
            assert [handle.result(timeout=60) for handle in handles] == ["done"] * 4
            assert [handle.task().attempt for handle in handles] == [1] * 4
    assert said in refused


async def refusal(server: RedisServer, said: str) -> str:
    """Return what a producer is told, who has connected just now."""
    store = storage(f"{server.url}?retry_for=0.3")
    try:
        await store.open()
        await store.enqueue([new_task()])
    except StorageUnavailable as error:
        return str(error)
    finally:
        await store.close()
    raise AssertionError(f"the task was taken, without a word of {said}")
