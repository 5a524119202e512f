"""Cancels, retries, brings forward and removes tasks on request, and holds up queues."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from omniq.task import TaskState
from omniq_nats.entries import Entry, entry_in_overflow, entry_of
from omniq_nats.flow_steps import Stepped
from omniq_nats.flows import Flows
from omniq_nats.names import PAUSED
from omniq_nats.queue_state import CANCELLED_AHEAD, REMOVED_AHEAD, QueueState
from omniq_nats.queue_state_store import QueueStateStore, holder_of
from omniq_nats.removal import STEP, Removal
from omniq_nats.standing import ENDED, find_holding, stand, stands
from omniq_nats.task_batches import TaskBatch
from omniq_nats.task_lookup import Place
from omniq_nats.transport import Write

__all__ = ["Control"]


SHARE = 0.5
"""How much of the largest message a queue state may take: what was cancelled must not keep claims from coming to it."""

Members = Callable[[Sequence[str]], Awaitable[list[bool]]]
"""Does something to tasks of flows, and gives the answer for each."""

READY, SCHEDULED, RUNNING = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING


class Control:
    """Does what is asked for from outside.

    :param state_store: of the storage.
    :param removal: takes away what was removed.
    :param flows: does it with tasks of flows.
    """

    def __init__(self, state_store: QueueStateStore, removal: Removal, flows: Flows) -> None:
        self._removal = removal
        self._flows = flows
        self._state_store = state_store
        self._transport = state_store.transport
        self._names = state_store.names

    async def _each(
        self,
        ids: Sequence[str],
        act: Callable[[QueueState, TaskBatch, int], Awaitable[tuple[bool, bool]]],
        members: Members | None = None,
    ) -> tuple[list[bool], dict[str, list[str]]]:
        """Do something to tasks, those of a queue in one step, or in several if they are many.

        :param act: gives the answer for a task, and whether it changed the queue state.
        :param members: does it to those of flows; None: they are as others.
        :return: the answers, and by queue the ids of the tasks for which it was yes.
        """
        answers: list[bool] = []
        done: defaultdict[str, list[str]] = defaultdict(list)
        for start in range(0, len(ids), STEP):
            some, yes = await self._step(ids[start : start + STEP], act, members)
            answers += some
            for queue, task_ids in yes.items():
                done[queue] += task_ids
        return answers, done

    async def _step(
        self,
        ids: Sequence[str],
        act: Callable[[QueueState, TaskBatch, int], Awaitable[tuple[bool, bool]]],
        members: Members | None,
    ) -> tuple[list[bool], dict[str, list[str]]]:
        # What is retried takes no more room than it had: a full stream is no reason to refuse any of it.
        places = await self._state_store.task_lookup.locate(ids)
        by_queue: defaultdict[str, list[tuple[int, Place]]] = defaultdict(list)
        of_flows: list[int] = []
        for number, task_id in enumerate(ids):
            if task_id in places and members is not None and places[task_id][0].flow is not None:
                of_flows.append(number)
            elif task_id in places:
                by_queue[places[task_id][0].queue].append((number, places[task_id]))
        answers = [False] * len(ids)
        if of_flows and members is not None:
            told = await members([ids[number] for number in of_flows])
            for number, answer in zip(of_flows, told, strict=True):
                answers[number] = answer
        for queue, some in by_queue.items():

            async def step(
                queue_state: QueueState, some: list[tuple[int, Place]] = some
            ) -> tuple[dict[int, bool], bool]:
                told = {}
                changed = await self._take_from_shelves(queue_state, [place for _, place in some])
                for number, (batch, index) in some:
                    told[number], did = await act(queue_state, batch, index)
                    changed = changed or did
                return told, changed

            for number, answer in (await self._state_store.change(queue, step, share=SHARE, frees=True)).items():
                answers[number] = answer
        done: defaultdict[str, list[str]] = defaultdict(list)
        for task_id, answer in zip(ids, answers, strict=True):
            if answer:
                done[places[task_id][0].queue].append(task_id)
        return answers, done

    async def _take_from_shelves(self, queue_state: QueueState, places: Sequence[Place]) -> bool:
        if not queue_state.overflow:
            return False
        found, end_records = await stands(self._state_store, queue_state, places)
        wanted = {
            (batch.seq, index): entry_in_overflow(batch, index, end_records.get((batch.seq, index))).key
            for (batch, index), how in zip(places, found, strict=True)
            if how is SCHEDULED
        }
        await self._state_store.overflow.take_out(queue_state, wanted)
        return bool(wanted)

    async def cancel(self, ids: Sequence[str]) -> tuple[list[bool], list[str]]:
        """Do :meth:`omniq.storage.Storage.cancel`.

        :return: the answers, and the ids that may have ended.
        """

        async def act(queue_state: QueueState, batch: TaskBatch, index: int) -> tuple[bool, bool]:
            how = stand(queue_state, batch, index)
            now = self._state_store.clock.now()
            if isinstance(how, Entry):
                if how.until is not None:
                    changed, how.cancel = not how.cancel, True
                    return True, changed
                # The error of its latest attempt stays with it.
                known = await self._state_store.errors(queue_state, [how])
                queue_state.withdraw(how)
                queue_state.cancel_slot(how, now, known.get(how.id))
                return True, True
            if how is READY:
                entry = entry_of(batch, index)
                known = await self._state_store.errors(queue_state, [entry])
                queue_state.leave_out(batch, index, CANCELLED_AHEAD)
                queue_state.cancel_slot(entry, now, known.get(entry.id))
                return True, True
            return False, False

        ended: list[str] = []
        answers, done = await self._each(ids, act, _through(self._flows.cancel, ended))
        return answers, [*(task_id for some in done.values() for task_id in some), *ended]

    async def retry(self, ids: Sequence[str]) -> list[bool]:
        """Do :meth:`omniq.storage.Storage.retry`."""

        async def act(queue_state: QueueState, batch: TaskBatch, index: int) -> tuple[bool, bool]:
            if stand(queue_state, batch, index) is not ENDED:
                return False, False
            end_record = (await self._state_store.end_records(queue_state, [(batch, index)])).get((batch.seq, index))
            if (
                end_record is None
                or end_record.is_torn
                or end_record.state not in (TaskState.FAILED, TaskState.CANCELLED)
            ):
                return False, False
            entry = entry_of(batch, index)
            unique, limited = batch.rows[index][4], batch.limited(index)
            if limited is not None and limited.first_at is not None and end_record.delivery > 0:
                unique = None  # a debounced task has let its key go when it was started
            if unique is not None and not await self._take_key(queue_state, unique, entry.id):
                return False, False
            now = self._state_store.clock.now()
            entry.at, entry.attempt = now, 0
            entry.delivery, entry.worker, entry.started = end_record.delivery, end_record.worker, end_record.started
            if not end_record.keeps_expiry or entry.is_expired(now):
                entry.expires, entry.expired_order = None, True
            entry.has_fate = True
            queue_state.uncount(batch, index, end_record)
            if queue_state.is_ahead(batch.line, batch.seq, index):
                # It waits from now on; claims are to leave it out where it was.
                queue_state.leave_out(batch, index, CANCELLED_AHEAD)
            # Its page is to say that it has not ended, even where the queue state is lost.
            queue_state.keep_error(entry, now, end_record)
            entry.has_error = end_record.has_left
            queue_state.put_back(entry)
            return True, True

        answers: list[bool] = []
        for task_id in ids:
            # One by one: of two with one key the first is to get it.
            (answer,), done = await self._each([task_id], act, _through(self._flows.retry, []))
            answers.append(answer)
            for queue in done:
                await self._transport.tell(self._names.work(queue), b"0")
        return answers

    async def run_now(self, ids: Sequence[str]) -> list[bool]:
        """Do :meth:`omniq.storage.Storage.run_now`."""

        async def act(queue_state: QueueState, batch: TaskBatch, index: int) -> tuple[bool, bool]:
            how = stand(queue_state, batch, index)
            entry = entry_of(batch, index) if how is READY else how
            now = self._state_store.clock.now()
            if not isinstance(entry, Entry) or entry.until is not None or entry.at <= now:
                return False, False
            known = await self._state_store.errors(queue_state, [entry])
            if how is READY:
                # It waits from now on; claims are to leave it out where it was.
                queue_state.leave_out(batch, index, CANCELLED_AHEAD)
            else:
                queue_state.withdraw(entry)
            # That it waits since another time than it was enqueued for is told by an end record, wherever it is kept.
            entry.at, entry.has_fate = now, True
            queue_state.keep_error(entry, now, known.get(entry.id))
            queue_state.put_back(entry)
            return True, True

        answers, done = await self._each(ids, act)
        for queue in done:
            await self._transport.tell(self._names.work(queue), b"0")
        return answers

    async def _take_key(self, queue_state: QueueState, unique: str, task_id: str) -> bool:
        subject = self._names.key(unique)
        stored = await self._transport.last([subject])
        if stored:
            holder = holder_of(stored[0].data)
            entry = None if holder in (None, task_id) else queue_state.running.get(holder or "")
            entry = entry or (None if holder in (None, task_id) else queue_state.waiting.get(holder or ""))
            if entry is not None and await self._keeps_key(queue_state, entry):
                return False
            if holder is not None and holder != task_id and await find_holding(self._state_store, [holder]):
                return False
        told = json.dumps([task_id]).encode()
        queue_state.also.append(Write(subject, told, expected=stored[0].seq if stored else 0))
        return True

    async def _keeps_key(self, queue_state: QueueState, entry: Entry) -> bool:
        """Return whether a task that runs or waits still has its unique key: a debounced one loses it as it starts."""
        if entry.delivery == 0:
            return True
        batch = (await self._state_store.task_lookup.of_slots(queue_state.queue, [entry])).get(entry.seq)
        limited = None if batch is None else batch.limited(entry.index)
        return limited is None or limited.first_at is None

    async def delete(self, ids: Sequence[str]) -> tuple[list[bool], list[str]]:
        """Do :meth:`omniq.storage.Storage.delete`.

        :return: the answers, and the ids of those that are gone.
        """

        async def act(queue_state: QueueState, batch: TaskBatch, index: int) -> tuple[bool, bool]:
            how = stand(queue_state, batch, index)
            if how is None or (isinstance(how, Entry) and how.until is not None):
                return False, False
            if isinstance(how, Entry):
                queue_state.withdraw(how)
            elif how is ENDED:
                end_record = (await self._state_store.end_records(queue_state, [(batch, index)])).get(
                    (batch.seq, index)
                )
                if end_record is None or not end_record.state.is_final:
                    return False, False
                queue_state.uncount(batch, index, end_record)
            if queue_state.is_ahead(batch.line, batch.seq, index):
                queue_state.leave_out(batch, index, REMOVED_AHEAD)
            queue_state.doom(self._removal.tombstones(batch, index))
            return True, True

        answers: list[bool] = []
        gone: list[str] = []
        for start in range(0, len(ids), STEP):
            some, done = await self._each(ids[start : start + STEP], act, _through(self._flows.delete, gone))
            answers += some
            gone += [task_id for several in done.values() for task_id in several]
            for queue in done:
                await self._removal.bury(queue)
        missing = [task_id for task_id, answer in zip(ids, answers, strict=True) if not answer]
        if missing:
            torn = await self._delete_torn(missing)
            answers = [answer or task_id in torn for task_id, answer in zip(ids, answers, strict=True)]
            gone += torn
        return answers, gone

    async def _delete_torn(self, ids: Sequence[str]) -> list[str]:
        """Remove tasks that cannot be read, unless they run; return the ids of those that were."""
        _, torn = await self._state_store.task_lookup.find(ids)
        gone: list[str] = []
        for task_id, one in torn.items():

            async def step(queue_state: QueueState, task_id: str = task_id) -> tuple[bool, bool]:
                entry = queue_state.waiting.get(task_id)
                if entry is not None:
                    queue_state.withdraw(entry)
                return task_id not in queue_state.running, entry is not None

            if await self._state_store.change(one.queue, step, frees=True):
                await self._transport.remove(one.seqs)
                gone.append(task_id)
        return gone

    # Whole queues

    async def pause(self, queue: str, paused: bool) -> bool:
        """Hold up a queue, or let it go on; say whether that changed anything."""

        async def step(queue_state: QueueState) -> tuple[bool, bool]:
            changed = queue_state.paused is not paused
            queue_state.paused = paused
            if changed:
                queue_state.also.append(Write(self._names.note(queue, PAUSED), b"1" if paused else b"0"))
            return changed, changed

        changed = await self._state_store.change(queue, step)
        if changed and not paused:
            await self._transport.tell(self._names.work(queue), b"0")
        return changed


def _through(act: Callable[[Sequence[str]], Awaitable[tuple[list[bool], Stepped]]], ended: list[str]) -> Members:
    """Return what does something to tasks of flows.

    :param ended: gets the ids of all that end, or go, by it.
    """

    async def members(ids: Sequence[str]) -> list[bool]:
        answers, stepped = await act(ids)
        ended.extend(stepped.ended)
        return answers

    return members
