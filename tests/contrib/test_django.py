"""A project of Django whose tasks OmniQ keeps: the same assertions as over Django's own backend, and more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from omniq import TaskQueue
from tests.contrib.django_project import Project


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a project with its tables made."""
    folder = tmp_path_factory.mktemp("project")
    Project(folder).write()
    return folder


@pytest.fixture
def project(written: Path, tmp_path: Path) -> Project:
    return Project(shutil.copytree(written, tmp_path / "project"))


SUITE = """
def ended(result):
    assert result.is_finished == (not default_task_backend.supports_get_result)
    return result

enqueued = []
signals.task_enqueued.connect(lambda task_result, **_: enqueued.append(task_result.id), weak=False)
results = dict(
    sum=ended(tasks.add.enqueue(1, other=2)),
    count=ended(tasks.count.enqueue(("a", "b"))),
    refused=ended(tasks.fail.enqueue("sold out")),
    not_json=ended(tasks.give_a_set.enqueue()),
    told=ended(tasks.tell.enqueue("ann")),
    noted=ended(tasks.note.enqueue("from a coroutine")),
    urgent=ended(tasks.add.using(priority=50, queue_name="mail").enqueue(5)),
)
assert enqueued == [result.id for result in results.values()]
work()
for result in results.values():
    if default_task_backend.supports_get_result:
        result.refresh()
    assert result.is_finished and result.attempts == 1 and len(result.worker_ids) == 1
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert result.last_attempted_at == result.started_at
    assert result.backend == "default"

assert results["sum"].status == TaskResultStatus.SUCCESSFUL and results["sum"].return_value == 3
assert (results["sum"].args, results["sum"].kwargs) == ([1], {"other": 2})
assert results["count"].args == [["a", "b"]] and results["count"].return_value == [2, "list"]
assert results["told"].return_value == [1, results["told"].id, ["ann"], "ann"]
assert results["told"].task.queue_name == "mail"
assert results["noted"].return_value == 1
assert results["urgent"].task.priority == 50 and results["urgent"].return_value == 5
for name, kind, text in [("refused", tasks.Refused, "sold out"), ("not_json", TypeError, "set")]:
    assert results[name].status == TaskResultStatus.FAILED
    (error,) = results[name].errors
    assert error.exception_class is kind, error.exception_class_path
    assert error.traceback.startswith("Traceback") and text in error.traceback
try:
    tasks.add.using(queue_name="unheard of")
except getattr(exceptions, "InvalidTask", None) or exceptions.InvalidTaskError as error:
    assert "unheard of" in str(error)
else:
    raise AssertionError("a queue that is not in QUEUES was taken")
print("held")
"""


@pytest.mark.parametrize("backend", ["immediate", "omniq"])
def test_tasks_end_as_with_the_backend_that_comes_with_django(project: Project, backend: str) -> None:
    assert project.python(SUITE, BACKEND=backend).endswith("held\n")


def test_priority_and_run_after_decide_when_a_task_runs(project: Project) -> None:
    shown = project.python("""
import asyncio, json
from datetime import timedelta
from django.utils import timezone
from shop.models import Order

later = tasks.record.using(run_after=timezone.now() + timedelta(hours=1)).enqueue("later")
for priority in (-10, 30, 0):
    tasks.record.using(priority=priority).enqueue(str(priority))
work("--concurrency", "1")
result = asyncio.run(default_task_backend.aget_result(later.id))
assert tasks.record.get_result(result.id).task.run_after == result.task.run_after > result.enqueued_at
print(json.dumps([list(Order.objects.order_by("pk").values_list("note", flat=True)), result.status]))
""")

    assert json.loads(shown.splitlines()[-1]) == [["30", "0", "-10"], "READY"]


def test_an_unknown_result_and_a_model_as_an_argument_are_clear_errors(project: Project) -> None:
    shown = project.python("""
from omniq.storage.ids import new_id
from shop.models import Order

for unknown in (new_id(), "no id at all"):
    try:
        default_task_backend.get_result(unknown)
    except exceptions.TaskResultDoesNotExist:
        print("does not exist")
order = Order.objects.create(note="x")
for arguments in ([order], [[{"of": order}]]):
    try:
        tasks.add.enqueue(*arguments)
    except TypeError as error:
        print(error)
try:
    tasks.add.enqueue(1, 2, 3)
except TypeError as error:
    print(error)
print(len(default_task_backend.queue.tasks()))
""")

    *missing, model, nested, wrong, stored = shown.splitlines()
    assert missing == ["does not exist", "does not exist"]
    assert model == nested
    assert "shop.tasks.add was given a Order" in model
    assert "pass its pk (1)" in model
    assert "too many positional arguments" in wrong
    assert stored == "0"


TRANSACTIONS = """
from django.db import transaction
from shop.models import Order

def tell(result):
    return "stored" if default_task_backend.queue.get(result.id) else "not stored"

try:
    with transaction.atomic():
        Order.objects.create(note="rolled back")
        lost = tasks.add.enqueue(1)
        inside = tell(lost)
        raise KeyError
except KeyError:
    print("after rollback:", tell(lost))
with transaction.atomic():
    Order.objects.create(note="kept")
    kept = tasks.add.enqueue(1)
    print("before commit:", tell(kept))
print("after commit:", tell(kept), kept.enqueued_at is not None)
print("outside:", tell(tasks.add.enqueue(1)))
"""


@pytest.mark.parametrize(
    "options", [{"DATABASE": "default"}, {"DATABASE": "default", "TRANSACTION": "on_commit"}, {}], ids=str
)
def test_a_task_exists_if_and_only_if_the_transaction_commits(project: Project, options: dict[str, str]) -> None:
    assert project.python(TRANSACTIONS, **options).splitlines() == [
        "after rollback: not stored",
        "before commit: not stored",
        "after commit: stored True",
        "outside: stored",
    ]


def test_now_stores_a_task_whatever_becomes_of_the_transaction(project: Project) -> None:
    shown = project.python(
        """
from django.db import transaction

try:
    with transaction.atomic():
        result = tasks.add.enqueue(1)
        raise KeyError
except KeyError:
    print(default_task_backend.get_result(result.id).status)
""",
        TRANSACTION="now",
    )

    assert shown == "READY\n"


def test_a_connection_that_broke_fails_no_second_task(project: Project) -> None:
    shown = project.python("""
results = [tasks.break_connection.enqueue(), *(tasks.record.enqueue("after") for _ in range(3))]
work("--threads", "1", "--concurrency", "1")
for result in results:
    result.refresh()
print([str(result.status) for result in results])
""")

    assert shown.splitlines()[-1] == "['FAILED', 'SUCCESSFUL', 'SUCCESSFUL', 'SUCCESSFUL']"


def test_signals_tell_of_the_start_and_of_the_end_of_tasks(project: Project) -> None:
    project.python("""
import asyncio

def write(signal, task_result, **_):
    # With the database: also of a coroutine they are sent where that is allowed.
    kind = {id(signals.task_started): "started", id(signals.task_finished): "finished"}[id(signal)]
    tasks.Order.objects.create(note=f"{task_result.task.name} {kind} {task_result.status}")

signals.task_started.connect(write)
signals.task_finished.connect(write)

async def enqueue():
    await tasks.add.aenqueue(1)
    await tasks.fail.aenqueue("x")
    await tasks.note.aenqueue("itself")

asyncio.run(enqueue())
work()
""")

    # Once the process has ended, all have been sent.
    shown = project.python("print('\\n'.join(sorted(tasks.Order.objects.values_list('note', flat=True))))")
    assert shown.splitlines() == [
        "add finished SUCCESSFUL",
        "add started RUNNING",
        "fail finished FAILED",
        "fail started RUNNING",
        "itself",
        "note finished SUCCESSFUL",
        "note started RUNNING",
    ]


def test_attempts_that_failed_are_among_the_errors_of_a_result(project: Project) -> None:
    shown = project.python("""
result = tasks.fail.enqueue("x")
work()
call_command("omniq", "tasks", "retry", result.id)
work()
result.refresh()
print(result.status, [error.exception_class is tasks.Refused for error in result.errors], result.attempts)
""")

    assert shown.splitlines()[-1] == "FAILED [True, True] 2"


def test_the_command_line_knows_the_projects_queue(project: Project) -> None:
    project.manage("omniq", "enqueue", "shop.tasks.add", "1", "2")
    # With child processes, which know nothing of manage.py.
    project.manage("omniq", "--settings", "settings", "worker", "--drain", "--processes", "2", "--backend", "default")

    shown = project.python("""
print([task.result for task in default_task_backend.queue.tasks()])
call_command("omniq", "tasks", "list", "--backend=default")
call_command("omniq", "plugins")
call_command("omniq", "stats", "--help")
""")
    results, *rest = shown.splitlines()
    assert results == "[3]"
    assert any("shop.tasks.add" in line for line in rest)
    assert any("omniq-local" in line for line in rest)
    assert any(line.startswith("usage: manage.py omniq stats [-h]") for line in rest)
    assert "APP" not in shown


def test_an_option_that_cannot_be_used_is_named(project: Project) -> None:
    shown = project.python("""
from django.core.exceptions import ImproperlyConfigured
from omniq.contrib.django import OmniQBackend

for options in (
    {"transaction": "join"}, {"transaction": "soon"}, {"database": "other"}, {"max_retries": -1}, {"retries": 1}
):
    try:
        OmniQBackend("default", {"OPTIONS": options})
    except ImproperlyConfigured as error:
        print(error)
""")

    lines = shown.splitlines()
    assert len(lines) == 5
    texts = [
        "'join' needs 'database'",
        "one of join, on_commit, now, not 'soon'",
        "no 'database' 'other'",
        "max_retries",
    ]
    for line, text in zip(lines, [*texts, "'retries'"], strict=True):
        assert line.startswith("TASKS['default']['OPTIONS']: ")
        assert text in line


OWN = {"OWN": "1", "DATABASE": "default"}
"""The queue is in the project's database, wherever that is."""


def test_tests_of_the_project_have_the_queue_in_the_test_database(project: Project) -> None:
    project.manage("test", **OWN, TEST_NAME=str(project.folder / "test.db"))

    assert [file.name for file in project.folder.glob("*.db")] == ["shop.db"]
    with TaskQueue(f"sqlite:///{project.folder / 'shop.db'}?foreign=allow") as queue:
        assert queue.stats() == []


def test_a_test_database_in_memory_harms_only_who_enqueues_there(project: Project) -> None:
    (project.folder / "shop" / "tests.py").write_text(
        """
from django.core.exceptions import ImproperlyConfigured
from django.test import TestCase

from shop import tasks


class InMemory(TestCase):
    def test_enqueueing_says_what_to_do(self):
        tasks.Order.objects.create(note="of no interest")
        with self.assertRaisesRegex(ImproperlyConfigured, r"DATABASES\\['default'\\]\\['TEST'\\] = "):
            tasks.add.enqueue(1)
"""
    )
    project.manage("test", **OWN)
