"""Limits on NATS beside what the kit asks: what stays of them where records are lost, and what plain queues pay."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from omniq.errors import PayloadTooLarge, StorageUnavailable
from omniq.flow import NewFlow, NewGate
from omniq.limit import Limit, Rate, Scope
from omniq.schedule import Schedule
from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.task import Failed, Feed, Released, StoredTask, Succeeded, TaskState
from omniq.testing import await_until
from omniq.testing.contract.flow_driver import ERROR
from omniq.testing.contract.limits import most_in
from omniq_nats import limits, overflow, task_lookup
from omniq_nats.messages import Conflict
from omniq_nats.storage import NatsStorage
from tests.nats.spoiling import SpoiledMessages
from tests.nats.support import fresh, opened, task
from tests.servers.nats import NatsServer


@pytest.fixture
def url(nats_server: NatsServer) -> str:
    return fresh(nats_server.url)


@pytest.fixture
def messages(nats_server: NatsServer, url: str) -> Iterator[SpoiledMessages]:
    spoiled = SpoiledMessages(nats_server.url, url.partition("namespace=")[2].partition("&")[0])
    yield spoiled
    spoiled.close()


async def take(storage: Storage, number: int = 100, queue: str = "work") -> list[StoredTask]:
    return await storage.claim({queue: number}, worker="w", lease=60)


async def end(storage: Storage, tasks: list[StoredTask]) -> None:
    answers = await storage.finish([Succeeded(id=one.id, delivery=one.delivery, result=b"1") for one in tasks])
    assert answers == [True] * len(tasks)


async def work_off(storage: Storage) -> list[str]:
    """Claim and finish until nothing is left; return the ids."""
    done = []
    while tasks := await take(storage):
        await end(storage, tasks)
        done += [one.id for one in tasks]
    return done


async def test_the_state_of_a_plain_queue_is_what_it_was(url: str, messages: SpoiledMessages) -> None:
    async with opened(url) as storage:
        await storage.enqueue([task(), task(queue="keyed", key="a")])
        assert len(await take(storage)) == len(await take(storage, queue="keyed")) == 1
        states = {queue: await read_state(storage, queue) for queue in ("work", "keyed")}
        assert (states["work"]["v"], "lane" in states["work"]) == (3, False)
        assert (states["keyed"]["v"], "lane" in states["keyed"]) == (4, True)


async def read_state(storage: NatsStorage, queue: str) -> Any:
    assert storage._opened is not None
    (stored,) = await storage._opened.transport.last([storage._settings.names.queue_state(queue)])
    return json.loads(stored.data.partition(b"\n")[0])


async def test_nothing_of_limits_is_left_in_a_state_once_all_has_ended(url: str) -> None:
    async with opened(url) as storage:
        await storage.put_limit(Limit(queue="work", per_key=Limit(concurrency=1)))
        await storage.enqueue([task(key=f"k{n % 3}", limit="api") for n in range(9)])
        assert len(await work_off(storage)) == 9
        assert await storage.delete_limit("queue:work")
        state = await read_state(storage, "work")
        assert [line for line in state["lines"] if "k" in line] == []
        names, *_, lines = state.get("lane", [{}, 0, 0])[-3:]
        assert (names, lines) == ({}, 0)


async def test_a_queue_of_keys_that_come_once_does_not_grow(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_IDLE", 5)
    async with opened(url) as storage:
        for n in range(12):
            await storage.enqueue([task(key=f"k{n}")])
            assert len(await work_off(storage)) == 1
        state = await read_state(storage, "work")
        assert state["lane"][-2] <= 5
        await storage.prune(100)
        assert "lane" not in await read_state(storage, "work")


async def test_a_line_that_was_worked_off_is_there_again_with_its_next_task(url: str) -> None:
    async with opened(url) as storage:
        for _ in range(3):
            tasks = [task(key="a"), task(key="a", priority=3), task(key="a")]
            await storage.enqueue(tasks)
            assert [record and record.state for record in await storage.get([one.id for one in tasks])] == [
                TaskState.READY
            ] * 3
            assert await work_off(storage) == [tasks[1].id, tasks[0].id, tasks[2].id]


async def test_tasks_with_keys_outlive_a_queues_record_that_cannot_be_read(url: str, messages: SpoiledMessages) -> None:
    async with opened(url) as storage:
        await storage.put_limit(Limit(queue="work", per_key=Limit(concurrency=1)))
        await storage.put_limit(Limit(name="api", concurrency=2))
        tasks = [task(key=f"k{n % 4}", limit="api", max_retries=9) for n in range(40)]
        await storage.enqueue(tasks)
        lost = await take(storage)
        assert len(lost) == 2
        names = storage._settings.names
        spoil(messages, names.queue_state("work"), b"{")
        async with opened(url) as other:
            await other.recover(100)  # makes the record anew: what ran is ready again, and holds no slot
            (usage,) = await other.get_limit_usage([Scope(name="api")])
            assert usage.running == 0
            first = await take(other)
            assert len(first) == 2
            assert len({one.key for one in first}) == 2
            await end(other, first)
            assert {*(one.id for one in first), *await work_off(other)} == {one.id for one in tasks}
            assert (await other.get_limit_usage([Scope(name="api")]))[0].running == 0


def spoil(messages: SpoiledMessages, subject: str, data: bytes) -> None:
    """Replace a message, behind the storage's back and on another thread's loop."""

    async def publish() -> None:
        await (await messages.stream()).publish(subject, data)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(messages.do, publish()).result()


async def test_a_usage_that_cannot_be_read_is_counted_anew(url: str, messages: SpoiledMessages) -> None:
    async with opened(url) as storage:
        await storage.put_limit(Limit(name="api", concurrency=3))
        await storage.enqueue([task(queue=queue, limit="api") for queue in ("work", "other") for _ in range(4)])
        held = await take(storage, 2)
        spoil(messages, storage._settings.names.usage("api"), b"[1, 2")
        async with opened(url) as other:
            assert len(await take(other, queue="other")) == 1
            assert await take(other) == []
            await end(other, held)
            assert len(await take(other)) == 2


async def test_more_tasks_are_due_than_a_state_has_room_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(url) as storage:
        for name, number in (("MOST_DUE", 5), ("MOST_IN_BOOK", 2), ("KEPT_IN_BOOK", 1), ("LARGEST", 4)):
            monkeypatch.setattr(overflow, name, number)
        await storage.put_limit(Limit(queue="work", per_key=Limit(concurrency=2)))
        soon = datetime.now(UTC) + timedelta(milliseconds=30)
        tasks = [task(key="abc"[n % 3], run_at=soon) for n in range(30)] + [task(run_at=soon) for _ in range(10)]
        await storage.enqueue(tasks)
        done: set[str] = set()

        async def all_done() -> bool:
            found = await take(storage)
            assert sum(one.key == "a" for one in found) <= 2
            await end(storage, found)
            done.update(one.id for one in found)
            return len(done) == len(tasks)

        await await_until(all_done, 30, "all tasks to be worked off")
        assert done == {one.id for one in tasks}


async def test_what_is_due_later_starts_though_nothing_else_of_limits_is_there(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("MOST_IN_BOOK", 2), ("KEPT_IN_BOOK", 0)):
        monkeypatch.setattr(overflow, name, number)
    async with opened(url) as storage:
        later = datetime.now(UTC) + timedelta(milliseconds=500)
        tasks = [task(key="a", run_at=later) for _ in range(5)]
        await storage.enqueue(tasks)
        tasks.append(task(key="b"))
        await storage.enqueue(tasks[-1:])
        done = set(await work_off(storage))  # all others are put aside by it
        await storage.prune(10)

        async def all_done() -> bool:
            done.update(await work_off(storage))
            return len(done) == len(tasks)

        await await_until(all_done, 30, "what is due later")
        assert done == {one.id for one in tasks}


async def test_a_schedules_run_with_a_key_is_stored_once(url: str) -> None:
    async with opened(url) as storage:
        due = datetime.now(UTC)
        schedule = await storage.put_schedule(
            Schedule(id="s", task=task(key="a"), trigger='{"every": 60}', next_run=due)
        )
        assert schedule is not None
        run = [task(key="a")]
        assert await storage.fire(schedule, run) is not None
        assert await storage.fire(schedule, [task(key="a")]) is None
        assert [one.id for one in await take(storage)] == [run[0].id]


async def test_the_rate_of_a_name_is_shared_by_queues(url: str) -> None:
    async with opened(url) as storage:
        await storage.put_limit(Limit(name="api", rate=Rate(1, per=3600, burst=3)))
        await storage.enqueue([task(queue=queue, limit="api") for queue in ("work", "other") for _ in range(4)])
        assert len(await take(storage, 2)) == 2
        assert len(await take(storage, queue="other")) == 1
        assert await take(storage) == []


@pytest.mark.timeout(120)
async def test_of_two_retries_at_once_that_want_one_unique_key_one_gets_it(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        ids = []
        for _ in range(2):
            await storage.enqueue([one := task(unique="k")])
            ids.append(one.id)
            (claimed,) = await take(storage)
            assert await storage.finish([Failed(id=claimed.id, delivery=claimed.delivery, error=ERROR)]) == [True]

        answers = await asyncio.gather(storage.retry([ids[1]]), storage.retry([ids[0]]))

        assert sorted(answers) == [[False], [True]]
        assert len(await take(storage)) == 1


async def test_a_schedule_moves_on_though_the_task_of_its_run_is_there_already(url: str) -> None:
    async with opened(url) as storage:
        due = datetime.now(UTC)
        schedule = Schedule(id="s", task=task(key="a", unique="k"), trigger="{}", next_run=due)
        stored = await storage.put_schedule(schedule)
        assert stored is not None
        first = await storage.fire(evolve(stored, next_run=due), [task(key="a", unique="k")])
        assert first is not None
        (stored,) = await storage.get_schedules(["s"])

        later = due + timedelta(hours=1)
        second = await storage.fire(evolve(stored, next_run=later), [task(key="a", unique="k")])

        assert second is not None
        assert [one.created for one in [*first, *second]] == [True, False]
        (stored,) = await storage.get_schedules(["s"])
        assert stored.next_run == later


async def test_a_schedule_moves_on_though_a_task_of_its_run_has_an_id_that_is_there(url: str) -> None:
    async with opened(url) as storage:
        await storage.enqueue([one := task(key="a")])
        schedule = Schedule(id="s", task=task(key="a"), trigger="{}", next_run=datetime.now(UTC))
        stored = await storage.put_schedule(schedule)
        assert stored is not None

        fired = await storage.fire(stored, [one, task(key="a")])

        assert fired is not None
        assert [answer.created for answer in fired] == [False, True]


async def test_a_schedule_whose_turn_does_not_come_is_given_up_in_time(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(fresh(nats_server.url, timeout="0.2")) as storage:
        schedule = Schedule(id="s", task=task(key="a"), trigger="{}", next_run=datetime.now(UTC))
        stored = await storage.put_schedule(schedule)
        assert stored is not None
        assert storage._opened is not None

        async def lose(*_: object, **__: object) -> None:
            raise Conflict("another was quicker")

        monkeypatch.setattr(storage._opened.state_store, "commit_together", lose)
        with pytest.raises(StorageUnavailable, match="no turn came"):
            await storage.fire(stored, [task(key="a")])


async def test_a_task_with_a_key_makes_a_purged_state_anew_before_it_is_stored(
    url: str, messages: SpoiledMessages
) -> None:
    async with opened(url) as storage:
        tasks = [task(key="a"), task(key="b"), task()]
        await storage.enqueue(tasks)
        (held,) = await take(storage, 1)
        subject = storage._settings.names.queue_state("work")

    async def purge() -> None:
        stream = await messages.stream()
        await stream.purge_stream(f"OMNIQ_{storage._settings.names.namespace}", subject=subject)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(messages.do, purge()).result()
    async with opened(url) as other:
        await other.enqueue([last := task(key="a")])
        done = set(await work_off(other))
        assert done == {held.id, last.id, *(one.id for one in tasks)}


async def test_a_queue_says_that_it_has_keys_while_their_tasks_wait_for_a_time(url: str) -> None:
    async with opened(url) as storage:
        await storage.enqueue([task(key="a", run_at=datetime.now(UTC) + timedelta(hours=1))])
        assert (await read_state(storage, "work"))["v"] == 4


async def test_what_is_known_of_lines_does_not_grow_with_each_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_lookup, "MOST_LINES", 4)
    async with opened(url) as storage:
        tasks = [task(key=f"k{n}") for n in range(30)]
        await storage.enqueue(tasks)
        assert set(await work_off(storage)) == {one.id for one in tasks}
        assert storage._opened is not None
        assert len(storage._opened.state_store.task_lookup._ahead) <= 4


async def test_a_start_in_the_step_of_an_end_heeds_a_limit_that_was_lowered_meanwhile(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(url) as storage, opened(url) as other:
        await storage.put_limit(Limit(name="api", concurrency=2))
        await storage.enqueue([task(limit="api") for _ in range(3)])
        first, second = await take(storage, 2)
        assert storage._opened is not None
        state_store = storage._opened.state_store
        commit = state_store._commit

        async def commit_late(*given: Any) -> None:
            monkeypatch.undo()
            await other.put_limit(Limit(name="api", concurrency=1))
            await commit(*given)

        async with state_store.turns(["work"]):
            monkeypatch.setattr(state_store, "_commit", commit_late)
            ended = asyncio.create_task(end(storage, [first]))
            claimed = asyncio.create_task(take(storage))
            # Both are made together once the turn is over.
            await await_until(lambda: len(state_store._commit_queue._gathered["work"]) == 2, 30, "both to wait")
        await ended
        assert await claimed == []
        await end(storage, [second])
        assert len(await take(storage)) == 1


async def test_starts_that_are_given_back_in_one_step_give_a_shared_name_its_tokens_back(url: str) -> None:
    async with opened(url) as storage:
        await storage.put_limit(Limit(name="api", rate=Rate(1, per=3600, burst=2)))
        flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),), result_ttl=0.0)
        tasks = [task(queue=queue, limit="api", flow=flow.id, feeds=(Feed(0),)) for queue in ("work", "other")]
        await storage.enqueue([*tasks, task(flow=flow.id, behind=0)], flow)
        held = [one for queue in ("work", "other") for one in await take(storage, queue=queue)]
        assert await storage.finish([Released(id=one.id, delivery=one.delivery) for one in held]) == [True, True]
        again = [one.id for queue in ("work", "other") for one in await take(storage, queue=queue)]
        assert again == [one.id for one in tasks]


async def test_calls_that_enqueue_tasks_with_keys_at_once_go_together_and_fail_alone(url: str) -> None:
    async with opened(url) as storage:
        await storage.enqueue([task(key="a")])
        before = (await read_state(storage, "work"))["changes"]
        most = storage.limits.body
        assert most is not None
        calls = [storage.enqueue([task(key=f"k{n % 5}")]) for n in range(40)]
        refused = storage.enqueue([task(key="a", body=b'"' + b"x" * 2 * most + b'"')])
        *answers, error = await asyncio.gather(*calls[:20], *calls[20:], refused, return_exceptions=True)
        assert isinstance(error, PayloadTooLarge)
        assert len(await work_off(storage)) == 41
        assert all(isinstance(answer, list) and answer[0].created for answer in answers)
        # Not one step for each: they were told apart only where one of them could not be stored.
        await asyncio.gather(*(storage.enqueue([task(key=f"k{n % 5}")]) for n in range(40)))
        after = await read_state(storage, "work")
        assert after["changes"] - before < 60


@pytest.mark.parametrize("place", [{}, {"key": "a"}, {"limit": "api"}], ids=["queue", "key", "name"])
async def test_a_rate_holds_in_every_span_whatever_the_clocks_of_clients_say(
    url: str, monkeypatch: pytest.MonkeyPatch, place: dict[str, str]
) -> None:
    rate = Rate(20, per=0.5, burst=3)
    async with opened(url) as first, opened(url) as second, opened(url) as third, opened(url) as fourth:
        several = [first, second, third, fourth]
        await first.put_limit(Limit(queue="work", rate=None if place else rate, per_key=Limit(rate=rate)))
        await first.put_limit(Limit(name="api", rate=rate))
        await first.enqueue([task(**place) for _ in range(30)])
        real, apart = time.time, itertools.cycle([0, 3600, -3600])
        monkeypatch.setattr(time, "time", lambda: real() - next(apart))
        began: list[datetime] = []

        async def start(storage: Storage) -> None:
            while len(began) < 30:
                began.extend(one.started_at for one in await take(storage) if one.started_at is not None)
                await storage.wait_for_work(["work"], 0.2)

        await asyncio.gather(*map(start, several))
    assert most_in(began, 0.5) <= 22
    assert most_in(began, 0.025) <= 3


async def test_more_active_keys_than_a_record_can_hold_are_refused_and_the_others_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with NatsServer(tmp_path_factory.mktemp("small"), ["max_payload: 64KB"]) as server:
        async with opened(fresh(server.url)) as storage:
            await storage.enqueue([task(key="first")])
            most = storage.limits.active_keys
            assert most is not None
            stored = 1

            async def fill() -> None:
                nonlocal stored
                while stored < 8 * most:
                    stored += len(await storage.enqueue([task(key=f"k{stored + n}") for n in range(50)]))

            with pytest.raises(PayloadTooLarge, match="have keys of their own"):
                await fill()
            assert stored >= most
            assert len(await work_off(storage)) == stored
            assert (await storage.enqueue([task(key="last")]))[0].created
