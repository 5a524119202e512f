"""redis-py doing the least that a durable queue with leases and results must write: three Lua scripts.

A task is a hash and a place in a sorted set; a claim moves it to another with the end of its lease, and counts its
deliveries; its end checks that count, puts in the result and lets it expire. One script call for each batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import redis
import redis.asyncio

from tests.bench.contenders.contender import Contender, Setting, polling

__all__ = ["RawRedis"]

ENQUEUE = """
for number = 1, #ARGV, 2 do
    redis.call('HSET', KEYS[1] .. ARGV[number], 'payload', ARGV[number + 1], 'state', 'queued', 'delivery', 0)
    redis.call('ZADD', KEYS[1] .. 'ready', redis.call('INCR', KEYS[1] .. 'sequence'), ARGV[number])
end
"""
CLAIM = """
local popped = redis.call('ZPOPMIN', KEYS[1] .. 'ready', ARGV[1])
local expires = redis.call('TIME')[1] + 30
local claimed = {}
for number = 1, #popped, 2 do
    local key = KEYS[1] .. popped[number]
    redis.call('ZADD', KEYS[1] .. 'leased', expires, popped[number])
    redis.call('HSET', key, 'state', 'running')
    claimed[#claimed + 1] = popped[number]
    claimed[#claimed + 1] = redis.call('HINCRBY', key, 'delivery', 1)
    claimed[#claimed + 1] = redis.call('HGET', key, 'payload')
end
return claimed
"""
FINISH = """
for number = 1, #ARGV, 3 do
    local key = KEYS[1] .. ARGV[number]
    if redis.call('HGET', key, 'delivery') == ARGV[number + 1] then
        redis.call('HSET', key, 'state', 'succeeded', 'result', ARGV[number + 2])
        redis.call('EXPIRE', key, 3600)
        redis.call('ZREM', KEYS[1] .. 'leased', ARGV[number])
        redis.call('INCR', KEYS[1] .. 'succeeded')
    end
end
"""


class RawRedis(Contender):
    """redis-py with hiredis, with ``setting.batch`` tasks a call."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._redis: Any = redis.Redis.from_url(setting.url)
        self._key = f"{{{setting.name}}}:"
        self._enqueue, self._claim, self._finish = map(self._redis.register_script, (ENQUEUE, CLAIM, FINISH))
        self._aredis: Any = redis.asyncio.Redis.from_url(setting.url)
        self._aenqueue = self._aredis.register_script(ENQUEUE)

    def enqueue(self, number: int) -> None:
        self._enqueue(keys=[self._key], args=_arguments([number]))

    async def aenqueue(self, number: int) -> None:
        await self._aenqueue(keys=[self._key], args=_arguments([number]))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        batch = self.setting.batch
        for start in range(0, len(numbers), batch):
            self._enqueue(keys=[self._key], args=_arguments(numbers[start : start + batch]))

    async def stored(self) -> int:
        return int(self._redis.get(f"{self._key}succeeded") or 0)

    def worker(self) -> AbstractAsyncContextManager[object]:
        return polling(self._step, pause=0.001)

    def _step(self) -> bool:
        claimed = self._claim(keys=[self._key], args=[self.setting.batch])
        if not claimed:
            return False
        results: list[Any] = []
        for task, delivery, payload in zip(*[iter(claimed)] * 3, strict=True):
            (number,), _ = json.loads(payload)
            self.marks.began(number)
            results += task, delivery, json.dumps(number)
        self._finish(keys=[self._key], args=results)
        return True

    async def close(self) -> None:
        self._redis.close()
        await self._aredis.aclose()


def _arguments(numbers: Sequence[int]) -> list[Any]:
    return [word for number in numbers for word in (number, json.dumps([[number], {}]))]
