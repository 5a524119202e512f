"""An attacker who can write whatever he likes into the store, against workers with and without a signing key.

His own code never runs. Without a key he can have the shop's own tasks run with arguments of his choice; with a key he
cannot. What he can do all the same stands at the end, and in docs/explanation/security.md.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from omniq import Every, Fixed, PayloadRejected, TaskFailed
from omniq.cli import main
from omniq.storage.records import dump_error
from omniq.task import Task, TaskError
from omniq.testing import wait_until
from tests.bodies import body_of, changed
from tests.core.running import working
from tests.security.conftest import Shop

TASK = '"omniq.task"'
SCHEDULE = '"omniq.schedule"'


def error_of(task: Task) -> str:
    return f"{task.state}: {task.error.type if task.error else ''}"


def is_kept(shop: Shop, task: Task, payload: bytes) -> bool:
    """Tell whether a task was rejected unread, and its bytes are there to be looked at."""
    return error_of(task) == "failed: PayloadRejected" and task.payload == payload and shop.rejected == [task.id]


# His own code


def test_pickle_bytes_in_a_json_payload_are_not_unpickled(shop: Shop) -> None:
    handle = shop.enqueue()
    shop.forge(payload=shop.pickle)

    task = shop.work(handle)

    if shop.key:
        assert is_kept(shop, task, shop.pickle)
    else:
        assert error_of(task) == "failed: SerializationError"
    assert shop.written("page") is None


@pytest.mark.parametrize("serializer", ["cloudpickle", "pickle", "os:system", "../json", ""])
def test_a_changed_serializer_is_rejected_unread(shop: Shop, serializer: str) -> None:
    handle = shop.enqueue()
    shop.forge(payload=shop.pickle, serializer=serializer)

    assert is_kept(shop, shop.work(handle), shop.pickle)


def test_a_worker_that_accepts_pickles_unpickles_none_that_is_not_signed(signing_shop: Shop) -> None:
    shop = signing_shop
    queue = shop.make_queue(serializer="cloudpickle")
    handles = [queue.functions["write"].enqueue("page", "hello"), queue.enqueue(lambda: 5)]
    shop.forge(payload=shop.pickle)

    for handle in handles:
        task = shop.work(handle, queue)
        assert error_of(task) == "failed: PayloadRejected"
        assert task.payload == shop.pickle
    assert sorted(shop.rejected) == sorted(handle.id for handle in handles)
    queue.close()


def test_a_json_task_cannot_be_made_one_of_pickle_where_both_are_accepted(signing_shop: Shop) -> None:
    shop = signing_shop
    queue = shop.make_queue(accept=["cloudpickle"])
    handle = shop.enqueue()
    shop.attack(f"UPDATE {TASK} SET name = ?", "pickled:os.system")
    shop.forge(payload=shop.pickle, serializer="cloudpickle")

    assert is_kept(shop, shop.work(handle, queue), shop.pickle)
    queue.close()


@pytest.mark.parametrize(
    "name",
    ["os:system", "os.system", "builtins.eval", "subprocess:run", "omniq.cli:main", "pickled:os.system", "__import__"],
)
def test_a_forged_name_runs_nothing(shop: Shop, name: str) -> None:
    handle = shop.enqueue()
    payload = json.dumps([[shop.command], {}]).encode()
    # Put back so often that an unknown name fails at once, which otherwise takes half an hour.
    error = dump_error(TaskError(type="UnknownTask", message="; put back 20 of 20 times"))
    shop.attack(f"UPDATE {TASK} SET name = ?, error = ?", name, error)
    shop.forge(payload=payload)

    task = shop.work(handle)

    if shop.key or name.startswith("pickled:"):
        assert is_kept(shop, task, payload)
    else:
        assert error_of(task) == "failed: UnknownTask"


def test_a_name_that_nobody_knows_goes_back_and_runs_nothing_meanwhile(shop: Shop) -> None:
    handle = shop.enqueue()
    shop.attack(f"UPDATE {TASK} SET name = 'os:system'")
    shop.forge(payload=json.dumps([[shop.command], {}]).encode())

    assert error_of(shop.work(handle, ended="failed" if shop.key else "scheduled")) == (
        "failed: PayloadRejected" if shop.key else "scheduled: UnknownTask"
    )


@pytest.mark.parametrize(
    "value",
    [
        {"$": "os.system", "v": "COMMAND"},
        {"$": "subprocess.Popen", "v": ["COMMAND"]},
        {"$": "cloudpickle", "v": "gASV"},
        {"py/object": "os.system", "py/reduce": ["COMMAND"]},
        {"__class__": "os.system", "__reduce__": "COMMAND"},
    ],
    ids=lambda value: next(iter(value.values())),
)
def test_no_class_or_function_that_a_payload_names_is_looked_up(shop: Shop, value: dict[str, Any]) -> None:
    handle = shop.enqueue()
    text = json.dumps([[value, "x"], {}]).replace("COMMAND", shop.command)
    shop.forge(payload=text.encode())

    task = shop.work(handle, ended="failed" if shop.key else "scheduled")
    # Without a key it may be of a newer version, whose function takes such a value.
    assert error_of(task) == ("failed: PayloadRejected" if shop.key else "scheduled: ArgumentsMismatch")


@pytest.mark.parametrize(
    "policy",
    [
        '{"kind":"os:system","delay":0}',
        '{"kind":"exponential","delay":"touch"}',
        '{"kind":["exponential"]}',
        "[" * 20_000,
        "cos\nsystem\n",
    ],
    ids=["unknown", "wrong field", "no text", "deep", "pickle"],
)
def test_a_forged_retry_policy_runs_nothing(shop: Shop, policy: str) -> None:
    handle = shop.queue.functions["fail"].using(retry=Fixed(0)).enqueue()
    shop.forge(retry=policy)

    task = shop.work(handle)

    if shop.key:
        assert is_kept(shop, task, b"[[],{}]")
        assert task.attempt == 1
        with pytest.raises(PayloadRejected):
            _ = task.retry
    else:
        # It is tried again after the default delay.
        assert (error_of(task), task.attempt) == ("failed: ValueError", 2)


@pytest.mark.parametrize(
    "options",
    ["{}", "null", "[]", '["x",5,1]', "[" * 50_000, "no JSON", "[1e999,[],1]"],
)
def test_a_record_that_makes_no_sense_does_not_stop_the_worker(shop: Shop, options: str) -> None:
    handle = shop.enqueue()
    shop.attack(f"UPDATE {TASK} SET options = ?", options)

    assert shop.work(handle).state == "failed"
    assert shop.written("page") is None


# The shop's own tasks


def test_replaced_arguments_run_without_a_key_which_is_what_keys_are_for(shop: Shop) -> None:
    handle = shop.enqueue()
    payload = b'[["page","bought by the attacker"],{}]'
    shop.forge(payload=payload)

    task = shop.work(handle)

    if shop.key:
        assert is_kept(shop, task, payload)
        assert shop.written("page") is None
    else:
        assert task.state == "succeeded"
        assert shop.written("page") == "bought by the attacker"


def test_another_function_of_the_shop_runs_without_a_key(shop: Shop) -> None:
    handle = shop.queue.functions["fail"].enqueue()
    shop.attack(f"UPDATE {TASK} SET name = 'write'")
    shop.forge(payload=b'[["page","x"],{}]')

    assert error_of(shop.work(handle)) == ("failed: PayloadRejected" if shop.key else "succeeded: ")


def test_a_task_of_his_own_runs_without_a_key(shop: Shop) -> None:
    handle = shop.enqueue()
    columns = "state, run_at, priority, created_at, ttl, queue, name, options"
    shop.attack(
        f"INSERT INTO {TASK} (id, body, {columns}) SELECT 'forged', ?, {columns} FROM {TASK}",
        body_of(b'[["forged","x"],{}]', b"\x01" + bytes(32)),
    )

    task = shop.work(shop.queue.handle("forged"))

    assert error_of(task) == ("failed: PayloadRejected" if shop.key else "succeeded: ")
    assert shop.written("forged") == (None if shop.key else "x")
    assert handle.result(timeout=20) == 5


@pytest.mark.parametrize("change", ["id = 'another'", "queue = 'another'", "id = upper(id)"])
def test_a_task_moved_to_another_id_or_queue_runs_without_a_key(shop: Shop, change: str) -> None:
    handle = shop.enqueue()
    shop.attack(f"UPDATE {TASK} SET {change}")
    (moved,) = shop.queue.tasks()

    task = shop.work(shop.queue.handle(moved.id))

    assert error_of(task) == ("failed: PayloadRejected" if shop.key else "succeeded: ")
    assert (shop.written("page") is None) == bool(shop.key)
    assert handle.id in (task.id, task.id.lower()) or task.id == "another"


def test_a_copy_under_another_id_is_a_replay_that_a_key_prevents(shop: Shop) -> None:
    handle = shop.enqueue()
    columns = "state, run_at, priority, created_at, ttl, queue, name, options, body"
    shop.attack(f"INSERT INTO {TASK} (id, {columns}) SELECT 'copy', {columns} FROM {TASK}")

    assert error_of(shop.work(shop.queue.handle("copy"))) == ("failed: PayloadRejected" if shop.key else "succeeded: ")
    assert handle.result(timeout=20) == 5


@pytest.mark.parametrize("change", [{"timeout": 0.001}, {"timeout": 1e9}, {"is_async": True}, {}], ids=repr)
def test_changed_limits_are_rejected_with_a_key(signing_shop: Shop, change: dict[str, Any]) -> None:
    handle = signing_shop.enqueue()
    if change:
        signing_shop.forge(**change)
    else:
        signing_shop.attack(f"UPDATE {TASK} SET options = json_replace(options, '$[0]', 1000000)")

    assert error_of(signing_shop.work(handle)) == "failed: PayloadRejected"


def test_a_payload_larger_than_the_worker_takes_is_rejected_unread(shop: Shop) -> None:
    handle = shop.enqueue()
    payload = b'[["page","' + b"x" * 2_000_000 + b'"],{}]'
    shop.forge(payload=payload)

    assert is_kept(shop, shop.work(handle), payload)


# Results


def result_of(shop: Shop, forge: Callable[[str], None]) -> Any:
    handle = shop.enqueue()
    shop.work(handle)
    forge(handle.id)
    return shop.queue.handle(handle.id).result(timeout=20)


def test_a_forged_result_is_believed_without_a_key(shop: Shop) -> None:
    def forge(task_id: str) -> None:
        shop.attack(f"UPDATE {TASK} SET result = ? WHERE id = ?", b"1000000", task_id)

    if shop.key:
        with pytest.raises(PayloadRejected, match="not signed"):
            result_of(shop, forge)
    else:
        assert result_of(shop, forge) == 1_000_000


def test_a_pickled_result_is_not_unpickled(shop: Shop) -> None:
    def forge(task_id: str) -> None:
        shop.attack(f"UPDATE {TASK} SET result = ? WHERE id = ?", shop.pickle, task_id)
        shop.forge(serializer="cloudpickle")

    with pytest.raises(PayloadRejected):
        result_of(shop, forge)


def test_a_queue_that_accepts_pickles_unpickles_no_forged_result(signing_shop: Shop) -> None:
    shop = signing_shop
    queue = shop.make_queue(serializer="cloudpickle")
    handle = queue.enqueue(lambda: 5)
    shop.work(handle, queue)
    assert handle.result(timeout=20) == 5
    shop.attack(
        f"UPDATE {TASK} SET result = CAST(substr(result, 1, 39) || ? AS BLOB) WHERE id = ?", shop.pickle, handle.id
    )

    with pytest.raises(PayloadRejected, match="does not fit"):
        handle.result(timeout=20)
    queue.close()


@pytest.mark.parametrize(
    "sql",
    [
        "result = (SELECT result FROM {task} WHERE result IS NOT NULL AND id <> ? LIMIT 1)",
        "result = NULL, body = coalesce(body, ?)",
        "result = substr(result, 1, 20), body = coalesce(body, ?)",
    ],
    ids=["that of another task", "none", "cut"],
)
def test_a_result_that_is_not_its_own_is_rejected_with_a_key(signing_shop: Shop, sql: str) -> None:
    def forge(task_id: str) -> None:
        signing_shop.attack(f"UPDATE {TASK} SET {sql.format(task=TASK)} WHERE id = ?", task_id, task_id)

    with pytest.raises(PayloadRejected):
        result_of(signing_shop, forge)


def test_a_task_that_never_ran_cannot_be_made_to_have_succeeded_with_a_key(signing_shop: Shop) -> None:
    handle = signing_shop.enqueue()
    signing_shop.attack(f"UPDATE {TASK} SET state = 4, finished_at = created_at, result = body")

    with pytest.raises(PayloadRejected):
        handle.result(timeout=20)


# Schedules


def due(shop: Shop, change: str, *parameters: Any) -> None:
    """Let the attacker change a schedule, and make it due."""
    shop.attack(f"UPDATE {SCHEDULE} SET next_run = 1, body = {change}", *parameters)


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("task.body.base64", {"payload": b'[["forged","x"],{}]'}),
        ("task.name", "os:system"),
        ("task.body.base64", {"serializer": "cloudpickle"}),
        ("task.queue", "another"),
        ("trigger", '{"kind":"os:system"}'),
        ("trigger", '{"kind":"every","seconds":7200.0}'),  # not again before the test has ended
        ("task.body.base64", {"signature": b""}),
    ],
    ids=[
        "arguments",
        "name",
        "serializer",
        "queue",
        "no trigger",
        "trigger",
        "no signature",
    ],
)
def test_a_forged_schedule_fires_nothing_with_a_key_and_no_code_of_his_without(
    shop: Shop, place: str, change: str | dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    schedule = shop.queue.schedule(shop.queue.functions["write"].call("page", "hello"), Every(3600), id="hourly")
    if isinstance(change, dict):
        change = base64.b64encode(changed(schedule.task.body, **change)).decode()
    due(shop, f"json_replace(body, '$.{place}', ?)", change)

    handle = shop.enqueue()
    with working(shop.queue):
        wait_until(looked_at(shop, "hourly", caplog), what="a look at it")
        assert handle.result(timeout=20) == 5
    ran = [task for task in shop.queue.tasks() if task.id != handle.id]

    if shop.key:
        assert ran == []
        with pytest.raises(PayloadRejected):
            shop.queue.trigger_schedule("hourly")
    else:
        assert len(ran) <= 1
        assert shop.written("forged") in (None, "x")


def looked_at(shop: Shop, schedule_id: str, caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    """Return what tells whether a worker has fired a schedule, or refused to."""

    def done() -> bool:
        (schedule,) = [each for each in shop.queue.schedules() if each.id == schedule_id]
        return schedule.revision > 1 or f"schedule {schedule_id} cannot fire here" in caplog.text

    return done


@pytest.mark.parametrize(
    "change",
    [
        {"misfire": "all"},
        {"overlap": "skip"},
        {"jitter": 0.001},
        {"start": {"at": "1970-01-01T00:00:00+00:00"}},
        {"end": {"at": "2199-01-01T00:00:00+00:00"}},
    ],
    ids=str,
)
def test_how_often_and_until_when_a_schedule_fires_is_signed(
    signing_shop: Shop, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    shop = signing_shop
    shop.queue.schedule(shop.queue.functions["write"].call("page", "hello"), Every(3600), id="hourly")
    due(shop, "json_patch(body, ?)", json.dumps(change))

    with pytest.raises(PayloadRejected):
        shop.queue.trigger_schedule("hourly")
    with working(shop.queue):
        wait_until(looked_at(shop, "hourly", caplog), what="a look at it")
    assert shop.queue.tasks().tasks == ()


def test_the_copy_of_a_schedule_does_not_fire_with_a_key(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.queue.schedule(shop.queue.functions["write"].call("page", "hello"), Every(3600), id="hourly")
    shop.attack(f"INSERT INTO {SCHEDULE} SELECT 'copy', 1, 1, 0, body FROM {SCHEDULE}")

    with working(shop.queue):
        wait_until(looked_at(shop, "copy", caplog), what="a look at the copy")
    assert len(shop.queue.tasks()) == (0 if shop.key else 1)


def test_the_signature_of_a_schedule_is_none_of_a_task(signing_shop: Shop) -> None:
    shop = signing_shop
    model = shop.enqueue()
    shop.queue.schedule(shop.queue.functions["write"].call("page", "hello"), Every(3600), id="hourly")
    (schedule,) = shop.queue.schedules()
    columns = "run_at, priority, created_at, ttl, queue, name, options"
    for task_id in (schedule.task.id, "hourly"):
        shop.attack(
            f"INSERT INTO {TASK} (state, id, body, {columns}) SELECT 2, ?, ?, {columns} FROM {TASK} WHERE id = ?",
            task_id,
            schedule.task.body,
            model.id,
        )
        assert error_of(shop.work(shop.queue.handle(task_id))) == "failed: PayloadRejected"


def test_what_a_rejected_task_is_called_cannot_forge_a_line_of_the_log(
    signing_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    handle = signing_shop.enqueue()
    forged = "x\nINFO all is well\x1b[2J"
    signing_shop.attack(f"UPDATE {TASK} SET id = id || ?, name = ?", forged, forged)

    task = signing_shop.work(signing_shop.queue.handle(handle.id + forged))

    assert error_of(task) == "failed: PayloadRejected"
    (said,) = [one.getMessage() for one in caplog.records if "rejected" in one.getMessage()]
    assert said.isprintable()


# Records that cannot be read


def test_what_he_makes_unreadable_stops_nothing_else_and_is_named_by_doctor(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    write = shop.queue.functions["write"]
    bad = [shop.enqueue(f"bad{number}") for number in range(6)]
    good = [shop.enqueue(f"good{number}") for number in range(3)]
    for name in ("nightly", "hourly"):
        shop.queue.schedule(write.call(name, "hello"), Every(3600), id=name)
    columns = ("options", "attempt", "delivery", "run_at", "name", "error")
    values = ("[" * 50_000, 2**63 - 1, 2**31 - 1, -(2**62), b"\xff\x80", '["E"]')
    for handle, column, value in zip(bad, columns, values, strict=True):
        cast = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
        shop.attack(f"UPDATE {TASK} SET {column} = {cast} WHERE id = ?", value, handle.id)
    due(shop, "body")
    shop.attack(f"UPDATE {SCHEDULE} SET body = '{{' WHERE id = 'hourly'")
    shop.attack('INSERT INTO "omniq.paused" (queue) VALUES (CAST(? AS TEXT))', b"\xff")

    with working(shop.queue):
        assert [handle.result(timeout=20) for handle in good] == [5] * 3
        wait_until(lambda: shop.written("nightly") == "hello", what="the schedule that can be read")
        for handle in bad:
            with pytest.raises(TaskFailed, match="cannot be read"):
                handle.result(timeout=20)
    url = f"sqlite:///{shop.store}"
    assert main(["doctor", url]) == 1
    found = capsys.readouterr().out
    assert all(f"omniq tasks delete {handle.id}" in found for handle in bad)
    assert "omniq schedules delete hourly" in found
    assert "nightly" not in found
    assert main(["tasks", "delete", url, *(handle.id for handle in bad)]) == 0
    assert main(["schedules", "delete", url, "hourly"]) == 0


# What a key does not prevent


def test_he_can_hold_tasks_back_reorder_cancel_and_delete_them(signing_shop: Shop) -> None:
    shop = signing_shop
    handles = [shop.enqueue(f"page{number}") for number in range(4)]
    later = int((datetime.now(UTC) + timedelta(days=1)).timestamp() * 1e6)
    shop.attack(f"UPDATE {TASK} SET state = 1, run_at = ? WHERE id = ?", later, handles[0].id)
    shop.attack(f"UPDATE {TASK} SET priority = 100 WHERE id = ?", handles[1].id)
    shop.attack(f"DELETE FROM {TASK} WHERE id = ?", handles[2].id)
    shop.attack(f"UPDATE {TASK} SET state = 6, finished_at = created_at WHERE id = ?", handles[3].id)

    assert shop.work(handles[1]).state == "succeeded"
    assert [shop.written(f"page{number}") for number in range(4)] == [None, "hello", None, None]


def test_he_can_have_a_task_run_again_under_its_own_id_even_after_it_was_removed(signing_shop: Shop) -> None:
    shop = signing_shop
    handle = shop.enqueue()
    before = handle.task()
    shop.work(handle)
    (shop.folder / "page").unlink()
    shop.attack(f"UPDATE {TASK} SET state = 2, finished_at = NULL, delete_at = NULL WHERE id = ?", handle.id)
    assert shop.work(handle).state == "succeeded"
    assert shop.written("page") == "hello"

    shop.queue.delete(handle.id)
    (shop.folder / "page").unlink()
    columns = "run_at, priority, created_at, ttl, queue, name, options"
    shop.attack(
        f"INSERT INTO {TASK} (state, id, body, {columns}) SELECT 2, ?, ?, {columns} FROM {TASK} LIMIT 1",
        handle.id,
        before.body,
    )
    assert shop.work(handle).state == "succeeded"
    assert shop.written("page") == "hello"


def test_he_can_write_what_an_error_says_which_is_text_and_stays_text(signing_shop: Shop) -> None:
    shop = signing_shop
    handle = shop.enqueue()
    forged = json.dumps(["os.system", shop.command, "Traceback: of his making"])
    shop.attack(f"UPDATE {TASK} SET state = 5, finished_at = created_at, error = ?", forged)

    with pytest.raises(TaskFailed, match=r"os\.system: touch"):
        handle.result(timeout=20)


def test_he_can_make_a_schedule_fire_at_any_time_and_put_an_old_one_back(signing_shop: Shop) -> None:
    shop = signing_shop
    write = shop.queue.functions["write"]
    shop.queue.schedule(write.call("page", "old"), Every(3600), id="hourly")
    shop.attack(f"INSERT INTO {SCHEDULE} SELECT 'kept', revision, NULL, 1, body FROM {SCHEDULE}")
    shop.queue.schedule(write.call("page", "new"), Every(3600), id="hourly")
    due(shop, "body")
    with working(shop.queue):
        wait_until(lambda: shop.written("page") == "new", what="a run long before its time")

    due(shop, f"(SELECT body FROM {SCHEDULE} WHERE id = 'kept')")
    with working(shop.queue):
        wait_until(lambda: shop.written("page") == "old", what="a run of what was replaced")


def test_with_a_backlog_of_decades_he_gets_a_thousand_runs_and_they_come_slowly(
    signing_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop = signing_shop
    shop.queue.schedule(shop.queue.functions["write"].call("page", "hello"), Every(1), id="ticks", misfire="all")
    due(shop, "body")

    with working(shop.queue):
        wait_until(lambda: "schedule ticks missed more than 1000 runs" in caplog.text, what="a look at it")
        wait_until(lambda: len(shop.queue.tasks(limit=1000)) >= 100, what="two steps")
    (schedule,) = shop.queue.schedules()
    assert schedule.last_run is not None
    assert schedule.last_run > datetime.now(UTC) - timedelta(seconds=1100)
