"""What holds at the servers' limits, in the doctor's words and while nothing happens."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from omniq.errors import PayloadTooLarge, StorageUnavailable
from omniq.storage import Finding, Severity, Storage
from omniq.task import Failed, Retry, Succeeded, TaskError, TaskState
from omniq.testing import await_until
from omniq_nats.waiting import LOOK_EVERY
from tests.nats.support import fresh, make, opened, task
from tests.nats.test_opening import js, stream_of
from tests.servers.nats import NatsServer


async def finding(storage: Storage, subject: str) -> Finding:
    (found,) = [one for one in await storage.diagnose() if one.subject == subject]
    return found


# Sizes


async def test_arguments_over_the_servers_limit_are_refused_and_leave_nothing_behind(tmp_path: Path) -> None:
    with NatsServer(tmp_path, ["max_payload: 64KB"]) as server:
        async with opened(fresh(server.url)) as storage:
            small, large = task(), task(body=b"x" * 70_000)
            for batch in ([large], [small, large]):
                with pytest.raises(PayloadTooLarge, match="over the server's limit of 65,536"):
                    await storage.enqueue(batch)
            assert await storage.get([small.id, large.id]) == [None, None]
            assert (await storage.enqueue([small]))[0].created
            assert (await finding(storage, "max_payload")).severity is Severity.WARNING


async def test_a_result_over_the_servers_limit_is_a_failure_that_says_so(tmp_path: Path) -> None:
    with NatsServer(tmp_path, ["max_payload: 64KB"]) as server:
        async with opened(fresh(server.url)) as storage:
            await storage.enqueue([task(), task()])
            first, second = await storage.claim({"work": 2}, worker="w", lease=60)
            error = TaskError(type="ValueError", message="m" * 100_000, traceback="t" * 100_000 + "the end")
            told = [
                Succeeded(id=first.id, delivery=1, result=b"x" * 70_000),
                Failed(id=second.id, delivery=1, error=error),
            ]
            assert await storage.finish(told) == [True, True]
            large, long = await storage.get([first.id, second.id])
            assert large is not None
            assert large.error is not None
            assert (large.state, large.error.type) == (TaskState.FAILED, "PayloadTooLarge")
            assert "70,000 bytes" in large.error.message
            assert long is not None
            assert long.error is not None
            assert long.error.traceback.endswith("the end")


async def test_a_result_with_a_long_attempt_log_keeps_as_much_of_that_as_there_is_room_for(tmp_path: Path) -> None:
    with NatsServer(tmp_path, ["max_payload: 64KB"]) as server:
        async with opened(fresh(server.url)) as storage:
            await storage.enqueue([task()])
            (one,) = await storage.claim({"work": 1}, worker="w", lease=60)
            error = TaskError(type="ValueError", message="m")
            log = "x" * 100_000 + "\nthe end"
            again = Retry(id=one.id, delivery=1, delay=0, error=error, attempt_log=log)
            assert await storage.finish([again]) == [True]
            (one,) = await storage.claim({"work": 1}, worker="w", lease=60)
            assert one.error == error
            assert len(one.attempt_log) > 50_000
            assert log.endswith(one.attempt_log)
            assert await storage.finish([Succeeded(id=one.id, delivery=2, result=b"r" * 60_000)]) == [True]
            (ended,) = await storage.get([one.id])
            assert ended is not None
            assert ended.result_payload == b"r" * 60_000
            assert log.endswith(ended.attempt_log)
            assert ended.attempt_log.endswith("\nthe end")


async def test_a_thousand_large_results_at_once_are_kept(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        ids = [answer.id for answer in await storage.enqueue([task() for _ in range(300)])]
        claimed = await storage.claim({"work": 300}, worker="w", lease=60)
        told = [
            Succeeded(id=one.id, delivery=1, result=b"%d " % number * (10 + number * 5))
            for number, one in enumerate(claimed)
        ]
        assert await storage.finish(told) == [True] * 300
        kept = [record and record.result_payload for record in await storage.get(ids)]
        assert kept == [one.result for one in told]


async def test_however_tasks_are_mixed_no_step_takes_more_messages_than_the_server(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        # Two tasks share a message, and each needs one that says where it is.
        tasks = [task(result_ttl=100.0 + number // 2) for number in range(1500)]
        assert all(answer.created for answer in await storage.enqueue(tasks))
        claimed = await storage.claim({"work": 2000}, worker="w", lease=60)
        assert [one.id for one in claimed] == [one.id for one in tasks]


async def test_ten_thousand_tasks_are_cancelled_in_one_call(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        ids = [answer.id for answer in await storage.enqueue([task() for _ in range(10_000)])]
        (last,) = await storage.enqueue([task()])
        assert await storage.cancel(ids) == [True] * len(ids)
        assert await storage.cancel(ids[:1]) == [False]
        assert [one.id for one in await storage.claim({"work": 9}, worker="w", lease=60)] == [last.id]


async def test_a_full_stream_is_an_error_and_goes_on_once_there_is_room(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        config = (await js(url, f"STREAM.INFO.{stream_of(url)}"))["config"]
        await js(url, f"STREAM.UPDATE.{stream_of(url)}", {**config, "max_bytes": 400_000})

        async def fill() -> None:
            for _ in range(100):
                await storage.enqueue([task(body=b"x" * 5000)])

        with pytest.raises(StorageUnavailable, match="maximum bytes exceeded"):
            await fill()
        assert (await finding(storage, "space")).severity is Severity.ERROR
        await js(url, f"STREAM.UPDATE.{stream_of(url)}", {**config, "max_bytes": -1})
        assert (await storage.enqueue([task()]))[0].created


# While nothing happens


async def test_an_idle_wait_asks_once_in_five_seconds(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        await storage.enqueue([task(run_at=timedelta(days=1)) for _ in range(50)])
        waits = asyncio.create_task(storage.wait_for_work(["work", "other"], 60))
        await asyncio.sleep(0.5)  # by then it waits
        before, began = nats_server.received, time.monotonic()
        await asyncio.sleep(4)  # the time in which it asks little
        requests = nats_server.received - before
        # On a busy machine the four seconds may be more than five.
        assert requests <= 1 + (time.monotonic() - began) // LOOK_EVERY
        waits.cancel()


async def test_work_is_found_though_nobody_tells_of_it(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage, opened(url) as silent:
        assert silent._opened is not None

        async def tell(subject: str, data: bytes = b"") -> None:
            """Lose the word."""

        silent._opened.transport.tell = tell  # type: ignore[method-assign]  # as a producer that dies before it speaks
        await storage.enqueue([task(queue="elsewhere")])
        for queue in ("work", "again"):
            waits = asyncio.create_task(storage.wait_for_work([queue], 600))
            await asyncio.sleep(0.1)  # by then it waits
            await silent.enqueue([task(queue=queue)])
            async with asyncio.timeout(30):
                await waits
        (ended,) = await storage.claim({"work": 1}, worker="w", lease=60)
        waits_for_end = asyncio.create_task(storage.wait_finished([ended.id], 600))
        await asyncio.sleep(0.1)  # by then it waits
        await silent.finish([Succeeded(id=ended.id, delivery=1, result=b"1")])
        async with asyncio.timeout(30):
            assert await waits_for_end == {ended.id}


# The doctor


async def test_a_healthy_store_has_one_thing_to_think_of(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await storage.enqueue([task()])
        findings = await storage.diagnose()
        assert [one.subject for one in findings if one.severity is not Severity.OK] == ["durability"]
        assert "sync_interval: always" in (await finding(storage, "durability")).message
        assert "API level" in (await finding(storage, "server")).message


async def test_a_stream_in_memory_is_warned_of(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url, storage="memory")) as storage:
        assert "in memory" in (await finding(storage, "durability")).message


async def test_tasks_of_dead_workers_and_messages_of_nobody_are_reported(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        await storage.enqueue([task()])
        await storage.claim({"work": 1}, worker="w", lease=0.01)

        async def is_reported() -> bool:
            return any(one.subject == "leases" and "1 running" in one.message for one in await storage.diagnose())

        await await_until(is_reported, 30, "the lapsed lease to be reported")
        assert (await finding(storage, "stranded")).severity is Severity.OK
        assert storage._opened is not None
        await storage._opened.transport.client.publish(f"omniq.{stream_of(url)[6:]}.r.work.lost", b"[[],[],[]]")

        async def is_stranded() -> bool:
            found = await finding(storage, "stranded")
            return found.severity is Severity.WARNING and "r.work.lost" in found.message

        await await_until(is_stranded, 30, "the stranded message to be reported")


def test_a_storage_that_is_not_open_says_so() -> None:
    async def scenario() -> None:
        storage = make("nats://127.0.0.1")
        with pytest.raises(StorageUnavailable, match=r"is not open: call open\(\) first"):
            await storage.stats()
        assert storage.enqueue_blocking([task()]) is None

    asyncio.run(scenario())


async def test_what_others_store_that_is_no_work_for_the_queue_makes_no_wait_look_again(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq_nats.waiting.LOOK_EVERY", 0.02)
    url = fresh(nats_server.url)
    async with opened(url) as storage, opened(url) as other:
        await storage.enqueue([task(run_at=timedelta(days=1))])
        await storage.stats()
        assert storage._opened is not None
        looks = 0
        look = storage._opened.waiting._look

        async def counted(queues: Sequence[str]) -> Any:
            nonlocal looks
            looks += 1
            return await look(queues)

        storage._opened.waiting._look = counted  # type: ignore[method-assign]  # counts, and changes nothing
        waits = asyncio.create_task(storage.wait_for_work(["work"], 600))
        for _ in range(20):
            await other.heartbeat("idle", [], 60)
            await other.enqueue([task(queue="elsewhere")])
            await asyncio.sleep(0.02)  # one message a time, as others would send them
        assert looks <= 2
        waits.cancel()


@pytest.mark.parametrize(
    "odd",
    [
        {"result_ttl": math.inf},
        {"result_ttl": math.nan},
        {"max_retries": 2**63},
        {"priority": 2**63},
        {"tags": ("\ud800",)},
    ],
    ids=lambda odd: next(iter(odd)),
)
async def test_what_could_not_be_read_once_it_is_stored_is_refused(
    nats_server: NatsServer, odd: dict[str, Any]
) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        for tasks in ([task(**odd)], [task(), task(**odd)]):
            with pytest.raises(ValueError, match=next(iter(odd)).replace("tags", "a tag")):
                await storage.enqueue(tasks)
        assert await storage.stats() == []
