"""Enqueueing on the calling thread, whichever that is: a thread of ours would have to be woken, and wake the caller."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from omniq.errors import StorageUnavailable
from omniq_redis.connecting import Connector
from omniq_redis.errors import LOST, is_passing, unavailable
from omniq_redis.scripts import evalsha, pack, script
from omniq_redis.settings import Settings

__all__ = ["Pool"]

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0


class Pool:
    """Connections for threads; each thread takes one for one call.

    :param settings: where the store is.
    :param connector: connects.
    """

    def __init__(self, settings: Settings, connector: Connector) -> None:
        self._settings = settings
        self._connector = connector
        self._idle: list[Any] = []
        self._places = threading.BoundedSemaphore(settings.pool_size)
        self._starts: dict[str, bytes] = {}
        self._is_closed = False
        self._pid = os.getpid()

    def close(self) -> None:
        """Disconnect; calls that are under way end first."""
        self._is_closed = True
        while self._idle:
            self._hang_up(self._idle.pop())

    def _hang_up(self, connection: Any) -> None:
        # A child that was forked must not say goodbye in its parent's name; redis-py looks after that.
        connection.disconnect()

    def run(self, name: str, arguments: bytes, count: int) -> Any:
        """Run a script that knows no flags.

        :param arguments: packed.
        :param count: how many they are.
        :raises StorageUnavailable: if that could not be done in time.
        """
        if not self._places.acquire(timeout=self._settings.pool_timeout):
            raise StorageUnavailable(
                f"{self._settings.shown}: {self._settings.pool_size} threads enqueue already, and none ended within "
                f"{self._settings.pool_timeout:g} s; raise ?pool_size="
            )
        try:
            start = self._starts.get(name)
            if start is None:
                start = self._starts[name] = evalsha(script(name), self._settings.prefix)
            return self._persist(name, [b"*%d\r\n%b%b" % (count + 4, start, arguments)])
        finally:
            self._places.release()

    def _persist(self, name: str, command: list[bytes]) -> object:
        deadline = time.monotonic() + self._settings.retry_for
        pause = 0.0
        while True:
            if self._is_closed:
                raise StorageUnavailable(f"{self._settings.shown} was closed")
            try:
                return self._attempt(name, command)
            except LOST as error:
                left = deadline - time.monotonic()
                if not is_passing(error) or left <= 0:
                    raise unavailable(self._settings, error) from error
                self._connector.note(error)
                # The others are on the same server.
                while self._idle:
                    self._hang_up(self._idle.pop())
                pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE, left)
            time.sleep(pause * random.uniform(0.5, 1.0))

    def _attempt(self, name: str, command: list[bytes]) -> object:
        connection = self._idle.pop() if self._idle else self._connector.dial_blocking()
        try:
            answer = self._exchange(connection, command)
            if isinstance(answer, NoScriptError):
                loaded = self._exchange(connection, [pack(b"SCRIPT", b"LOAD", script(name).source)])
                answer = loaded if isinstance(loaded, ResponseError) else self._exchange(connection, command)
        except BaseException:
            self._hang_up(connection)
            raise
        if isinstance(answer, ResponseError):
            self._hang_up(connection)
            raise answer
        if self._is_closed:
            self._hang_up(connection)
        else:
            self._idle.append(connection)
        return answer

    def _exchange(self, connection: Any, command: list[bytes]) -> object:
        connection.send_packed_command(command, check_health=False)
        try:
            answer: object = connection.read_response()
        except ResponseError as error:
            return error
        return answer
