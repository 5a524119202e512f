"""One change of the store: what becomes of tasks by it, and the actions that make it so."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from attrs import evolve

from omniq.storage.escaping import get_logger
from omniq.storage.times import from_micros
from omniq.task import StoredTask, TaskError, TaskState
from omniq_local.files.encoding import dump_head, dump_status
from omniq_local.files.flows import Flows
from omniq_local.files.journal import Action, Displaced, Restored
from omniq_local.files.lookup import Lookup
from omniq_local.files.names import HOME_SIZE, unique_path
from omniq_local.files.queues import EXPIRING, Queue
from omniq_local.files.records import ENDED, LINED, Record
from omniq_local.files.state_folders import StateFolder

if TYPE_CHECKING:
    from omniq_local.files.folder import Folder

__all__ = ["Transaction"]

_log = get_logger("omniq.files")

RUNNING = TaskState.RUNNING


class Transaction(Lookup):
    """What one operation reads and changes, all under the store's lock. Nothing is written before :meth:`complete`.

    :param folder: the store.
    :param now: microseconds.
    """

    def __init__(self, folder: Folder, now: int) -> None:
        super().__init__(folder, now)
        self.sequence = folder.control.sequence
        self.ready: Counter[str] = Counter()
        """How many tasks became ready, by queue."""
        self.woken: set[str] = set()
        """Queues whose waiters are all to look again."""
        self.schedules_changed = False
        self.flows_changed = False
        """Whether it is another time at which there is something to do about flows."""
        self.follows = False
        """Whether there is something to do about one at once."""
        self.limit_changes: dict[tuple[str, str], str] = {}
        """Changes of what is kept of limits, by kind and name, each a line of the log."""
        self.limits_changed = False
        self.released: list[Record] = []
        """Tasks that were given back unstarted."""
        self.writes: list[Action] = []
        """Actions on other files than tasks."""
        self._unique_changed: set[str] = set()
        self._layout = 0
        self._flows: Flows | None = None
        self._ends: list[Record] = []
        """Tasks of flows that this change ends, or removes before their ends."""

    @property
    def is_news(self) -> bool:
        """Whether what was changed may be waited for."""
        return bool(+self.ready or self.ended or self.woken or self.schedules_changed or self.follows)

    @property
    def flows(self) -> Flows:
        """The flows of this change, and its limits."""
        if self._flows is None:
            self._flows = Flows(self)
        return self._flows

    # Changing

    def add(self, record: Record) -> None:
        """Take a new task in."""
        self.sequence += 1
        record.sequence = self.sequence
        record.head = dump_head(record)
        self._records[record.order.id] = record
        self._touched[record.sequence] = record
        if record.order.unique is not None and record.has_key:
            self._set_key(record.order.unique, record.order.id)

    def touch(self, record: Record) -> None:
        """Note that a task changes."""
        self._touched[record.sequence] = record

    def end(self, record: Record, state: TaskState, error: TaskError | None = None) -> None:
        """End a task."""
        if record.order.flow is not None:
            self._ends.append(record)
        self._free_key(record)
        record.state = state
        record.finished_at = self.now
        record.lease_until = None
        if error is not None:
            record.error = error
        self.ended.append(record.order.id)
        self._touched[record.sequence] = record

    def give_back(self, record: Record, run_at: int) -> None:
        """Make a running task wait again."""
        record.run_at = run_at
        record.state = TaskState.SCHEDULED if run_at > self.now else TaskState.READY
        record.lease_until = None
        self._touched[record.sequence] = record

    def start(self, record: Record, worker: str, until: int) -> None:
        """Have a worker run a task.

        :param until: when the lease runs out.
        """
        if record.first_at is not None and not record.delivery:
            self._free_key(record)
        record.state = TaskState.RUNNING
        record.attempt += 1
        record.delivery += 1
        record.worker = worker
        record.started_at = self.now
        record.lease_until = until
        record.progress = None
        self._touched[record.sequence] = record

    def take_key(self, record: Record) -> bool:
        """Have a task that is made live anew take its unique key; tell whether it was free."""
        key = record.order.unique
        if key is None or (record.first_at is not None and record.delivery):
            return True
        if self.holder(key) is not None:
            return False
        self._set_key(key, record.order.id)
        return True

    def remove(self, record: Record) -> None:
        """Remove a task."""
        if record.state not in ENDED:
            self._free_key(record)
            if record.order.flow is not None:
                self._ends.append(record)
        record.removed = True
        if self._flows is not None:
            self._flows.moved(record)
        self._records[record.order.id] = None
        self._touched[record.sequence] = record
        self.ended.append(record.order.id)

    def remove_name(self, path: str) -> None:
        """Remove a name of a file, whatever becomes of the file."""
        self._removals.append(("remove", path))

    def _free_key(self, record: Record) -> None:
        key = record.order.unique
        if key is not None and self.holder(key) == record.order.id:
            self._set_key(key, None)

    def _set_key(self, key: str, holder: str | None) -> None:
        path = unique_path(key)
        self._unique[path] = holder
        self._unique_changed.add(path)

    # Counting

    def running(self, queue: str) -> int:
        """Return how many tasks of a queue run, as this change leaves them so far."""
        return self.queue(queue).counts[RUNNING.value] + sum(
            (record.state is RUNNING and not record.removed) - (record.was is not None and record.was[0] is RUNNING)
            for record in self._touched.values()
            if record.order.queue == queue
        )

    def left(self, queue: str) -> int:
        """Return how many tasks without a key and named limit are no longer ready by this change."""
        return sum(
            record.order.queue == queue
            and record.was is not None
            and record.shelf_in(record.was[0]) == TaskState.READY.value
            and (record.removed or record.state is not TaskState.READY)
            for record in self._touched.values()
        )

    # Completing

    def complete(self) -> None:
        """Write everything to the store, in one step.

        :raises Restored: if a file was not there, but is now: then nothing was written, and it is to be done again.
        """
        while self._ends or self._lost or self._gone:
            ends, self._ends = [_ended(record, self.now) for record in self._ends], []
            ends, self._lost = ends + self._lost, []
            gone, self._gone = self._gone, []
            self.flows.follow(ends, gone)
        if self.folder.has_limits or any(record.line for record in self._touched.values()):
            self.flows.follow_tasks(list(self._touched.values()), self.released)
        for record in self._touched.values():
            record.aim = record.stand()
        if self._touched:
            self._make_room()
        if self._flows is not None:
            self._flows.prepare()
        made: list[Action] = []
        moves: list[Action] = []
        removals: list[Action] = list(self._removals)
        for record in self._touched.values():
            queue = self.folder.queue(record.order.queue)
            self.mark(queue)
            if record.removed:
                self._unmake(queue, record, removals)
            elif record.was is None:
                self._make(queue, record, made)
            else:
                self._alter(queue, record, made, moves, removals)
        self._keys(made, removals)
        writes = list(self.writes)
        if self._flows is not None:
            self._flows.actions(made, writes, moves, removals)
            self.flows_changed = self._flows.line_changed and self._write_queue(self.folder.flows(), writes)
        queues = [queue for queue in self._dirty.values() if self._write_queue(queue, writes)]
        if self.limit_changes:
            limit_log = self.folder.limits()
            writes += limit_log.actions(self.limit_changes.values(), self.folder.control.generation + 1)
            self.limits_changed = True
        actions = [*self._first, *made, *writes, *moves, *removals]
        if actions:
            try:
                self.folder.commit(self, actions, self._layout)
            except Displaced as displaced:
                if not self._restore(displaced):
                    raise
                raise Restored(displaced.path) from None
            self.folder.settle(
                self._touched.values(), queues, flows_changed=self.flows_changed, limits_changed=self.limits_changed
            )

    def _restore(self, displaced: Displaced) -> bool:
        """Make a task's file anew where something else is in its place, or nothing; return False if it is none's.

        It is done outside of any change: until the file has all its names again, those that it has are of one that has
        the same content.
        """
        tree, home = self.folder.tree, displaced.path
        record = next((each for each in self._touched.values() if each.home == home), None)
        if record is None or record.was is None:
            return False
        _log.error("%s/%s is gone, or no file any more; it is made anew", tree.base, home)
        if tree.exists(home):
            tree.set_aside(home)
        tree.create(home, record.head + displaced.content)
        queue = self.queue(record.order.queue)
        state, key, expiry = record.was
        tree.link(home, record.by_id)
        tree.link(home, queue.state_folders[record.shelf_in(state)].file(key, record.id_token))
        if record.line and state is TaskState.READY:
            tree.link(home, self.folder.line(record.line).file(key, record.id_token))
        if expiry:
            tree.link(home, queue.state_folders[EXPIRING].file(expiry, record.id_token))
        if record.order.flow is not None:
            tree.link(home, record.by_flow(state))
        return True

    def _make_room(self) -> None:
        """Divide sub-folders that files are to be put into the middle of, before any path is worked out."""
        for record in self._touched.values():
            if record.removed:
                continue
            state_folders = self.folder.queue(record.order.queue).state_folders
            state, key, expiry = record.aim
            old_state, old_key, old_expiry = record.was or (None, "", "")
            if key != old_key or state is not old_state:
                self.make_room_for(key, state_folders[record.shelf_in(state)])
                if record.line and state is TaskState.READY:
                    self.make_room_for(key, self.folder.line(record.line))
            if expiry and expiry != old_expiry:
                self.make_room_for(expiry, state_folders[EXPIRING])

    def make_room_for(self, key: str, state_folder: StateFolder) -> None:
        """Divide the sub-folder that a file is to be put into, if that is crowded."""
        crowded = state_folder.crowded(key)
        if crowded is not None:
            self.folder.divide(state_folder, crowded)

    def layout_changed(self) -> None:
        """Note that folders come or go."""
        self._layout += 1

    def put(self, state_folder: StateFolder, key: str, id_token: str) -> str:
        """Note that a file is put into a folder that is ordered by keys; return its path there."""
        if state_folder.opens(key):
            self._layout += 1
        if state_folder.put(key, id_token):
            state_folder.epoch = self.folder.control.generation + 1
        return state_folder.file(key, id_token)

    def _announce(self, queue: Queue, record: Record) -> None:
        state, key, _ = record.aim
        if state is TaskState.READY:
            if not record.line:  # else its line tells
                self.ready[queue.name] += 1
        elif state is TaskState.SCHEDULED:
            first = queue.state_folders[state.value].peek() if queue.counts[state.value] else None
            if first is None or key < first:
                # All are to know when there will be something, not one who may be busy by then.
                self.woken.add(queue.name)

    def _make(self, queue: Queue, record: Record, made: list[Action]) -> None:
        record.status = dump_status(record)
        home, id_token = record.home, record.id_token
        state, key, expiry = record.aim
        made.append(("create", home, record.head + record.status))
        made.append(("link", home, record.by_id))
        shelf = record.shelf_in(state)
        self._announce(queue, record)
        made.append(("link", home, self.put(queue.state_folders[shelf], key, id_token)))
        queue.counts[shelf] += 1
        if shelf == LINED:
            made.append(("link", home, self.put(self.folder.line(record.line), key, id_token)))
        if record.order.flow is not None:
            made.append(("link", home, record.by_flow(state)))
        if expiry:
            made.append(("link", home, self.put(queue.state_folders[EXPIRING], expiry, id_token)))
            queue.counts[EXPIRING] += 1

    def _alter(
        self, queue: Queue, record: Record, made: list[Action], moves: list[Action], removals: list[Action]
    ) -> None:
        assert record.was is not None
        old_state, old_key, old_expiry = record.was
        state, key, expiry = record.aim
        state_folders, id_token, home = queue.state_folders, record.id_token, record.home
        status = dump_status(record)
        moves.append(("tail", home, len(record.head), status, record.status))
        record.status = status
        if key != old_key or state is not old_state:
            self._announce(queue, record)
            old_shelf, shelf = record.shelf_in(old_state), record.shelf_in(state)
            source = state_folders[old_shelf].file(old_key, id_token)
            moves.append(("move", source, self.put(state_folders[shelf], key, id_token), home))
            queue.counts[old_shelf] -= 1
            queue.counts[shelf] += 1
            if old_shelf == LINED:
                self._leave_line(record, old_key, removals)
            if shelf == LINED:
                made.append(("link", home, self.put(self.folder.line(record.line), key, id_token)))
            if record.order.flow is not None and state is not old_state:
                moves.append(("move", record.by_flow(old_state), record.by_flow(state), home))
        if expiry != old_expiry:
            if old_expiry:
                removals.append(("remove", state_folders[EXPIRING].file(old_expiry, id_token)))
                queue.counts[EXPIRING] -= 1
            if expiry:
                made.append(("link", home, self.put(state_folders[EXPIRING], expiry, id_token)))
                queue.counts[EXPIRING] += 1

    def _unmake(self, queue: Queue, record: Record, removals: list[Action]) -> None:
        if record.was is None:
            return
        state, key, expiry = record.was
        home = record.home
        shelf = record.shelf_in(state)
        removals += [
            ("remove", queue.state_folders[shelf].file(key, record.id_token)),
            ("remove", record.by_id),
            ("remove", home),
        ]
        queue.counts[shelf] -= 1
        if shelf == LINED:
            self._leave_line(record, key, removals)
        if record.order.flow is not None:
            removals.append(("remove", record.by_flow(state)))
        if expiry:
            removals.append(("remove", queue.state_folders[EXPIRING].file(expiry, record.id_token)))
            queue.counts[EXPIRING] -= 1
        if record.sequence // HOME_SIZE < self.sequence // HOME_SIZE:
            removals.append(("clear", home.rpartition("/")[0]))

    def _leave_line(self, record: Record, key: str, removals: list[Action]) -> None:
        folder = self.folder.line(record.line)
        folder.take_away(key, record.id_token)
        removals.append(("remove", folder.file(key, record.id_token)))

    def _keys(self, made: list[Action], removals: list[Action]) -> None:
        for path in self._unique_changed:
            holder = self._unique[path]
            record = None if holder is None else self._records[holder]
            if record is None:
                removals.append(("remove", path))
            else:
                made.append(("link", record.home, path))

    def _write_queue(self, queue: Queue, actions: list[Action]) -> bool:
        content = queue.dump()
        if content == queue.raw:
            return False
        actions.append(("write", queue.path, content, queue.raw))
        queue.written = content
        return True


def _ended(record: Record, now: int) -> StoredTask:
    """Return a task whose end is to be counted: one that was removed before it as cancelled."""
    task = record.task()
    return evolve(task, state=TaskState.CANCELLED, finished_at=from_micros(now)) if record.removed else task
