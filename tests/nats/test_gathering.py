from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from omniq.errors import PayloadTooLarge
from omniq.storage import Enqueued
from omniq.task import NewTask
from omniq.testing.contract.steps import new_task
from omniq_nats.gathering import Gathering


async def test_calls_are_answered_after_all_tasks_of_a_loop_were_cancelled_as_one_began() -> None:
    async def enqueue(tasks: Sequence[NewTask]) -> list[Enqueued]:
        return [Enqueued(task.id, created=True) for task in tasks]

    gathering = Gathering(enqueue, 100)

    begun = asyncio.create_task(gathering.enqueue([new_task()]))
    await asyncio.sleep(0)  # it has begun, and what serves it has not
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert begun in others
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    async with asyncio.timeout(30):
        assert [answer.created for answer in await gathering.enqueue([new_task()])] == [True]


async def test_one_that_is_refused_costs_those_it_came_with_a_few_steps() -> None:
    steps: list[int] = []

    async def enqueue(tasks: Sequence[NewTask]) -> list[Enqueued]:
        steps.append(len(tasks))
        await asyncio.sleep(0)  # others come meanwhile
        if any(task.body == b"too large" for task in tasks):
            raise PayloadTooLarge("too large")
        return [Enqueued(task.id, created=True) for task in tasks]

    gathering = Gathering(enqueue, 1000)
    tasks = [new_task(body=b"too large" if number == 70 else b"") for number in range(100)]
    answers = await asyncio.gather(*(gathering.enqueue([task]) for task in tasks), return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, list)] == [
        [Enqueued(task.id, created=True)] for task in tasks if not task.body
    ]
    with pytest.raises(PayloadTooLarge):
        raise next(answer for answer in answers if isinstance(answer, BaseException))
    assert len(steps) < 20
