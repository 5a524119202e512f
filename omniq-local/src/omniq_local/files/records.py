"""One task as it is in its file, or shall be: where the file is, and where it is found."""

from __future__ import annotations

from attrs import define

from omniq.limit import PLAIN, Limited, line_id
from omniq.storage.times import LATEST, from_micros
from omniq.task import LimitedTask, NewTask, Progress, StoredTask, TaskError, TaskState
from omniq_local.files.names import Member, home_path, id_path, member_path, place_key, time_key, token
from omniq_local.files.times import after, when

__all__ = ["ENDED", "LINED", "Record", "new_record"]

LINED = "lined"
"""The folder of a queue's ready tasks that have a key or a named limit; each is in that of its line, too."""
ENDED = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})


@define(eq=False)
class Record:
    """One task as it is in its file, or shall be."""

    order: NewTask
    sequence: int
    created_at: int
    run_at: int
    state: TaskState = TaskState.READY
    attempt: int = 0
    delivery: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    expires_at: int | None = None
    lease_until: int | None = None
    worker: str | None = None
    error: TaskError | None = None
    progress: Progress | None = None
    cancel_requested: bool = False
    result: bytes | None = None
    attempt_log: str = ""
    opening_delay: float | None = None
    first_at: int | None = None

    id_token: str = ""
    head: bytes = b""
    """The first line."""
    status: bytes = b""
    """The second line as it is in the file; empty for a task that has none yet."""
    was: tuple[TaskState, str, str] | None = None
    """State, key and key of expiry as they are in the store; None for a task that is not in it yet."""
    aim: tuple[TaskState, str, str] = (TaskState.READY, "", "")
    """The same as the change under way is to make them."""
    removed: bool = False
    line: str = PLAIN
    """The line in which it stands while it is ready, see :func:`omniq.limit.line_id`."""
    stand_in: StoredTask | None = None
    """What is shown in place of a task that cannot be read. Such a record only says that it has failed."""

    @property
    def home(self) -> str:
        """Where the file is all its life."""
        return home_path(self.sequence, self.id_token)

    @property
    def by_id(self) -> str:
        """Where it is found by its id."""
        return id_path(self.id_token)

    @property
    def key(self) -> str:
        """Its key in the folder of its state."""
        state = self.state
        if state is TaskState.READY:
            return place_key(self.order.priority, self.run_at, self.sequence)
        if state is TaskState.SCHEDULED:
            return time_key(self.run_at, self.sequence)
        if state is TaskState.RUNNING:
            assert self.lease_until is not None
            return time_key(self.lease_until, self.sequence)
        if state is TaskState.BLOCKED:
            return time_key(self.created_at, self.sequence)
        assert self.finished_at is not None
        if self.order.flow is not None:
            # It is kept as long as its flow.
            return time_key(LATEST, self.sequence)
        return time_key(after(self.finished_at, self.order.result_ttl), self.sequence)

    @property
    def has_key(self) -> bool:
        """Whether it has its unique key, if it has one: until it ends; a debounced one until it is started."""
        return self.state not in ENDED and (self.first_at is None or self.delivery == 0)

    def shelf_in(self, state: TaskState) -> str:
        """Return the folder that it is in, in a state."""
        return LINED if self.line and state is TaskState.READY else state.value

    @property
    def expiry_key(self) -> str:
        """Its key among those that expire; empty if it does not."""
        if self.expires_at is None or self.state not in (TaskState.READY, TaskState.SCHEDULED):
            return ""
        return time_key(self.expires_at, self.sequence)

    def member(self, state: TaskState | None = None) -> Member:
        """Return the parts of the name that a task of a flow has for that, in its own or another state."""
        return Member(self.order.behind, (state or self.state).value, self.sequence, self.id_token)

    def by_flow(self, state: TaskState) -> str:
        """Return where a task of a flow is found by that, its gate and a state."""
        assert self.order.flow is not None
        return member_path(token(self.order.flow), self.member(state))

    def stand(self) -> tuple[TaskState, str, str]:
        """Return state, key and key of expiry as the record now says."""
        return self.state, self.key, self.expiry_key

    def task(self) -> StoredTask:
        """Return the task."""
        if self.stand_in is not None:
            return self.stand_in
        order = self.order
        created = from_micros(self.created_at)
        task = StoredTask(
            id=order.id,
            queue=order.queue,
            name=order.name,
            body=order.body,
            priority=order.priority,
            state=self.state,
            attempt=self.attempt,
            delivery=self.delivery,
            max_retries=order.max_retries,
            created_at=created,
            run_at=created if self.run_at == self.created_at else from_micros(self.run_at),
            started_at=None if self.started_at is None else from_micros(self.started_at),
            finished_at=None if self.finished_at is None else from_micros(self.finished_at),
            expires_at=None if self.expires_at is None else from_micros(self.expires_at),
            lease_until=None if self.lease_until is None else from_micros(self.lease_until),
            worker=self.worker,
            unique=order.unique,
            tags=order.tags,
            result_ttl=order.result_ttl,
            flow=order.flow,
            behind=order.behind,
            feeds=order.feeds,
            opening_delay=self.opening_delay,
            error=self.error,
            progress=self.progress,
            cancel_requested=self.cancel_requested,
            result_payload=self.result,
            attempt_log=self.attempt_log,
        )
        if not self.line and self.first_at is None:
            return task
        first_at = None if self.first_at is None else from_micros(self.first_at)
        return LimitedTask(**vars(task), limited=Limited(order.key, order.limit, first_at))


def new_record(order: NewTask, now: int) -> Record:
    """Return the record of a task that is enqueued at a moment. It has no sequence number yet.

    :raises ValueError: if it cannot be written.
    """
    # Nothing is ready before it is there: a time in the past gets no place ahead of others.
    run_at = now if order.run_at is None else max(when(order.run_at, now), now)
    return Record(
        order=order,
        sequence=0,
        created_at=now,
        run_at=run_at,
        state=TaskState.SCHEDULED if run_at > now else TaskState.READY,
        expires_at=None if order.expires is None else when(order.expires, now),
        id_token=token(order.id),
        line=line_id(order.queue, order.key, order.limit),
    )
