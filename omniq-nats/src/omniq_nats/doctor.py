"""Looks at the servers and the stream for ``omniq doctor``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import evolve

from omniq.errors import CorruptRecord, StorageError
from omniq.storage import Finding, Severity
from omniq.storage.corrupt_records import corrupt, finding
from omniq_nats.encoding import NewerVersion
from omniq_nats.entries import OverflowPage
from omniq_nats.flow_records import read_flow, read_gates, read_roster
from omniq_nats.messages import Conflict, Full, Stored, Write
from omniq_nats.names import readable
from omniq_nats.orphan_cleanup import OrphanCleanup
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import LEFT_BEHIND, QueueStateStore, holder_of
from omniq_nats.reading import read_worker
from omniq_nats.schedule_encoding import read_schedule
from omniq_nats.streams import API_LEVEL, differences

__all__ = ["check", "diagnose"]

OK, WARNING, ERROR = Severity.OK, Severity.WARNING, Severity.ERROR
CLOCK_TOLERANCE = 1.0
NEARLY_FULL = 0.9
PROBE_BYTES = 16 * 1024
"""For want of so much room a store is said to be full."""
MEGABYTE = 1024 * 1024


async def diagnose(state_store: QueueStateStore) -> list[Finding]:
    """Do :meth:`omniq.storage.Storage.diagnose`."""
    account = await state_store.transport.ask("INFO")
    stream = await state_store.transport.info()
    queue_states = await state_store.read_all()
    return [
        _server(state_store, account),
        await _limits(state_store, account, stream),
        _durability(stream),
        *_replicas(stream),
        _payload(state_store),
        _configuration(state_store, stream),
        *_left_behind(state_store, queue_states),
        await _strays(state_store),
        _clock(state_store),
    ]


async def check(state_store: QueueStateStore) -> list[Finding]:
    """Do :meth:`omniq.storage.Storage.check` for all but tasks."""
    transport, names = state_store.transport, state_store.names
    problems: list[CorruptRecord] = []
    for queue_state in (await state_store.read_all()).values():
        found = [
            queue_state.problem,
            *[await _problem_of(state_store, queue_state, one) for one in queue_state.overflow],
        ]
        problems += [problem for problem in found if problem is not None]
    problems += await state_store.limits.problems()
    readers: dict[str, Callable[[Stored], object]] = {
        names.schedules: read_schedule,
        names.workers: lambda stored: read_worker(stored, {}, {}),
        names.keys: _read_key,
        names.flows: _read_flow,
        names.ended_flows: _read_flow,
        names.parts_of_flows: _read_part,
    }
    for subject, read in readers.items():
        async for stored in transport.scan_all(subject):
            try:
                if stored.subject != names.reserve:
                    read(stored)
            except CorruptRecord as problem:
                problems.append(problem)
    return [_finding(problem) for problem in problems]


def _finding(problem: CorruptRecord) -> Finding:
    found = finding(problem)
    if problem.kind in ("queue", "waiting tasks") and not isinstance(problem.__cause__, NewerVersion):
        return evolve(
            found, message=f"{found.message}; the next worker that serves the queue makes it anew from its tasks"
        )
    return found


async def _problem_of(
    state_store: QueueStateStore, queue_state: QueueState, overflow_page: OverflowPage
) -> CorruptRecord | None:
    try:
        return await state_store.overflow.problem_of(queue_state.queue, overflow_page)
    except Conflict:  # it was replaced meanwhile, or is not there: who needs it finds out
        return None


def _read_key(stored: Stored) -> None:
    if holder_of(stored.data) is None:
        place = f"message {stored.seq} on {stored.subject}"
        raise corrupt("unique key", None, "it names no task; it counts as free", place=place)


def _read_flow(stored: Stored) -> None:
    read_flow(readable(stored.subject.rpartition(".")[2]), [stored])


def _read_part(stored: Stored) -> None:
    kind, flow_id, _ = stored.subject.rsplit(".", 3)[1:]
    (read_gates if kind == "g" else read_roster)(readable(flow_id), stored)


def _server(state_store: QueueStateStore, account: dict[str, Any]) -> Finding:
    version = state_store.transport.client.connected_server_version
    level = account.get("api", {}).get("level", 0)
    told = f"nats-server {version.major}.{version.minor}.{version.patch}, JetStream API level {level}"
    if "error" in account:
        # A user limited to the namespace may not be allowed to ask; the stream says that the level is enough.
        return Finding(
            severity=OK, subject="server", message=f"{told.partition(',')[0]}; this user may not ask for more"
        )
    if level < API_LEVEL:
        return Finding(severity=ERROR, subject="server", message=f"{told}; OmniQ needs {API_LEVEL}: update to 2.12")
    return Finding(severity=OK, subject="server", message=told)


async def _limits(state_store: QueueStateStore, account: dict[str, Any], stream: dict[str, Any]) -> Finding:
    # The limit of the server itself is not told to its clients: it is seen by what happens.
    try:
        probe = f"{state_store.names.root}.u.=probe"
        await state_store.transport.remove_one(await state_store.transport.store(Write(probe, b" " * PROBE_BYTES)))
    except Full as error:
        said = str(error).rpartition(": ")[2]
        return Finding(
            severity=ERROR,
            subject="space",
            message=f"full: the servers store nothing more ({said}), so that nothing can be enqueued or finished; "
            "purge or delete tasks, or raise the limit: that of the server (max_file_store, max_memory_store), of the "
            "account, or of the stream (max_bytes)",
        )
    except StorageError as error:
        return Finding(severity=ERROR, subject="space", message=f"nothing can be stored at the moment: {error}")
    used = stream["state"]["bytes"]
    limits = [
        (account.get("limits", {}).get(f"max_{stream['config']['storage'].replace('file', 'storage')}", -1), "account"),
        (stream["config"].get("max_bytes", -1), "stream"),
    ]
    for limit, whose in limits:
        taken = used if whose == "stream" else account.get(stream["config"]["storage"].replace("file", "storage"), 0)
        if limit > 0 and taken > limit * NEARLY_FULL:
            return Finding(
                severity=WARNING,
                subject="space",
                message=f"{taken / MEGABYTE:,.0f} of the {whose}'s {limit / MEGABYTE:,.0f} MB are taken; once they are "
                "full nothing can be enqueued or finished: raise the limit, or keep results for a shorter time",
            )
    bound = ", ".join(f"{whose} limit {limit / MEGABYTE:,.0f} MB" for limit, whose in limits if limit > 0)
    messages = stream["state"]["messages"]
    told = f"{messages:,} messages, {used / MEGABYTE:,.1f} MB; "
    told += bound or "no limit but the server's own (max_file_store, max_memory_store), which clients cannot see"
    return Finding(severity=OK, subject="space", message=told)


def _durability(stream: dict[str, Any]) -> Finding:
    config = stream["config"]
    replicas = config["num_replicas"]
    if config["storage"] == "memory":
        lost = "all tasks end with the server" if replicas == 1 else "all tasks end when most servers do"
        return Finding(
            severity=WARNING, subject="durability", message=f"the stream is in memory: {lost}; take storage=file"
        )
    if replicas == 1:
        return Finding(
            severity=WARNING,
            subject="durability",
            message="one replica, on disk: what was acknowledged survives the death of the server; a power failure may "
            "cost what came since the last flush (sync_interval, 2 minutes unless the server's configuration says "
            "otherwise, which clients cannot see); set sync_interval: always there, or take replicas=3",
        )
    return Finding(
        severity=OK,
        subject="durability",
        message=f"{replicas} replicas, on disk: what was acknowledged is on most servers, and survives the loss of "
        f"{(replicas - 1) // 2}",
    )


def _replicas(stream: dict[str, Any]) -> list[Finding]:
    cluster = stream.get("cluster") or {}
    behind = [
        replica["name"]
        for replica in cluster.get("replicas") or ()
        if replica.get("offline") or not replica.get("current", True)
    ]
    if not behind:
        return []
    told = f"not up to date: {', '.join(behind)}; until they are, fewer servers may be lost"
    return [Finding(severity=WARNING, subject="replicas", message=told)]


def _payload(state_store: QueueStateStore) -> Finding:
    limit = state_store.transport.max_payload
    told = f"a task's arguments and a result may take {limit:,} bytes each (max_payload), less about 1,000"
    if limit < MEGABYTE:
        return Finding(severity=WARNING, subject="max_payload", message=f"{told}; that is less than the usual 1 MiB")
    return Finding(severity=OK, subject="max_payload", message=told)


def _configuration(state_store: QueueStateStore, stream: dict[str, Any]) -> Finding:
    name = state_store.names.stream
    different = differences(stream["config"], state_store.transport.settings)
    if different:
        told = "; ".join(f"{key} is {there!r} and should be {wanted!r}" for key, (there, wanted) in different.items())
        return Finding(
            severity=ERROR, subject="stream", message=f"{name}: {told}; opening the store sets it right if it may"
        )
    return Finding(severity=OK, subject="stream", message=f"{name} is as it should be")


def _left_behind(state_store: QueueStateStore, queue_states: dict[str, QueueState]) -> list[Finding]:
    now = state_store.clock.now()
    lapsed = sum(
        entry.until is not None and entry.until < now
        for queue_state in queue_states.values()
        for entry in queue_state.running.values()
    )
    late = now - 20 * LEFT_BEHIND
    since = [one.since for queue_state in queue_states.values() for one in queue_state.pending.values()]
    since += [one.since for queue_state in queue_states.values() for one in queue_state.tombstones.values()]
    left = sum(moment < late for moment in since)
    findings = []
    if lapsed:
        told = f"{lapsed} running tasks have lost their workers; any worker of this namespace takes them back"
        findings.append(Finding(severity=WARNING, subject="leases", message=told))
    if left:
        told = f"{left} results or removals wait for the next change of their queue to be completed; nothing is lost"
        findings.append(Finding(severity=OK, subject="unfinished", message=told))
    return findings


async def _strays(state_store: QueueStateStore) -> Finding:
    try:
        strays = await OrphanCleanup(state_store).strays()
    except StorageError as error:
        return Finding(severity=WARNING, subject="stranded", message=f"not looked for: {error}")
    if strays:
        told = f"{len(strays)} messages belong to nothing, the first is {strays[0]}: a process died between two steps. "
        told += "They do no harm; workers take them away an hour after they were stored, or a little later"
        return Finding(severity=WARNING, subject="stranded", message=told)
    return Finding(severity=OK, subject="stranded", message="no messages that belong to nothing")


def _clock(state_store: QueueStateStore) -> Finding:
    ahead = time.time() - state_store.clock.now() / 1e6
    if abs(ahead) > CLOCK_TOLERANCE:
        told = f"this machine is {abs(ahead):,.1f} s {'ahead of' if ahead > 0 else 'behind'} the servers"
        return Finding(severity=WARNING, subject="clock", message=f"{told}; theirs counts, but logs will not agree")
    return Finding(severity=OK, subject="clock", message=f"{abs(ahead):.3f} s from the servers'")
