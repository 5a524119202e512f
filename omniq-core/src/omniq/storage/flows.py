"""The part of the contract that is about flows (:mod:`omniq.flow`).

It is for the stores that hold them: those whose :attr:`StorageLimits.flows` says so. What holds on each of them:

1. **Counting is the store's.** A gate waits for its holds and for the tasks *stored by a call* that feed it. A repeated
   call stores nothing and counts nothing.
2. **The end rule.** Whenever a task reaches a final state, in whatever way (``finish``, expiry, a lost worker,
   ``cancel``, a record that cannot be read, ``delete`` or ``purge`` of a live one, which count as cancelled, a broken
   gate), each gate that it feeds is counted down once *in the same step*, and breaks if the feed needs success and
   there is none. With nothing left to count a gate that is not broken opens. An automatic retry is no end. Stale or
   repeated outcomes count nothing. Where it cannot be read either which gates a task feeds, or of which flow it is,
   the gates of a flow in which nothing can run any more break: at the latest some minutes after the last end, or as
   the flow is cancelled.
3. **What follows.** Those behind an open gate become ready, or scheduled if their ``run_at`` is later; a timedelta
   counts from the opening. Those behind a broken one end as cancelled, with a :class:`~omniq.task.TaskError` of type
   ``UpstreamFailed`` that names what failed, and that end counts in the gates which they feed. Up to 200 tasks move in
   the same step. The rest, and every cascade, is worked off by any ``claim``, ``recover`` or ``settle``, 1,000 a step,
   each task once, without recursion. Until then they are ``blocked``.
4. **Place.** A released task stands where its enqueueing puts it, before what was enqueued later: older flows finish
   first.
5. **Late input.** A task may be added that feeds a gate that is shut. If one of the gates that it feeds is open or
   broken, or the flow is cancelled, :class:`~omniq.errors.FlowClosed` is raised and nothing is stored. So a running
   task can always add siblings that feed the same gates. A task added behind an open gate is ready at once, one behind
   a broken gate ends.
6. **No input and no hold**: a gate is open at once.
7. **Refused whole**, by a :exc:`ValueError`: an unknown flow or gate, a ``unique`` key of a flow's task (the flow may
   have one), and a task whose gate does not rank before each that it feeds. If another flow that has not ended holds
   the flow's key, nothing is stored, and each entry of the answer names the holder.
8. **Retry of a member.** It counts again in the gates that it feeds and that are not open; in an open one it has been
   counted for good, and the tasks behind that do not run again. A broken gate without failures is shut again, and those
   that its break had ended are revived, as long as it is not broken anew. Those themselves cannot be retried; nor can
   any task of a cancelled flow, nor of one that has ended and whose key another flow has by now.
9. **Cancelling a flow**: from that step on nothing can be added. Waiting tasks end over time as under 3, running ones
   are asked to stop. No gate of it opens any more: one with nothing left to count breaks. ``retry_flow`` takes the
   cancellation back, however much of it is done: what has not ended goes on, running tasks that have not heard of it
   are no longer asked, and a gate that broke of it alone waits again for what feeds it. Tasks are retried over time as
   under 3, and until all are no gate of the flow opens: what waits, waits for all of them.
10. **Retention.** No task of a flow is pruned before the flow is: ``result_ttl`` seconds of the flow's after its end.
    ``delete`` and ``purge`` are obeyed.
11. **Building in parts.** One call, up to :attr:`StorageLimits.atomic_tasks`, is one step. A larger graph, or one of
    more than :attr:`StorageLimits.flow_step`, has its roots behind a gate with a hold, and each call extends the hold
    until ``release_hold`` lets it go. If the hold runs out, that gate breaks, and nothing has run.
12. The expiry of a blocked task is acted on when its gate opens, no later. Queues may differ within a flow, and a
    paused queue keeps what is released.
"""

from __future__ import annotations

from collections.abc import Sequence

from omniq.errors import ConfigurationError
from omniq.flow import Flow

__all__ = ["FlowStorage", "no_flows"]


class FlowStorage:
    """The verbs of a store that are about flows. The defaults are those of a store that holds none."""

    async def release_hold(self, flow_id: str, gate: int) -> bool:
        """Take away the hold of a gate, so that it can open.

        :param flow_id: the flow; one that is not there has no holds.
        :param gate: the gate's number.
        :return: False if there was none (any more).
        """
        raise no_flows(self)

    async def get_flows(self, ids: Sequence[str]) -> list[Flow | None]:
        """Return flows as they stand.

        :param ids: of flows.
        :return: one entry for each id, in order; None for an id that is not in the store.
        """
        raise no_flows(self)

    async def cancel_flow(self, flow_id: str) -> bool:
        """Cancel a flow: its waiting tasks end, its running ones are asked to stop, and none can be added.

        :param flow_id: the flow.
        :return: whether it was there, had not ended and was not cancelled before.
        """
        raise no_flows(self)

    async def retry_flow(self, flow_id: str) -> int:
        """Retry what failed or was cancelled in a flow, but not as a gate broke; take back its own cancellation.

        :param flow_id: the flow.
        :return: how many tasks are retried, now and over time; those that wait for them are revived without being
            counted.
        """
        raise no_flows(self)

    async def settle(self, limit: int) -> int:
        """Move tasks behind gates that have opened or are broken, and break gates whose holds have run out.

        :param limit: how many tasks at most, so that a step stays short.
        :return: how many were moved; fewer than the limit means that nothing is left to do.
        """
        return 0


def no_flows(storage: FlowStorage) -> ConfigurationError:
    """Return the error that a store holds no flows, which names it.

    :param storage: of the store.
    """
    return ConfigurationError(
        f"{type(storage).__name__} holds no flows; enqueue the tasks one after the other, or take a store that "
        "does, as all do that come with OmniQ"
    )
