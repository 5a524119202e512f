"""The first page: how much waits and ends, how long it takes, and what needs attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen
from starlette.responses import Response

from omniq._worker.worker_info import serves
from omniq.cli.wording import plural, rough_duration
from omniq.dashboard.charts import ended_chart, waiting_chart
from omniq.dashboard.looks import Look
from omniq.dashboard.views.numbers import percentile, seconds_run
from omniq.dashboard.visit import Visit
from omniq.storage import Finding, QueueStats, Severity
from omniq.task import TaskState

__all__ = ["show"]

LATE = 30.0
"""Seconds after which a schedule that did not fire is late."""
BUSIEST = 10
"""Queues that are shown here."""
MOST_NAMED = 4
"""Things of one kind that have a line each; where there are more, one line speaks of all of them."""
SAMPLED, SAMPLE_FRESH = 1000, 10.0
FINDINGS_FRESH = 60.0


@frozen(kw_only=True)
class Concern:
    """Something that needs attention."""

    text: str
    path: str
    """The page to go on at."""
    query: dict[str, str]
    is_bad: bool = False


async def show(visit: Visit) -> Response:
    """Return the page."""
    looks = visit.dashboard.looks
    look = await looks.latest()
    sample = await looks.sample(SAMPLED, SAMPLE_FRESH)
    storage = await visit.storage()
    findings = await looks.shared("findings", FINDINGS_FRESH, storage.diagnose)
    history = await looks.past()
    buckets = history.buckets(look.now)
    ended, ended_top = ended_chart(buckets)
    waiting, waiting_top = waiting_chart(buckets)
    busiest = sorted(look.stats, key=_business, reverse=True)[:BUSIEST]
    slots = [one.about.concurrency for one in look.workers if one.about is not None]
    return visit.page(
        "overview.html",
        title="Overview",
        look=look,
        counts={state.value: look.count(state) for state in TaskState},
        rate=history.rate,
        p95=percentile([s for task in sample.tasks if (s := seconds_run(task)) is not None], 95),
        ended=ended,
        ended_top=ended_top,
        waiting=waiting,
        waiting_top=waiting_top,
        failed_lately=sum(bucket.ended[TaskState.FAILED] for bucket in buckets),
        concerns=list(_concerns(look, findings)),
        busiest=busiest,
        slots=sum(slots),
        held=sum(len(one.running) for one in look.workers),
    )


def _business(stats: QueueStats) -> tuple[int, int, int]:
    counts = stats.counts
    live = sum(number for state, number in counts.items() if not state.is_final)
    return counts.get(TaskState.READY, 0) + counts.get(TaskState.RUNNING, 0), live, sum(counts.values())


def _concerns(look: Look, findings: Sequence[Finding]) -> Iterator[Concern]:
    waiting = [one for one in look.stats if one.counts.get(TaskState.READY, 0) and not one.paused]
    unserved = [one for one in waiting if not any(serves(worker.about, one.queue) for worker in look.workers)]
    if unserved and not look.workers:
        total = sum(one.counts[TaskState.READY] for one in unserved)
        text = f"No worker is alive, and {plural(total, 'task')} wait{'s' if total == 1 else ''}: start one with"
        yield Concern(text=f"{text} omniq worker.", path="/workers", query={}, is_bad=True)
    else:
        yield from _of_queues(unserved, "No worker serves queue {}", "No worker serves {} queues ({})", is_bad=True)
    paused = [one for one in look.stats if one.paused]
    yield from _of_queues(paused, "Queue {} is paused", "{} queues are paused ({})", is_bad=False)
    late = [
        (one, seconds)
        for one in look.schedules
        if not one.paused and one.next_run is not None and (seconds := (look.now - one.next_run).total_seconds()) > LATE
    ]
    if len(late) > MOST_NAMED:
        by = rough_duration(max(seconds for _, seconds in late))
        some = _some([schedule.id for schedule, _ in late])
        text = f"{len(late):,} schedules are late ({some}), by up to {by}: does a worker run a scheduler?"
        yield Concern(text=text, path="/schedules", query={}, is_bad=True)
        late = []
    for schedule, seconds in late:
        text = f"Schedule {schedule.id} is late by {rough_duration(seconds)}: does a worker run a scheduler?"
        yield Concern(text=text, path="/schedules", query={"q": schedule.id}, is_bad=True)
    for finding in findings:
        if finding.severity is not Severity.OK:
            is_bad = finding.severity is Severity.ERROR
            yield Concern(text=f"{finding.subject}: {finding.message}", path="/doctor", query={}, is_bad=is_bad)


def _of_queues(queues: Sequence[QueueStats], one: str, many: str, *, is_bad: bool) -> Iterator[Concern]:
    if len(queues) > MOST_NAMED:
        ready = sum(stats.counts.get(TaskState.READY, 0) for stats in queues)
        text = many.format(f"{len(queues):,}", _some([stats.queue for stats in queues]))
        yield Concern(text=f"{text}: {plural(ready, 'ready task')}.", path="/queues", query={}, is_bad=is_bad)
        return
    for stats in queues:
        text = f"{one.format(stats.queue)}: {plural(stats.counts.get(TaskState.READY, 0), 'ready task')}."
        yield Concern(text=text, path="/queues", query={"q": stats.queue}, is_bad=is_bad)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}, …"
