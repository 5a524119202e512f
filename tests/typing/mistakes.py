"""What a type checker must refuse. Each ignore is needed: ``warn_unused_ignores`` makes one that is not an error."""

from __future__ import annotations

from pathlib import Path

import omniq
from omniq import Exponential, TaskHandle, TaskQueue, each, gather
from tests.typing.usage import count, download, fetch, queue, report, resize, scale, summary


def a_name_that_is_not_there() -> None:
    omniq.Tusk  # type: ignore[attr-defined]  # no such name  # noqa: B018  # the expression is the point


def wrong_arguments(url: str) -> None:
    fetch.enqueue(5)  # type: ignore[arg-type]  # an int for a str
    fetch.enqueue()  # type: ignore[call-arg]  # an argument is missing
    fetch.enqueue(url, 5)  # type: ignore[call-arg]  # one too many
    fetch.enqueue(link=url)  # type: ignore[call-arg]  # no such name
    resize.enqueue(Path(url), width="wide")  # type: ignore[arg-type]  # a str for an int
    resize.call("a.png")  # type: ignore[arg-type]  # a str for a Path
    resize("a.png")  # type: ignore[arg-type]  # a str for a Path
    queue.enqueue(resize, "a.png")  # type: ignore[call-overload]  # a str for a Path
    queue.enqueue(fetch)  # type: ignore[call-overload]  # an argument is missing
    fetch.using(queue="slow").enqueue(5)  # type: ignore[arg-type]  # an int for a str
    queue.enqueue_many([fetch])  # type: ignore[arg-type]  # a function for a call of it


async def wrong_arguments_in_coroutines(url: str) -> None:
    await fetch.aenqueue(5)  # type: ignore[arg-type]  # an int for a str
    await queue.aenqueue(fetch, url=5)  # type: ignore[call-overload]  # an int for a str
    fetch.aenqueue(url)  # type: ignore[unused-coroutine]  # never awaited
    await fetch.enqueue(url)  # type: ignore[misc]  # the forgotten a: it would wait for the result
    await queue.enqueue(fetch, url)  # type: ignore[misc]  # likewise


def wrong_results(url: str) -> None:
    text: str = fetch.enqueue(url).result()  # type: ignore[assignment]  # an int for a str
    handle: TaskHandle[str] = resize.enqueue(Path(text))  # type: ignore[assignment]  # a handle of a Path
    handle.result(timeout="soon")  # type: ignore[arg-type]  # a str for seconds


def wrong_options() -> None:
    fetch.using(color="red")  # type: ignore[call-arg]  # no such option
    fetch.using(priority="high")  # type: ignore[arg-type]  # a str for an int
    fetch.using(delay="soon")  # type: ignore[arg-type]  # a str for a duration
    Exponential(delay="soon")  # type: ignore[arg-type]  # a str for a duration
    TaskQueue("memory://", color="red")  # type: ignore[call-arg]  # no such option
    queue.run_worker(color="red")  # type: ignore[call-arg]  # no such option
    queue.task(report, queue="slow")  # type: ignore[call-overload]  # options with a function: queue.task(queue=...)(function)


def wrong_flows() -> None:
    summary.call([download.call("u").output], title="x")  # type: ignore[list-item]  # bytes for ints
    count.call(count.call(b"").output)  # type: ignore[arg-type]  # an int for bytes
    download.call("u").then(download)  # type: ignore[arg-type]  # bytes for a text
    download.call("u").then(summary, title="x")  # type: ignore[arg-type]  # bytes for a list
    count.call(download.call("u"))  # type: ignore[arg-type]  # a call for its output
    summary.call(gather([download.call("u")]), title="x")  # type: ignore[list-item]  # bytes for ints
    each(count, ["a"])  # type: ignore[arg-type]  # texts for bytes
    each(scale, [b""])  # type: ignore[call-arg]  # an argument is missing
    each(scale, [b""], "x")  # type: ignore[arg-type]  # a text for an int
    each(count, [b""]).then(summary)  # type: ignore[call-arg]  # an argument is missing
    summary.call(each(download, ["u"]).outputs, title="x")  # type: ignore[arg-type]  # bytes for ints
