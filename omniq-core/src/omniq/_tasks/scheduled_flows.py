"""Flows that a schedule fires. Each run is one task, named ``flow:`` and its last call's function, which stores them.

So a schedule is a task and a trigger to every store. The calls of the flow travel, encoded, in that task's arguments;
the ids of a run's flow follow from that task's id, so that one which runs again stores nothing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from attrs import evolve

from omniq.flow import NewFlow
from omniq.storage.body import load_content, split_body, with_header
from omniq.storage.ids import sibling_id
from omniq.storage.records import load_flow
from omniq.task import NewTask

if TYPE_CHECKING:
    from omniq._tasks.context import CurrentTask

__all__ = ["COUNTED", "FLOW_PREFIX", "flow_of_run", "is_flow_run", "load_run"]

FLOW_PREFIX = "flow:"
COUNTED = 24
"""Bits of an id that count the tasks of a flow: their ids follow one another."""


def is_flow_run(name: str) -> bool:
    """Return whether a task's name is that of one which stores a schedule's flow."""
    return name.startswith(FLOW_PREFIX)


def flow_of_run(run_id: str) -> str:
    """Return the id of the flow that a run stores, which is that of the flow's last task as well.

    :param run_id: the id of the task that stores it.
    """
    return str(UUID(int=UUID(sibling_id(run_id, 0)).int | (1 << COUNTED) - 1))


def load_run(text: str, run: CurrentTask) -> tuple[NewFlow, Sequence[NewTask]]:
    """Return the flow of one run, whose tasks are still to be signed.

    :param text: the flow, encoded by :func:`~omniq.storage.records.dump_flow`, with ids that count from 0.
    :param run: the task that stores it.
    :raises ValueError: if the text is no flow.
    """
    flow, tasks = load_flow(text)
    first = UUID(flow_of_run(run.id)).int - UUID(flow.id).int

    def moved(one: str) -> str:
        return str(UUID(int=first + UUID(one).int))

    def body_of(task: NewTask) -> bytes:
        header, _ = load_content(split_body(task.body)[1])
        references = tuple(
            evolve(one, runs=tuple((moved(start), count) for start, count in one.runs)) for one in header.references
        )
        return with_header(task.body, references=references, scheduled_for=run.scheduled_for)

    flow_id = moved(flow.id)
    return evolve(flow, id=flow_id), [
        evolve(task, id=moved(task.id), flow=flow_id, body=body_of(task)) for task in tasks
    ]
