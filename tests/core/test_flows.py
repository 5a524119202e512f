"""Flows as a program writes them: what depends on what, how results travel, and what is refused."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Protocol, cast

import pytest
from attrs import evolve

from omniq import (
    ConfigurationError,
    Cron,
    Ended,
    Every,
    FlowNotFound,
    SerializationError,
    StorageUnavailable,
    TaskCall,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    TaskQueue,
    TaskState,
    current_task,
    each,
    gather,
)
from omniq.flow import NewFlow
from omniq.storage import Enqueued, StorageLimits
from omniq.storage.ids import new_id
from omniq.task import NewTask
from omniq.testing import await_until, trial, wait_until
from omniq_local.memory.storage import MemoryStorage
from tests.core import flow_cpu_tasks
from tests.core.running import working


class Shop:
    """A queue with tasks that depend on each other, and what has run of them."""

    def __init__(self, **options: Any) -> None:
        self.queue = queue = TaskQueue(f"memory://{new_id()}", **options)
        self.ran: list[str] = []

        @queue.task(max_retries=0)
        def fetch(url: str) -> bytes:
            self.ran.append(f"fetch {url}")
            if url == "broken":
                raise OSError("no such host")
            return url.encode()

        @queue.task
        async def count(page: bytes, factor: int = 1) -> int:
            self.ran.append(f"count {page.decode()}")
            return len(page) * factor

        @queue.task
        def report(counts: list[int], title: str) -> str:
            self.ran.append(f"report {title}")
            return f"{title}: {counts}"

        @queue.task
        def audit(ends: list[Ended[bytes]]) -> list[str]:
            return [end.output.decode() if end.output is not None else str(end.error) for end in ends]

        @queue.task
        def judge(end: Ended[bytes]) -> str:
            try:
                return end.value().decode()
            except TaskFailed as error:
                return f"{end.state} {error.error.type}"

        @queue.task
        def mixed(some: list[int], pair: tuple[int, int], named: dict[str, int], *rest: bytes) -> str:
            return repr((some, pair, named, rest))

        @queue.task
        def clean_up() -> None:
            self.ran.append("clean up")

        @queue.task
        async def crawl(links: int) -> int:
            for number in range(links):
                await current_task().aspawn(count.call(b"x" * number))
            return links

        self.fetch, self.count, self.report, self.audit, self.judge = fetch, count, report, audit, judge
        self.mixed, self.clean_up, self.crawl = mixed, clean_up, crawl


class MakeShop(Protocol):
    """Makes a shop. Its queue is closed afterwards."""

    def __call__(self, **options: Any) -> Shop: ...


@pytest.fixture
def make_shop() -> Iterator[MakeShop]:
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Shop:
            shop = Shop(**options)
            stack.enter_context(shop.queue)
            return shop

        yield make


@pytest.fixture
def shop(make_shop: MakeShop) -> Shop:
    return make_shop()


def test_a_chain_hands_each_result_on(shop: Shop) -> None:
    handle = shop.queue.enqueue_flow(shop.fetch.call("four").then(shop.count, factor=10))
    with working(shop.queue):
        assert handle.result(30) == 40
    assert shop.ran == ["fetch four", "count four"]


def test_a_group_is_gathered_when_all_of_it_has_succeeded(shop: Shop) -> None:
    pages = each(shop.fetch, ["a", "bb", "ccc"])
    total = each(shop.count, pages.outputs, factor=2).then(shop.report, title="words")
    handle = shop.queue.enqueue_flow(total)
    with working(shop.queue):
        assert handle.result(30) == "words: [2, 4, 6]"
        flow = handle.flow.progress()
    assert flow.counts[TaskState.SUCCEEDED] == 7
    assert flow.finished_at is not None
    assert shop.ran[-1] == "report words"


def test_results_stand_wherever_an_argument_can(shop: Shop) -> None:
    one, two = shop.count.call(b"1"), shop.count.call(b"22")
    page = shop.fetch.call("p")
    call = shop.mixed.call([7, one.output], (two.output, 8), {"a": one.output, "b": 9}, page.output)
    handle = shop.queue.enqueue_flow(call)
    with working(shop.queue):
        assert handle.result(30) == repr(([7, 1], (2, 8), {"a": 1, "b": 9}, (b"p",)))
    assert len(shop.ran) == 3, "what is needed twice runs once"


def test_an_empty_group_has_its_callback(shop: Shop) -> None:
    nothing: list[TaskCall[int]] = []
    handle = shop.queue.enqueue_flow(shop.report.call(gather(nothing), title="none"))
    with working(shop.queue):
        assert handle.result(30) == "none: []"


def test_outcomes_are_handed_on_whatever_they_are(shop: Shop) -> None:
    pages = each(shop.fetch, ["fine", "broken"])
    told = shop.queue.enqueue_flow(shop.audit.call(pages.outcomes))
    judged = shop.queue.enqueue_flow(shop.judge.call(shop.fetch.call("broken").outcome))
    with working(shop.queue):
        fine, broken = told.result(30)
        assert judged.result(30) == "failed OSError"
    assert fine == "fine"
    assert "no such host" in broken


def test_what_needs_a_task_that_failed_is_cancelled_and_says_why(shop: Shop) -> None:
    handle = shop.queue.enqueue_flow(shop.fetch.call("broken").then(shop.count).then(_doubling(shop)))
    with working(shop.queue), pytest.raises(TaskCancelled, match="no such host") as caught:
        handle.result(30)
    assert caught.value.error is not None
    assert caught.value.error.type == "UpstreamFailed"
    assert shop.ran == ["fetch broken"]


def _doubling(shop: Shop) -> Any:
    @shop.queue.task(name=f"double.{new_id()}")
    def double(number: int) -> int:
        return 2 * number

    return double


@pytest.mark.parametrize(("if_failed", "ends"), [("run", ["fetch broken", "clean up"]), ("cancel", ["fetch broken"])])
def test_an_order_without_values(shop: Shop, if_failed: Any, ends: list[str]) -> None:
    handle = shop.queue.enqueue_flow(shop.clean_up.call().after(shop.fetch.call("broken"), if_failed=if_failed))
    with working(shop.queue):
        if if_failed == "run":
            handle.result(30)
        else:
            with pytest.raises(TaskCancelled):
                handle.result(30)
    assert shop.ran == ends


def test_a_running_member_adds_a_sibling_for_which_the_others_wait(shop: Shop) -> None:
    handle = shop.queue.enqueue_flow(shop.report.call(gather([shop.crawl.call(3)]), title="crawled"))
    with working(shop.queue):
        assert handle.result(30) == "crawled: [3]"
        tasks = handle.flow.tasks()
    assert [task.state for task in tasks] == [TaskState.SUCCEEDED] * 5
    assert sorted(shop.ran[:3]) == ["count ", "count x", "count xx"]


async def test_an_attempt_that_runs_again_adds_no_second_sibling(shop: Shop) -> None:
    queue = shop.queue

    @queue.task(max_retries=1)
    def flaky() -> int:
        current_task().spawn(shop.count.call(b"once"))
        if current_task().attempt == 1:
            current_task().retry(0)
        return 1

    async with queue.worker():
        handle = await queue.aenqueue_flow(shop.report.call(gather([flaky.call()]), title="t"))
        assert await handle.aresult(30) == "t: [1]"
    assert shop.ran.count("count once") == 1


async def test_what_is_added_again_has_the_id_that_it_had(shop: Shop) -> None:
    queue = shop.queue
    added: list[list[tuple[str, bool]]] = []

    @queue.task(max_retries=1)
    async def flaky() -> int:
        handles = [await current_task().aspawn(shop.count.call(page)) for page in (b"a", b"bb")]
        added.append([(handle.id, handle.created) for handle in handles])
        if current_task().attempt == 1:
            current_task().retry(0)
        return 1

    async with queue.worker():
        handle = await queue.aenqueue_flow(shop.report.call(gather([flaky.call()]), title="t"))
        assert await handle.aresult(30) == "t: [1]"
        tasks = await handle.flow.atasks()
    first, second = added
    assert [created for _, created in first] == [True, True]
    assert second == [(task_id, False) for task_id, _ in first]
    assert {task_id for task_id, _ in first} < {task.id for task in tasks}
    assert len(tasks) == 4


def test_outside_a_flow_there_is_nothing_to_add_to(shop: Shop) -> None:
    handle = shop.crawl.enqueue(1)
    with working(shop.queue), pytest.raises(TaskFailed, match="belongs to no flow"):
        shop.crawl.using(max_retries=0).enqueue(1).result(30)
    with pytest.raises(ValueError, match="belongs to no flow"):
        handle.flow.progress()


def test_a_flow_is_cancelled_and_retried_as_a_whole(shop: Shop) -> None:
    pages = each(shop.fetch, ["a", "broken"])
    handle = shop.queue.enqueue_flow(each(shop.count, pages.outputs).then(shop.report, title="t"))
    assert handle.flow.cancel() is True
    assert handle.flow.cancel() is False
    assert {task.state for task in handle.flow.tasks()} == {TaskState.CANCELLED}
    assert handle.flow.retry() == 5
    with working(shop.queue), pytest.raises(TaskCancelled):
        handle.result(30)
    assert handle.flow.retry() == 1, "the one that failed; those that wait for it come with it"
    assert handle.flow.progress().finished_at is None


def test_what_is_told_the_ends_of_others_waits_for_them_again_when_a_cancelled_flow_is_retried(shop: Shop) -> None:
    handle = shop.queue.enqueue_flow(shop.audit.call(each(shop.fetch, ["a", "b"]).outcomes))
    assert handle.flow.cancel() is True
    assert handle.flow.retry() == 3
    assert handle.task().state is TaskState.BLOCKED
    with working(shop.queue):
        assert handle.result(30) == ["a", "b"]


def test_a_task_that_was_cancelled_says_so_to_those_that_are_told_its_end(shop: Shop) -> None:
    pages = each(shop.fetch, ["a", "b"])
    handle = shop.queue.enqueue_flow(shop.audit.call(pages.outcomes))
    first = next(task for task in handle.flow.tasks() if task.name.endswith("fetch"))
    assert shop.queue.handle(first.id).cancel() is True
    with working(shop.queue):
        told, other = handle.result(30)
    assert "it was cancelled" in told
    assert other == "b"


async def test_handles_of_flows_in_coroutines(shop: Shop) -> None:
    handle = await shop.queue.aenqueue_flow(shop.fetch.call("a").then(shop.count))
    assert [task.name.rpartition(".")[2] for task in await handle.flow.atasks()] == ["fetch", "count"]
    assert (await handle.flow.aprogress()).counts[TaskState.BLOCKED] == 1
    assert await handle.flow.acancel() is True
    assert await handle.flow.aretry() == 2
    with pytest.raises(TaskNotFound):
        await shop.queue.handle(new_id()).flow.aprogress()
    with pytest.raises(FlowNotFound):
        await shop.queue.flows.aget(new_id())


def test_a_key_is_that_of_the_whole_flow(shop: Shop) -> None:
    def make() -> TaskCall[int]:
        return shop.count.using(unique="nightly").call(shop.fetch.call("a").output)

    first, second = shop.queue.enqueue_flow(make()), shop.queue.enqueue_flow(make())
    assert (first.created, second.created, second.id) == (True, False, first.id)
    with working(shop.queue):
        assert second.result(30) == 1
    assert shop.queue.enqueue_flow(make()).created is True


@pytest.mark.parametrize("serializer", ["json", "cloudpickle"])
def test_results_are_checked_as_those_of_their_tasks(serializer: str, make_shop: MakeShop) -> None:
    shop = make_shop(signing_key="0" * 64, serializer=serializer)
    call = shop.fetch.call("a").then(shop.count)
    handle = shop.queue.enqueue_flow(call)
    with working(shop.queue):
        assert handle.result(30) == 1


async def test_signed_results_travel_between_processes_and_threads() -> None:
    tasks = flow_cpu_tasks
    squares = each(tasks.square, range(4))
    async with tasks.queue.worker(processes=1):
        handle = await tasks.queue.aenqueue_flow(each(tasks.on_a_thread, squares.outputs).then(tasks.total))
        judged = await tasks.queue.aenqueue_flow(tasks.judge.call(tasks.broken.call().outcome))
        found, pid, apart = await handle.aresult(60)
        assert (found, apart) == (14, True)
        assert pid != os.getpid()
        assert await judged.aresult(60) == "failed: not there"
    await tasks.queue.aclose()


async def test_an_altered_result_is_not_read(make_shop: MakeShop) -> None:
    shop = make_shop(signing_key="0" * 64)
    handle = await shop.queue.aenqueue_flow(shop.fetch.call("a").then(shop.count))
    async with shop.queue.worker(queues=["nothing"]):
        storage = (await shop.queue.connections.current()).storage
        assert isinstance(storage, MemoryStorage)
        (first,) = await storage.claim({"default": 1}, worker="w", lease=60)
        done = shop.queue.codec.success(shop.queue.codec.admit(first), b"a", bytes)
        await storage.finish([evolve(done, result=done.result[:-1] + b"!")])
    async with shop.queue.worker():
        with pytest.raises(TaskFailed, match="does not fit"):
            await handle.aresult(30)
    assert shop.ran == []


async def test_a_result_that_was_deleted_is_missed(shop: Shop) -> None:
    handle = await shop.queue.aenqueue_flow(shop.fetch.call("a").then(shop.count))
    storage = (await shop.queue.connections.current()).storage
    (first,) = await storage.claim({"default": 1}, worker="w", lease=60)
    await storage.finish([shop.queue.codec.success(shop.queue.codec.admit(first), b"a", bytes)])
    assert await shop.queue.adelete(first.id)
    async with shop.queue.worker():
        with pytest.raises(TaskFailed, match="ResultGone"):
            await handle.aresult(30)


def test_a_flow_in_a_trial(shop: Shop) -> None:
    with trial(shop.queue) as running:
        handle = shop.queue.enqueue_flow(shop.fetch.call("abc").then(shop.count))
        running.drain()
        assert handle.result(0) == 3


def test_a_flow_of_several_steps_of_the_store(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStorage, "limits", StorageLimits(flows=True, atomic_tasks=3))
    pages = each(shop.fetch, [f"{n}" for n in range(10)])
    handle = shop.queue.enqueue_flow(each(shop.count, pages.outputs).then(shop.report, title="t"))
    with working(shop.queue):
        assert handle.result(30) == f"t: {[1] * 10}"


def test_a_flow_is_stored_in_steps_that_count_its_gates(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStorage, "limits", StorageLimits(flows=True, flow_step=60))
    steps: list[tuple[int, int]] = []
    enqueue = MemoryStorage.enqueue

    async def noted(store: MemoryStorage, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        assert flow is not None
        steps.append((len(tasks), len(flow.gates)))
        return await enqueue(store, tasks, flow)

    monkeypatch.setattr(MemoryStorage, "enqueue", noted)
    group = each(shop.count, [b"four"] * 50).then(shop.report, title="t")
    chain = shop.clean_up.call()
    for _ in range(24):
        chain = shop.clean_up.call().after(chain)
    handles = [shop.queue.enqueue_flow(call) for call in (group, chain)]
    assert steps[0] == (51, 1), "a group within the step is stored at once"
    assert sum(tasks for tasks, _ in steps[1:]) == 25
    assert max(tasks + 5 * gates for tasks, gates in steps[1:]) <= 65, "the gate that is held comes on top"
    with working(shop.queue):
        for handle in handles:
            handle.result(30)


async def test_a_builder_that_dies_leaves_nothing_that_runs(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStorage, "limits", StorageLimits(flows=True, atomic_tasks=3))
    monkeypatch.setattr("omniq._client.flows.HOLD_SECONDS", 0.05)

    async def die(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryStorage, "release_hold", die)
    pages = each(shop.fetch, [f"{n}" for n in range(10)])
    with pytest.raises(KeyboardInterrupt):
        await shop.queue.aenqueue_flow(each(shop.count, pages.outputs).then(shop.report, title="t"))
    storage = (await shop.queue.connections.current()).storage

    async def all_are_cancelled() -> bool:
        assert await storage.claim({"default": 100}, worker="w", lease=60) == []
        await storage.recover(100)
        return {task.state for task in await shop.queue.atasks()} == {TaskState.CANCELLED}

    await await_until(all_are_cancelled, what="the end of the hold")


def _circle(shop: Shop) -> TaskCall[Any]:
    first = shop.clean_up.call()
    second = shop.clean_up.call().after(first)
    return first.after(second)


def _too_deep(shop: Shop) -> TaskCall[str]:
    inside: Any = [shop.count.call(b"").output]
    return shop.mixed.call([], (1, 2), {"a": inside})


wrong_pages: list[Any] = [b"", object()]

REFUSED: dict[str, tuple[type[Exception], str, Callable[[Shop], object]]] = {
    "an operation": (TypeError, "enqueue_flow", lambda shop: shop.count.call(b"").output + 1),
    "its truth": (TypeError, "enqueue_flow", lambda shop: bool(shop.count.call(b"").output)),
    "its length": (TypeError, "enqueue_flow", lambda shop: len(each(shop.count, [b""]).outputs)),
    "its items": (TypeError, "enqueue_flow", lambda shop: list(gather([shop.count.call(b"")]))),
    "its attributes": (TypeError, "enqueue_flow", lambda shop: shop.fetch.call("").output.hex()),
    "a plain call": (TypeError, "enqueue_flow", lambda shop: shop.report([shop.count.call(b"").output], "t")),
    "enqueue": (TypeError, "enqueue_flow", lambda shop: shop.count.enqueue(shop.fetch.call("").output)),
    "enqueue_many": (
        TypeError,
        "enqueue_flow",
        lambda shop: shop.queue.enqueue_many([shop.count.call(shop.fetch.call("").output)]),
    ),
    "an order alone": (
        TypeError,
        "enqueue_flow",
        lambda shop: shop.queue.enqueue_many([shop.clean_up.call().after(shop.fetch.call(""))]),
    ),
    "too deep": (
        TypeError,
        "too deep",
        lambda shop: shop.queue.enqueue_flow(_too_deep(shop)),
    ),
    "a circle": (ValueError, "circle", lambda shop: shop.queue.enqueue_flow(_circle(shop))),
    "deep inside": (
        SerializationError,
        "count",
        lambda shop: shop.queue.enqueue_flow(each(shop.count, wrong_pages).then(shop.report, title="t")),
    ),
    "a key of a part": (
        ValueError,
        "unique",
        lambda shop: shop.queue.enqueue_flow(shop.fetch.using(unique="a").call("").then(shop.count)),
    ),
    "no call": (TypeError, "no call", lambda shop: shop.queue.enqueue_flow(cast(Any, shop.fetch))),
    "what is no word": (ValueError, "if_failed", lambda shop: shop.clean_up.call().after(if_failed=cast(Any, "maybe"))),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_are_told_and_nothing_is_stored(shop: Shop, mistake: str) -> None:
    error, text, make = REFUSED[mistake]
    with pytest.raises(error, match=text):
        make(shop)
    assert shop.queue.stats() == []


def test_a_store_without_flows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStorage, "limits", StorageLimits(flows=False))
    with TaskQueue(f"memory://{new_id()}") as queue:

        @queue.task
        def nothing() -> None: ...

        with pytest.raises(ConfigurationError, match="MemoryStorage holds no flows"):
            queue.enqueue_flow(nothing.call())
        assert queue.stats() == []


def test_a_schedule_fires_a_flow_at_each_run(shop: Shop) -> None:
    pages = each(shop.fetch, ["a", "bb"])
    total = shop.report.call(each(shop.count, pages.outputs).outputs, title="t")
    made = shop.queue.schedule(total, Cron("0 3 * * *"), id="nightly")
    assert shop.queue.schedule(total, Cron("0 3 * * *"), id="nightly") == made, "the same words change nothing"
    assert made.task.name == f"flow:{shop.report.name}"
    with working(shop.queue):
        ends = [shop.queue.trigger_schedule("nightly").result(30) for _ in range(2)]
        assert [shop.queue.handle(one).result(30) for one in ends] == ["t: [1, 2]"] * 2
    assert len(set(ends)) == 2
    assert [len(shop.queue.handle(one).flow.tasks()) for one in ends] == [5, 5]


def test_a_declared_schedule_fires_a_flow_for_its_time(shop: Shop) -> None:
    runs: list[datetime | None] = []

    @shop.queue.task
    def noted(pages: list[bytes]) -> None:
        runs.append(current_task().scheduled_for)

    shop.queue.scheduled(Every(0.01), args=[each(shop.fetch, ["a", "b"]).outputs], id="often")(noted)
    with working(shop.queue):
        wait_until(lambda: len(runs) > 2)
    assert None not in runs
    assert len(set(runs)) == len(runs)


def test_a_run_whose_answer_is_lost_stores_its_flow_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.queue.schedule(shop.fetch.call("a").then(shop.count), Cron("0 3 * * *"), id="nightly")
    enqueue, lost = MemoryStorage.enqueue, list[str]()

    async def loses_one(storage: MemoryStorage, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> Any:
        stored = await enqueue(storage, tasks, flow)
        if flow is not None and not lost:
            lost.append(flow.id)
            raise StorageUnavailable("the answer was lost")
        return stored

    monkeypatch.setattr(MemoryStorage, "enqueue", loses_one)
    run = shop.queue.trigger_schedule("nightly")
    with working(shop.queue):
        last = run.result(30)
        assert shop.queue.handle(last).result(30) == 1
    assert [last] == lost
    assert run.task().attempt == 2
    assert shop.ran == ["fetch a", "count a"]


def test_no_run_while_the_flow_of_an_earlier_one_is_live(shop: Shop) -> None:
    paused = shop.clean_up.call().after(shop.fetch.using(queue="paused").call("a"))
    shop.queue.pause("paused")
    shop.queue.schedule(paused, Every(0.01), id="often", overlap="skip")
    with working(shop.queue):
        wait_until(lambda: bool(shop.queue.tasks(queue="paused", state="ready")))
        before = shop.queue.schedules()[0].next_run
        wait_until(lambda: shop.queue.schedules()[0].next_run != before)
        assert len(shop.queue.tasks(queue="paused")) == 1
        shop.queue.resume("paused")
        wait_until(lambda: shop.ran.count("clean up") > 1)


def test_a_schedule_of_a_flow_needs_a_store_that_holds_them(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStorage, "limits", StorageLimits(flows=False))
    with Shop().queue as queue:
        shop_count = next(one for name, one in queue.functions.items() if name.endswith(".clean_up"))
        call = shop_count.call().after(shop_count.call())
        with pytest.raises(ConfigurationError, match="MemoryStorage holds no flows"):
            queue.schedule(call, Every(60), id="often")
        assert queue.schedules() == []


def test_a_signed_schedule_fires_a_signed_flow() -> None:
    shop = Shop(signing_key="s" * 32)
    shop.queue.schedule(shop.fetch.call("a").then(shop.count), Cron("0 3 * * *"), id="nightly")
    with shop.queue, working(shop.queue):
        last = shop.queue.trigger_schedule("nightly").result(30)
        assert shop.queue.handle(last).result(30) == 1


def test_many_fed_by_many_take_one_gate(shop: Shop) -> None:
    handle = shop.queue.enqueue_flow(each(shop.count, [b"x"] * 2000).then(shop.report, title="t"))
    assert len(handle.flow.progress().gates) == 1
    task = handle.task()
    assert [reference.runs for reference in task.references] == [((task.references[0].runs[0][0], 2000),)]
    assert len(task.body) < 500, "the ids follow one another, and take no place"
