"""Signing keys: what they protect, how they are changed, what is refused, and that nobody ever sees them."""

from __future__ import annotations

import asyncio
import copy
import io
import logging
import os
import pickle
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from omniq import (
    ConfigurationError,
    Every,
    Fixed,
    PayloadRejected,
    Schedule,
    TaskFailed,
    TaskHandle,
    TaskQueue,
    TaskState,
    current_task,
    hookimpl,
)
from omniq.plugins import Plugins
from omniq.serialization import ArgumentTypes
from omniq.serialization.signing import Signer, make_signer, unsealed
from omniq.storage.body import as_task, split_body
from omniq.task import NewTask, StoredTask, Succeeded, Task, TaskError
from omniq.testing import wait_until
from tests.bodies import body_of, changed
from tests.core import signed_cpu_tasks
from tests.core.running import MakeQueue, working

KEY = "the first of all the keys"
OTHER = "another key, made later on"
MOMENT = datetime(2030, 1, 1, tzinfo=UTC)


def record(**changes: Any) -> Task:
    """Return a task.

    :param changes: fields of the record, and those of the body that are named in ``BODY``.
    """
    body = {"payload": b"payload", "timeout": 30.0, **{name: changes.pop(name) for name in BODY & changes.keys()}}
    fields = {"id": "id", "queue": "queue", "name": "name", "max_retries": 3, "created_at": MOMENT, "run_at": MOMENT}
    return as_task(StoredTask(**{"body": body_of(**body), **fields, **changes}))


BODY = {"payload", "serializer", "retry", "timeout", "is_async", "headers"}


def signature(signer: Signer, task: StoredTask) -> bytes:
    return signer.task_signature(task, split_body(task.body)[1])


def signed(task: Task, key: str = KEY) -> Task:
    return evolve(task, body=changed(task.body, signature=signature(Signer([key.encode()]), task)))


def altered(task: Task, **changes: Any) -> Task:
    """Return a task of which some fields are others, as an attacker who can write to the store makes it."""
    body = {name: changes.pop(name) for name in (BODY | {"signature"}) & changes.keys()}
    return evolve(task, **{"body": changed(task.body, **body), **changes})


def is_taken(task: Task, *keys: str) -> bool:
    try:
        Signer([key.encode() for key in keys or (KEY,)]).check_task(task, *split_body(task.body))
    except PayloadRejected:
        return False
    return True


# What a signature holds


def test_a_task_is_taken_as_it_was_signed() -> None:
    assert is_taken(signed(record()))
    assert is_taken(signed(record(timeout=None)))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"queue": "other"},
        {"name": "other"},
        {"serializer": "cloudpickle"},
        {"payload": b"payloaD"},
        {"payload": b""},
        {"retry": '{"kind":"fixed","delay":0}'},
        {"headers": {"user": "root"}},
        {"max_retries": 1_000_000},
        {"timeout": 30.5},
        {"timeout": None},
        {"is_async": True},
        {"signature": b""},
        {"signature": b"\x01" + bytes(32)},
        {"signature": b"\x02"},
    ],
    ids=repr,
)
def test_a_task_of_which_anything_was_altered_is_refused(change: dict[str, Any]) -> None:
    assert not is_taken(altered(signed(record()), **change))


@pytest.mark.parametrize(
    "change",
    [
        {"priority": 9},
        {"run_at": MOMENT + timedelta(days=1)},
        {"expires_at": MOMENT},
        {"attempt": 3, "delivery": 7},
        {"tags": ("x",)},
        {"unique": "u"},
        {"result_ttl": 1.0},
    ],
    ids=repr,
)
def test_what_a_store_computes_or_only_orders_and_finds_by_is_not_signed(change: dict[str, Any]) -> None:
    assert is_taken(evolve(signed(record()), **change))


@pytest.mark.parametrize(
    "change",
    [
        {"queue": None},
        {"name": 5},
        {"max_retries": "3"},
        {"name": "\ud800"},
    ],
    ids=repr,
)
def test_fields_of_the_wrong_type_are_refused_and_break_nothing(change: dict[str, Any]) -> None:
    assert not is_taken(evolve(signed(record()), **change))


def test_what_moves_from_one_field_into_the_next_changes_the_signature() -> None:
    signer = Signer([KEY.encode()])
    assert signature(signer, record(queue="ab", name="c")) != signature(signer, record(queue="a", name="bc"))
    assert signature(signer, record(payload=b"", retry="x")) != signature(signer, record(payload=b"x", retry=""))


@given(st.data())
def test_no_two_different_tasks_have_one_signature(data: st.DataObject) -> None:
    texts = st.sampled_from(["", "a", "b", "ab", "a\x00", "\x00"])
    tasks = st.builds(
        record,
        id=texts,
        queue=texts,
        name=texts,
        serializer=texts,
        payload=texts.map(str.encode),
        retry=texts,
        max_retries=st.integers(0, 11),
        timeout=st.sampled_from([None, 0.5, 1.0]),
        is_async=st.booleans(),
    )
    one, other = data.draw(tasks), data.draw(tasks)
    signer = Signer([KEY.encode()])
    assert (signature(signer, one) == signature(signer, other)) == (one == other)


def test_the_signatures_of_tasks_schedules_and_results_are_of_different_kinds() -> None:
    signer = Signer([KEY.encode()])
    task = record()
    order = NewTask(id="id", queue="queue", name="name", body=task.body)
    schedule = Schedule(id="id", task=order, trigger="", next_run=MOMENT)
    sealed = signer.seal(task, b"payload")
    assert (
        len(
            {
                signature(signer, task),
                signer.schedule_signature(schedule, split_body(task.body)[1]),
                b"\x01" + sealed[7:39],
            }
        )
        == 3
    )


# Keys


def test_the_first_key_signs_and_all_verify() -> None:
    new_first = Signer([OTHER.encode(), KEY.encode()])
    assert signature(new_first, record()) == signature(Signer([OTHER.encode()]), record())
    assert is_taken(signed(record(), KEY), OTHER, KEY)
    assert is_taken(signed(record(), OTHER), OTHER, KEY)
    assert not is_taken(signed(record(), KEY), OTHER)


@pytest.mark.parametrize(
    ("given_key", "environment", "keys"),
    [
        (KEY, None, [KEY]),
        (KEY.encode(), None, [KEY]),
        ([KEY, OTHER.encode()], None, [KEY, OTHER]),
        (dict.fromkeys((KEY, OTHER)).keys(), None, [KEY, OTHER]),
        (KEY, OTHER, [KEY]),
        (None, KEY, [KEY]),
        (None, f"{KEY.replace(',', '')}, {OTHER.replace(',', '')} ", [KEY, OTHER.replace(",", "")]),
        ("a key, with a comma in it", None, ["a key, with a comma in it"]),
    ],
    ids=repr,
)
def test_keys_come_as_text_or_bytes_one_or_several_from_the_code_or_the_environment(
    given_key: Any, environment: str | None, keys: list[str]
) -> None:
    signer = make_signer(given_key, {} if environment is None else {"OMNIQ_SIGNING_KEY": environment})
    assert signer is not None
    assert signer.reveal() == tuple(key.encode() for key in keys)


def test_without_a_key_nothing_is_signed() -> None:
    assert make_signer(None, {}) is None


@pytest.mark.parametrize("given_key", ["", "short", b"15 bytes, alas!", [], ["", KEY], [KEY, "short"]], ids=repr)
def test_a_key_that_can_be_guessed_and_no_key_at_all_are_refused(given_key: Any) -> None:
    with pytest.raises(ConfigurationError, match="key"):
        make_signer(given_key, {})


@pytest.mark.parametrize("text", ["", "  ", "short", f"{KEY},", ",,"], ids=repr)
def test_a_variable_without_a_usable_key_is_an_error_and_not_a_queue_that_checks_nothing(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIQ_SIGNING_KEY", text)
    with pytest.raises(ConfigurationError, match="OMNIQ_SIGNING_KEY"):
        TaskQueue("memory://")


@pytest.mark.parametrize("given_key", [5, [5], [None], True], ids=repr)
def test_what_is_no_key_is_refused_by_its_type(given_key: Any) -> None:
    with pytest.raises(TypeError, match="text or bytes"):
        make_signer(given_key, {})


def test_a_child_process_gets_the_keys_and_signs_alike(tmp_path: Path) -> None:
    queue = TaskQueue(f"sqlite:///{tmp_path}/jobs.db", signing_key=[KEY, OTHER])
    settings = pickle.loads(pickle.dumps(queue.codec.for_child()))
    child = type(queue.codec).in_child(queue.plugins, **settings)
    assert queue.codec.load_result(evolve(record(), result_payload=child.dump_result(record(), 5, int)), int) == 5


# Queues that sign


class Rejections:
    """Notes what was rejected."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, str, str]] = []
        self.schedules: list[tuple[str, str, str]] = []
        self.failed: list[str] = []

    @hookimpl
    def omniq_task_failed(self, task: Task, error: TaskError) -> None:
        self.failed.append(f"{task.id}: {error.type}")

    @hookimpl
    def omniq_task_rejected(self, task: Task, worker: str, reason: str) -> None:
        self.tasks.append((task.id, worker, reason))

    @hookimpl
    def omniq_schedule_rejected(self, schedule: Schedule, worker: str, reason: str) -> None:
        self.schedules.append((schedule.id, worker, reason))


@pytest.fixture
def rejections() -> Rejections:
    return Rejections()


@pytest.fixture
def make_signing(make_queue: MakeQueue, rejections: Rejections) -> Callable[..., TaskQueue]:
    """Make a queue that signs, with one task ``double``."""

    def make(*keys: str, **options: Any) -> TaskQueue:
        plugins = Plugins()
        plugins.register(rejections, name="rejections")
        queue = make_queue(signing_key=keys or None, plugins=plugins, **options)

        @queue.task(name="double", timeout=20, retry=Fixed(0))
        def double(n: int) -> int:
            return 2 * n

        return queue

    return make


def double(queue: TaskQueue) -> Any:
    return queue.functions["double"]


def test_a_signed_task_runs_and_its_signed_result_is_read(make_signing: Callable[..., TaskQueue]) -> None:
    queue = make_signing(KEY)
    with working(queue):
        handles = [double(queue).enqueue(3), *queue.enqueue_many([double(queue).call(4)])]
        assert [handle.result(timeout=20) for handle in handles] == [6, 8]
    task = handles[0].task()
    assert (task.args, task.retry, task.result) == ((3,), Fixed(0), 6)
    assert split_body(task.body)[0]
    assert unsealed(task.result_payload or b"") == b"6"


def test_coroutines_and_tasks_enqueued_by_coroutines_are_signed_too(make_signing: Callable[..., TaskQueue]) -> None:
    queue = make_signing(KEY)

    @queue.task(name="slow")
    async def slow(n: int) -> int:
        return n

    async def scenario() -> None:
        async with queue, queue.worker():
            handles = [await slow.aenqueue(1), *await queue.aenqueue_many([slow.call(2)])]
            assert [await handle.aresult(30) for handle in handles] == [1, 2]

    asyncio.run(scenario())


def test_a_task_without_a_signature_fails_unread_with_its_bytes_kept_a_log_record_and_an_event(
    make_signing: Callable[..., TaskQueue], rejections: Rejections, caplog: pytest.LogCaptureFixture
) -> None:
    unsigned, queue = make_signing(), make_signing(KEY)
    handle = double(unsigned).enqueue(3)
    with working(queue) as worker, pytest.raises(TaskFailed, match="PayloadRejected"):
        queue.handle(handle.id).result(timeout=20)

    task = queue.handle(handle.id).task()
    reason = f"task {handle.id} is not signed; its payload was not read"
    assert task.error is not None
    assert (task.state, task.error.type, task.error.message, task.attempt) == ("failed", "PayloadRejected", reason, 1)
    assert task.payload == b"[[3],{}]"
    assert rejections.tasks == [(handle.id, worker.id, reason)]
    assert rejections.failed == [f"{handle.id}: PayloadRejected"]
    (logged,) = [one for one in caplog.records if "rejected" in one.getMessage()]
    assert (logged.levelno, logged.name, vars(logged)["task_id"]) == (logging.ERROR, "omniq.worker", handle.id)


def test_of_a_rejected_task_nothing_can_be_read_through_the_queue_either(
    make_signing: Callable[..., TaskQueue],
) -> None:
    unsigned, queue = make_signing(), make_signing(KEY)
    task = queue.handle(double(unsigned).enqueue(3).id).task()
    for read in (lambda: task.args, lambda: task.kwargs, lambda: task.retry):
        with pytest.raises(PayloadRejected, match="not signed"):
            read()


def test_a_task_signed_with_a_key_of_old_runs_as_long_as_that_key_is_among_the_keys(
    make_signing: Callable[..., TaskQueue],
) -> None:
    before = make_signing(KEY)
    first, second = double(before).enqueue(3), double(before).enqueue(4)
    with working(make_signing(OTHER, KEY)):
        wait_until(lambda: before.handle(first.id).task().state.is_final, what="the end of the task")
        with pytest.raises(PayloadRejected, match="result"):
            first.result(timeout=20)  # signed with the new key
        assert make_signing(OTHER, KEY).handle(second.id).result(timeout=20) == 8
    third = double(before).enqueue(5)
    with working(make_signing(OTHER)), pytest.raises(TaskFailed, match="signature"):
        third.result(timeout=20)


def test_a_worker_without_a_key_runs_signed_tasks_and_reads_signed_results(
    make_signing: Callable[..., TaskQueue],
) -> None:
    signing, plain = make_signing(KEY), make_signing()
    handle, other = double(signing).enqueue(3), double(signing).enqueue(4)
    with working(signing):
        assert plain.handle(handle.id).result(timeout=20) == 6
        assert other.result(timeout=20) == 8
    last = double(signing).enqueue(5)
    with working(plain):
        assert plain.handle(last.id).result(timeout=20) == 10
    with pytest.raises(PayloadRejected, match="not signed"):
        last.result(timeout=20)


def test_a_task_that_is_said_to_have_succeeded_needs_a_signed_result() -> None:
    queue = TaskQueue("memory://", signing_key=KEY)
    with pytest.raises(PayloadRejected, match="no signed result"):
        queue.codec.load_result(record(state=TaskState.SUCCEEDED), Any)
    assert queue.codec.load_result(record(state=TaskState.FAILED), Any) is None


def test_a_result_holds_for_its_own_task_and_as_it_is_alone() -> None:
    signer = Signer([KEY.encode()])
    task = record()
    sealed = signer.seal(task, b"42")
    assert signer.unseal(task, sealed) == b"42"
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(PayloadRejected):
            signer.unseal(task, bytes(altered))
    for other in (evolve(task, id="other"), evolve(task, name="other"), evolve(task, serializer="cloudpickle")):
        with pytest.raises(PayloadRejected):
            signer.unseal(other, sealed)
    for cut in (b"", b"42", sealed[:20], sealed[:-1], sealed + b"0"):
        with pytest.raises(PayloadRejected):
            signer.unseal(task, cut)


def test_a_forged_result_is_rejected_where_it_is_read(make_signing: Callable[..., TaskQueue]) -> None:
    queue = make_signing(KEY)
    handle = double(queue).enqueue(3)

    async def finish_as_a_forger() -> None:
        storage = (await queue.connections.current()).storage
        (task,) = await storage.claim({"default": 1}, worker="forger", lease=30, limit=1)
        await storage.finish([Succeeded(id=task.id, delivery=task.delivery, result=b"1000000")])

    queue.run(finish_as_a_forger())
    with pytest.raises(PayloadRejected, match="result"):
        handle.result(timeout=20)
    with pytest.raises(PayloadRejected, match="result"):
        _ = handle.task().result


def test_a_task_in_a_process_gives_a_signed_result_and_the_process_shows_no_key() -> None:
    async def scenario() -> None:
        async with signed_cpu_tasks.queue.worker(processes=1):
            handle = await signed_cpu_tasks.environment.aenqueue()
            pid, shown = await handle.aresult(60)
            sealed = (await handle.atask()).result_payload or b""
        await signed_cpu_tasks.queue.aclose()
        assert pid != os.getpid()
        assert unsealed(sealed) != sealed
        assert signed_cpu_tasks.KEY not in repr(shown)

    asyncio.run(scenario())


def test_a_task_that_completes_itself_in_a_transaction_of_its_own_gives_a_signed_result(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with TaskQueue(f"sqlite:///{path}", signing_key=KEY) as queue:

        @queue.task(name="book")
        def book() -> str:
            connection = sqlite3.connect(path)
            connection.execute("BEGIN")
            current_task().complete_in(connection, result="booked")
            connection.commit()
            connection.close()
            return "which plays no part"

        with working(queue):
            assert book.enqueue().result(timeout=20) == "booked"


def test_tasks_enqueued_in_the_callers_transaction_are_signed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with TaskQueue(f"sqlite:///{path}", signing_key=KEY) as queue:

        @queue.task(name="double")
        def double(n: int) -> int:
            return 2 * n

        queue.stats()  # the schema is there
        connection = sqlite3.connect(path)
        connection.execute("BEGIN")
        handles: list[TaskHandle[int]] = [double.using(connection=connection).enqueue(3)]
        handles += queue.enqueue_many([double.call(4)], connection=connection)
        connection.commit()
        connection.close()
        with working(queue):
            assert [handle.result(timeout=20) for handle in handles] == [6, 8]


def test_a_failed_task_that_is_retried_by_hand_keeps_its_signature(make_signing: Callable[..., TaskQueue]) -> None:
    queue = make_signing(KEY)
    broken = [True]

    @queue.task(name="mended", max_retries=0)
    def mended() -> str:
        if broken:
            raise ValueError("not yet")
        return "done"

    handle = mended.enqueue()
    with working(queue):
        with pytest.raises(TaskFailed, match="not yet"):
            handle.result(timeout=20)
        broken.clear()
        assert queue.retry(handle.id)
        assert handle.result(timeout=20) == "done"


@pytest.mark.parametrize("write", [lambda text: b" " + text, lambda text: text[:2] + b" " + text[2:], bytes.upper])
def test_a_signature_that_is_written_otherwise_is_none(write: Callable[[bytes], bytes]) -> None:
    queue = TaskQueue("memory://", signing_key=KEY)
    task = signed(record(payload=b"[[],{}]"))
    first, content = task.body.split(b"\n", 1)
    version, signature = first.split(b" ", 1)
    assert write(signature) != signature

    with pytest.raises(PayloadRejected):
        queue.codec.load_arguments(
            evolve(task, body=b"%b %b\n%b" % (version, write(signature), content)), ArgumentTypes()
        )


@given(data=st.data())
def test_a_signed_payload_altered_anywhere_is_never_decoded(data: st.DataObject) -> None:
    queue = TaskQueue("memory://", signing_key=KEY)
    payload = b'[[1,[2.5,"x"],{"$":"set","v":[1]}],{"k":null}]'
    task = signed(record(payload=payload))
    body = task.body
    start, end = data.draw(st.integers(0, len(body))), data.draw(st.integers(0, len(body)))
    forged = body[:start] + data.draw(st.binary(max_size=8)) + body[end:]
    if forged == body:
        assert queue.codec.load_arguments(task, ArgumentTypes())[1] == {"k": None}
    else:
        with pytest.raises(PayloadRejected):
            queue.codec.load_arguments(evolve(task, body=forged), ArgumentTypes())


# Limits


def test_a_payload_over_the_limit_that_somebody_else_stored_is_rejected_unread(
    make_signing: Callable[..., TaskQueue], rejections: Rejections
) -> None:
    generous, queue = make_signing(max_payload=5_000), make_signing(max_payload=1_000)
    handle = generous.enqueue(double(generous), n=10**2_000)
    with working(queue), pytest.raises(TaskFailed, match=r"PayloadRejected: .*takes 2,\d\d\d bytes, and the limit"):
        queue.handle(handle.id).result(timeout=20)
    assert [task_id for task_id, _, _ in rejections.tasks] == [handle.id]


def test_a_result_over_the_limit_that_somebody_else_stored_is_rejected_unread() -> None:
    generous, queue = (TaskQueue("memory://", max_payload=size, signing_key=KEY) for size in (5_000, 1_000))
    for size, fits in ((997, True), (998, True), (999, False)):
        payload = generous.codec.dump_result(record(), "x" * size, Any)
        task = record(result_payload=payload)
        if fits:
            assert queue.codec.load_result(task, Any) == "x" * size
        else:
            with pytest.raises(PayloadRejected, match="limit"):
                queue.codec.load_result(task, Any)


# Schedules


def test_the_tasks_of_a_signed_schedule_are_signed(make_signing: Callable[..., TaskQueue]) -> None:
    queue = make_signing(KEY)
    queue.schedule(double(queue).call(3), Every(1), id="often")
    triggered = queue.trigger_schedule("often")
    with working(queue):
        assert triggered.result(timeout=20) == 6
        wait_until(lambda: len(queue.tasks(state="succeeded").tasks) > 1, what="a run of the schedule")


def test_declared_schedules_are_signed_and_signed_anew_under_a_new_key_that_has_the_old_one_behind_it(
    make_signing: Callable[..., TaskQueue],
) -> None:
    def declaring(*keys: str) -> TaskQueue:
        queue = make_signing(*keys)

        @queue.task(name="tick", schedule=Every(3600))
        def tick() -> None: ...

        return queue

    before, after = declaring(KEY), declaring(OTHER, KEY)
    with working(before):
        wait_until(lambda: bool(before.schedules()), what="the schedule")
    (old,) = before.schedules()
    with working(after):
        wait_until(lambda: after.schedules()[0].revision > old.revision, what="the new signature")
    (new,) = after.schedules()
    assert new.next_run == old.next_run
    assert new.task.body != old.task.body
    assert after.trigger_schedule("tick").id


def with_body(schedule: Schedule, **parts: Any) -> Schedule:
    return evolve(schedule, task=evolve(schedule.task, body=changed(schedule.task.body, **parts)))


def forge_schedule(queue: TaskQueue, change: Callable[[Schedule], Schedule]) -> None:
    async def forge() -> None:
        storage = (await queue.connections.current()).storage
        (schedule,) = await storage.get_schedules()
        await storage.put_schedule(evolve(change(schedule), next_run=await storage.now()))

    queue.run(forge())


@pytest.mark.parametrize(
    "change",
    [
        lambda schedule: evolve(
            schedule, task=evolve(schedule.task, body=changed(schedule.task.body, payload=b"[[1000000],{}]"))
        ),
        lambda schedule: evolve(schedule, task=evolve(schedule.task, name="other")),
        lambda schedule: evolve(schedule, task=evolve(schedule.task, max_retries=1000)),
        lambda schedule: with_body(schedule, signature=b""),
        lambda schedule: evolve(schedule, trigger='{"kind":"every","seconds":0.001}'),
        lambda schedule: evolve(schedule, trigger="[" * 100_000),
        lambda schedule: evolve(schedule, id="a copy"),
    ],
    ids=["arguments", "name", "limit", "no signature", "trigger", "hostile trigger", "copy"],
)
def test_a_forged_schedule_does_not_fire(
    make_signing: Callable[..., TaskQueue],
    rejections: Rejections,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Schedule], Schedule],
) -> None:
    queue = make_signing(KEY)
    queue.schedule(double(queue).call(3), Every(3600), id="hourly")
    forge_schedule(queue, change)
    with working(queue) as worker:
        wait_until(lambda: bool(rejections.schedules), what="the rejection")
    assert list(queue.tasks()) == []
    (told,) = rejections.schedules
    assert told[0] in ("hourly", "a copy")
    assert told[1] == worker.id
    assert "sign" in told[2]
    assert any("cannot fire here" in one.getMessage() for one in caplog.records)
    with pytest.raises(PayloadRejected):
        queue.trigger_schedule(told[0])


def test_a_schedule_is_signed_with_the_key_that_signs_now_at_its_next_run(
    make_signing: Callable[..., TaskQueue],
) -> None:
    before, between, after = make_signing(KEY), make_signing(OTHER, KEY), make_signing(OTHER)
    before.schedule(double(before).call(3), Every(3600), id="hourly")
    with pytest.raises(PayloadRejected):
        after.trigger_schedule("hourly")
    forge_schedule(between, lambda schedule: schedule)  # it is due
    with working(between):
        wait_until(lambda: between.schedules()[0].last_run is not None, what="the run")
    assert after.trigger_schedule("hourly").id


def test_a_schedule_with_a_broken_trigger_keeps_no_other_from_firing(
    make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue()

    @queue.task(name="note")
    def note() -> None: ...

    hostile = ["[" * 100_000, '{"kind":["every"]}', '{"kind":"every","seconds":"x"}', "5", '{"kind":"none"}']
    for number, trigger in enumerate(hostile):
        queue.schedule(note.call(), Every(3600), id=f"bad {number}")

        async def forge(schedule_id: str = f"bad {number}", trigger: str = trigger) -> None:
            storage = (await queue.connections.current()).storage
            (schedule,) = await storage.get_schedules([schedule_id])
            await storage.put_schedule(evolve(schedule, trigger=trigger, next_run=await storage.now()))

        queue.run(forge())
    queue.schedule(note.call(), Every(1), id="good")
    with working(queue):
        wait_until(lambda: bool(queue.tasks(state="succeeded").tasks), what="a run of the good one")
    assert len({one.args[0] for one in caplog.records if "cannot fire here" in one.msg and one.args}) == len(hostile)  # type: ignore[index]  # the first of a tuple


# Secrecy


def everything_said_of(queue: TaskQueue) -> Iterator[str]:
    """Yield what debuggers, error reporters and careless prints show of a queue and all that hangs on it."""
    ahead: list[object] = [queue]
    seen: set[int] = set()
    while ahead:
        thing = ahead.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        yield repr(thing)
        yield str(thing)
        ahead += getattr(thing, "__dict__", {}).values()
        if isinstance(thing, dict):
            ahead += [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | tuple | set | frozenset):
            ahead += thing


def test_a_key_is_shown_by_nothing_that_shows_a_queue(make_signing: Callable[..., TaskQueue]) -> None:
    said = "\n".join(everything_said_of(make_signing(KEY, OTHER)))
    assert "<signer with 2 keys>" in said
    for key in (KEY, OTHER):
        assert key not in said
        assert key.encode().hex() not in said


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_a_signer_is_neither_copied_nor_pickled(copied: Callable[[Signer], object]) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        copied(Signer([KEY.encode()]))


SHORT = "".join(["sec", "ret", "-", "key"])  # so that a traceback that shows the code does not show it


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_signer(SHORT, {}),
        lambda: make_signer([KEY, SHORT], {}),
        lambda: make_signer(None, {"OMNIQ_SIGNING_KEY": f"{KEY},{SHORT}"}),
        lambda: TaskQueue("memory://", signing_key=SHORT),
    ],
    ids=["one", "several", "environment", "queue"],
)
def test_an_error_about_a_key_does_not_show_it(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    shown = "".join(traceback.format_exception(caught.value))
    assert SHORT not in shown
    assert KEY not in shown


def test_a_key_is_in_no_log_record_and_nowhere_in_the_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    queues: list[TaskQueue] = []
    for url in (f"sqlite:///{tmp_path}/jobs.db", f"file://{tmp_path}/jobs"):
        queue = TaskQueue(url, signing_key=[KEY, OTHER])
        queues.append(queue)

        @queue.task(name="double")
        def double(n: int) -> int:
            return 2 * n

        @queue.task(name="fail", max_retries=0)
        def fail() -> None:
            raise ValueError(repr(vars(queues[-1])))

        queue.schedule(double.call(1), Every(3600), id="hourly")
        with working(queue):
            assert double.enqueue(3).result(timeout=20) == 6
            with pytest.raises(TaskFailed):
                fail.enqueue().result(timeout=20)
        queue.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    said = io.StringIO()
    for one in caplog.records:
        said.write(f"{one.getMessage()}\n{vars(one)}\n")
    assert b"double" in stored
    for key in (KEY, OTHER):
        for form in (key.encode(), key.encode().hex().encode()):
            assert form not in stored
            assert form.decode() not in said.getvalue()
