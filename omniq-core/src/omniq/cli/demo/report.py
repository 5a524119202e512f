"""How the demo ended: the figures, and the verdict on every result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from attrs import frozen

from omniq.cli.columns import Column, Table
from omniq.cli.demo.measuring import Function, Measures, differences, longest_functions, module_name
from omniq.cli.terminal import Screen
from omniq.task import Task, TaskState

__all__ = ["Report", "conclude", "problems"]

SHOWN_PROBLEMS = 10
_LONGEST: tuple[Column[tuple[Path, Function]], ...] = (
    Column(title="module", cell=lambda row: module_name(row[0])),
    Column(title="function", cell=lambda row: row[1].name),
    Column(title="lines", cell=lambda row: f"{row[1].lines:,}", right=True),
)


@frozen(kw_only=True)
class Report:
    """How it ended, as the store's records tell it."""

    tasks: Sequence[Task]
    results: Mapping[Path, Measures | None]
    """What the workers found out; None where a task has no result."""
    caught: frozenset[str]
    """Ids of the tasks that the killed worker ran when it died."""
    recovered: Sequence[str]
    """Ids of tasks, once for each time that one was taken back from a dead worker."""

    @property
    def lost(self) -> int:
        """How many tasks have no result."""
        return sum(task.state is not TaskState.SUCCEEDED for task in self.tasks)

    @property
    def attempts(self) -> int:
        """How many attempts were begun."""
        return sum(task.attempt for task in self.tasks)

    @property
    def retried(self) -> int:
        """How many attempts followed one that failed."""
        return self.attempts - len(self.tasks) - len(self.recovered)

    @property
    def seconds(self) -> float:
        """How long it took from the first enqueue to the last end, by the store's clock."""
        ends: list[datetime] = [task.finished_at for task in self.tasks if task.finished_at is not None]
        return (max(ends) - min(task.created_at for task in self.tasks)).total_seconds() if ends else 0.0


def problems(report: Report, expected: Mapping[Path, Measures]) -> list[str]:
    """Return a sentence for everything that is not as it must be.

    :param expected: the results of a plain loop.
    """
    told = differences(expected, report.results)
    told += [
        f"task {task.id} ended as {task.state}: {task.error.message if task.error else 'no error was recorded'}"
        for task in report.tasks
        if task.state is not TaskState.SUCCEEDED
    ]
    forgotten = report.caught.difference(report.recovered)
    told += [f"task {task_id} of the killed worker was not taken back" for task_id in sorted(forgotten)]
    return told


def conclude(report: Report, expected: Mapping[Path, Measures], seconds: float, screen: Screen) -> int:
    """Show how it ended.

    :param expected: the results of a plain loop.
    :param seconds: how long that loop took.
    :return: the exit code: 0 if everything is as it must be, else 1.
    """
    for line in _summary(report, screen):
        screen.say(line)
    told = problems(report, expected)
    if not told:
        mark = screen.styled("✓" if screen.can_show("✓") else "OK:", "green")
        screen.say(f"  {mark} all {len(expected):,} results are the same as those of a plain loop ({seconds:.1f} s)")
        return 0
    screen.say(screen.styled(f"  not as it must be ({len(told):,}):", "red"))
    for text in told[:SHOWN_PROBLEMS]:
        screen.say(f"    {text}")
    if len(told) > SHOWN_PROBLEMS:
        screen.say("    and so on")
    return 1


def _summary(report: Report, screen: Screen) -> list[str]:
    rate = len(report.tasks) / report.seconds if report.seconds else 0.0
    figures = [
        ("tasks", len(report.tasks), f"in {report.seconds:.1f} s: {rate:.0f} tasks per second"),
        ("attempts", report.attempts, ""),
        ("retried", report.retried, "after an attempt that failed"),
        ("recovered", len(report.recovered), "from the worker that was killed"),
        ("lost", report.lost, ""),
    ]
    return [
        "",
        *(
            f"  {name:<10} {screen.styled(f'{number:>6,}', 'bold')}   {screen.styled(note, 'dim')}".rstrip()
            for name, number, note in figures
        ),
        "",
        f"  {screen.styled('the ten longest functions', 'bold')}",
        *(f"  {line}" for line in Table(_LONGEST, screen).lines(longest_functions(report.results))),
        "",
    ]
