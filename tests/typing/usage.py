"""The API as a type checker sees it: what ``make types`` reads, and nobody runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

from omniq import (
    At,
    Cron,
    CurrentTask,
    Ended,
    Every,
    Exponential,
    Fixed,
    QueueStats,
    Schedule,
    Task,
    TaskCall,
    TaskError,
    TaskFailed,
    TaskGroup,
    TaskHandle,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    each,
    gather,
    hookimpl,
)
from omniq._tasks.handle import SyncTaskHandle

queue = TaskQueue("memory://", namespace="shop", max_retries=5, retry=Fixed(timedelta(seconds=5)), timeout=30)


@queue.task(max_retries=5, retry=Exponential(delay=1, factor=2, max_delay=300, jitter=0.1), timeout=30)
async def fetch(url: str) -> int:
    current = current_task()
    assert_type(current, CurrentTask)
    assert_type(current.attempt, int)
    current.progress(1, 2, "half")
    if current.cancelled:
        current.retry(delay=timedelta(seconds=5))
    return len(url)


@queue.task
def resize(image: Path, width: int = 200) -> Path:
    return image.with_suffix(f".{width}.png")


@queue.task()
def measure(*lengths: float, unit: str = "m") -> dict[str, float]:
    return {unit: sum(lengths)}


@queue.task
async def clean_up() -> None: ...


@queue.task(schedule=Cron("0 9 * * mon", tz="Europe/Berlin"), queue="slow", priority=-10, retry_on=OSError)
def report() -> str:
    return "all is well"


async def halve(number: int) -> float:
    return number / 2


async def functions_that_travel_in_the_payload_keep_their_types() -> None:
    assert_type(queue.enqueue(lambda number: int(number) + 1, 3), SyncTaskHandle[int])
    assert_type(queue.enqueue(halve, 3), SyncTaskHandle[float])
    assert_type(await queue.aenqueue(halve, number=3), TaskHandle[float])
    assert_type(await queue.aenqueue(str, 3), TaskHandle[str])


def calling_a_task_runs_its_function() -> None:
    assert_type(resize(Path("a.png")), Path)
    assert_type(measure(1, 2, unit="km"), dict[str, float])


async def calling_a_coroutine_task_runs_its_coroutine() -> None:
    assert_type(await fetch("https://a.example"), int)


def a_handle_is_a_handle_however_it_came_to_be() -> TaskHandle[Path]:
    return resize.enqueue(Path("a.png"))


def handles_know_the_result() -> None:
    assert_type(resize.enqueue(Path("a.png")), SyncTaskHandle[Path])
    assert_type(resize.enqueue(Path("a.png"), width=100).result(timeout=10), Path)
    assert_type(fetch.enqueue("https://a.example").result(), int)
    assert_type(measure.enqueue(1, 2.5, unit="km"), SyncTaskHandle[dict[str, float]])
    assert_type(clean_up.enqueue(), SyncTaskHandle[None])
    assert_type(report.enqueue().id, str)
    assert_type(queue.enqueue(resize, Path("a.png"), width=100), SyncTaskHandle[Path])
    assert_type(queue.enqueue(fetch, "https://a.example"), SyncTaskHandle[int])
    assert_type(resize.enqueue(Path("a.png")).task(), Task)
    assert_type(resize.enqueue(Path("a.png")).cancel(), bool)
    assert_type(queue.handle("an-id"), TaskHandle[Any])


async def handles_know_the_result_in_coroutines_too() -> None:
    handle = await fetch.aenqueue("https://a.example")
    assert_type(handle, TaskHandle[int])
    assert_type(await handle, int)
    assert_type(await handle.aresult(timeout=1.5), int)
    assert_type(await handle.atask(), Task)
    assert_type(await handle.acancel(), bool)
    assert_type(await queue.aenqueue(resize, Path("a.png")), TaskHandle[Path])
    assert_type(await resize.using(delay=5).aenqueue(Path("a.png")), TaskHandle[Path])


def options_keep_the_signature() -> None:
    slow = resize.using(queue="slow", priority=10, delay=timedelta(minutes=1), unique="a", tags=["pictures"])
    assert_type(slow.enqueue(Path("a.png"), 300), SyncTaskHandle[Path])
    assert_type(slow(Path("a.png")), Path)
    later = fetch.using(run_at=datetime(2026, 3, 29, tzinfo=UTC), expires=60, max_retries=0, timeout=5, result_ttl=60)
    assert_type(later.enqueue("https://a.example"), SyncTaskHandle[int])


def calls_travel_in_batches() -> None:
    assert_type(resize.call(Path("a.png")), TaskCall[Path])
    assert_type(queue.enqueue_many([resize.call(Path("a.png")), resize.call(Path("b.png"), 5)]), list[TaskHandle[Path]])
    assert_type(queue.enqueue_many(fetch.call(url) for url in ("a", "b")), list[TaskHandle[int]])


async def calls_travel_in_batches_in_coroutines_too() -> None:
    assert_type(await queue.aenqueue_many([fetch.call("https://a.example")]), list[TaskHandle[int]])


def records_and_control() -> None:
    task = queue.get("an-id")
    assert_type(task, Task | None)
    if task is not None:
        assert_type(task.state, TaskState)
        assert_type(task.error, TaskError | None)
        assert_type(task.started_at, datetime | None)
        assert_type(task.tags, tuple[str, ...])
    assert_type(queue.cancel("an-id"), bool)
    assert_type(queue.retry("an-id"), bool)
    assert_type(queue.delete("an-id"), bool)
    assert_type(queue.purge("slow", state="failed"), int)
    assert_type(queue.purge("slow", TaskState.FAILED), int)
    assert_type(queue.pause("slow"), bool)
    assert_type(queue.resume("slow"), bool)
    assert_type(queue.stats(), list[QueueStats])


async def records_and_control_in_coroutines_too() -> None:
    assert_type(await queue.aget("an-id"), Task | None)
    assert_type(await queue.acancel("an-id"), bool)
    assert_type(await queue.apurge("slow"), int)
    assert_type(await queue.astats(), list[QueueStats])


@queue.scheduled(Every(60), args=["https://a.example"], id="often", overlap="skip", jitter=timedelta(seconds=3))
@queue.scheduled(
    Cron("@daily"), kwargs={"url": "https://b.example"}, misfire="all", start=datetime(2026, 3, 29, tzinfo=UTC)
)
@queue.task(schedule=[])
async def crawl(url: str) -> int:
    return len(url)


@queue.scheduled(Every(60))
def sweep(days: int = 3) -> str:
    return "swept" * days


async def scheduled_functions() -> None:
    assert_type(crawl.enqueue("https://a.example"), SyncTaskHandle[int])
    assert_type(await crawl("https://a.example"), int)
    assert_type(sweep.enqueue(days=1), SyncTaskHandle[str])
    assert_type(sweep(), str)
    assert_type(current_task().scheduled_for, datetime | None)


def schedules() -> None:
    weekly = queue.schedule(fetch.call("https://a.example"), Cron("0 9 * * mon", tz="Europe/Berlin"), id="monday")
    assert_type(weekly, Schedule)
    queue.schedule(report.call(), Every(timedelta(hours=1)), id="hourly", misfire="skip", overlap="skip", jitter=5)
    queue.schedule(report.call(), At(datetime(2026, 3, 29, tzinfo=UTC)), id="once")
    assert_type(queue.schedules(), list[Schedule])
    assert_type(queue.pause_schedule("monday"), bool)
    assert_type(queue.resume_schedule("monday"), bool)
    assert_type(queue.trigger_schedule("monday"), TaskHandle[Any])
    assert_type(queue.delete_schedule("monday"), bool)


async def workers() -> None:
    async with queue, queue.worker(queues=["a", "b"], concurrency=10, lease=30, grace=timedelta(seconds=5)) as worker:
        assert_type(worker, Worker)
    async with queue.worker(queues={"a": 3, "b": 1}, scheduler=False, recover_every=10):
        pass


def a_worker_that_blocks() -> None:
    with queue as opened:
        assert_type(opened, TaskQueue)
        opened.run_worker(concurrency=100)


def failures(handle: TaskHandle[int]) -> None:
    try:
        handle.result()
    except TaskFailed as failed:
        assert_type(failed.error, TaskError)
        assert_type(failed.error.traceback, str)


@hookimpl
def omniq_task_failed(task: Task, worker: str, error: TaskError) -> None:
    assert_type(omniq_task_failed(task, worker, error), None)  # the marker keeps the signature


@queue.task
def download(url: str) -> bytes:
    return url.encode()


@queue.task
async def count(page: bytes) -> int:
    assert_type(current_task().spawn(count.call(b"")), SyncTaskHandle[int])
    assert_type(await current_task().aspawn(count.call(b"")), TaskHandle[int])
    return len(page)


@queue.task
def scale(page: bytes, width: int, height: int = 1) -> int:
    return len(page) * width * height


@queue.task
def summary(counts: list[int], title: str) -> str:
    return f"{title}: {counts}"


@queue.task
def save(number: int, path: str) -> None: ...


@queue.task
def audit(ends: list[Ended[int]]) -> None:
    for end in ends:
        assert_type(end.ok, bool)
        assert_type(end.value(), int)


async def flows() -> None:
    pages = each(download, ["a", "b"])
    assert_type(pages, TaskGroup[bytes])
    counts = each(count, pages.outputs)
    total = summary.call(counts.outputs, title="words")
    assert_type(total, TaskCall[str])
    assert_type(queue.enqueue_flow(total), SyncTaskHandle[str])
    handle = await queue.aenqueue_flow(total)
    assert_type(handle, TaskHandle[str])
    assert_type(handle.flow.progress().counts[TaskState.FAILED], int)
    assert_type(handle.flow.progress().counts["failed"] + queue.stats()[0].counts["ready"], int)
    assert_type(await handle.flow.atasks(), list[Task])
    assert_type(download.call("u").then(count).then(save, path="x"), TaskCall[None])
    assert_type(each(scale, [b""], 3, height=2), TaskGroup[int])
    assert_type(counts.then(summary, title="t"), TaskCall[str])
    single = [count.call(download.call(url).output) for url in ["a"]]
    assert_type(summary.call(gather(single), title="x"), TaskCall[str])
    audit.call(counts.outcomes)
    assert_type(save.call(1, "x").after(total, *single, if_failed="run"), TaskCall[None])
