"""A small project of Django for the tests: its files, and how its commands are run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from tests.fork_server import Popen, run

__all__ = ["TIME", "Project"]

TIME = 300.0
"""Seconds after which something hangs, on a machine that may be busy."""

SETTINGS = """
import os
from pathlib import Path

SECRET_KEY = "for tests"
USE_TZ = True
INSTALLED_APPS = ["omniq.contrib.django", "shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
FILE = Path(__file__).parent / "shop.db"
# Patient with a machine that is busy.
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": FILE, "OPTIONS": {"timeout": 60}}}
if "TEST_NAME" in os.environ:
    DATABASES["default"]["TEST"] = {"NAME": os.environ["TEST_NAME"]}
if "PORT" in os.environ:
    # Connections that last: what becomes of them when the server restarts?
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["NAME"],
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": os.environ["PORT"],
        "CONN_MAX_AGE": None,
        "OPTIONS": {"application_name": "shop"},
    }
QUEUES = ["default", "mail"]
try:
    import django.tasks

    library = "django.tasks"
except ImportError:
    library = "django_tasks"
if os.environ.get("BACKEND") == "immediate":
    TASKS = {"default": {"BACKEND": f"{library}.backends.immediate.ImmediateBackend", "QUEUES": QUEUES}}
else:
    URL = f"sqlite:///{FILE}?foreign=allow&busy_timeout=60"
    OPTIONS = {"url": URL, "max_retries": int(os.environ.get("RETRIES", "0"))}
    if "OWN" in os.environ:
        # The queue is where the database is.
        del OPTIONS["url"]
    if "TRANSACTION" in os.environ:
        OPTIONS["transaction"] = os.environ["TRANSACTION"]
    if "DATABASE" in os.environ:
        OPTIONS["database"] = os.environ["DATABASE"]
    BACKEND = "omniq.contrib.django.OmniQBackend"
    TASKS = {"default": {"BACKEND": BACKEND, "QUEUES": QUEUES, "OPTIONS": OPTIONS}}
"""

MANAGE = """
import os
import sys

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.management import execute_from_command_line

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
"""

MODELS = """
from django.db import models


class Order(models.Model):
    note = models.CharField(max_length=100)
"""

TESTS = """
from django.core.management import call_command
from django.db import connection
from django.test import TestCase, TransactionTestCase

from library import default_task_backend
from shop import tasks
from shop.models import Order


def stored():
    table = "omniq.omniq_task" if connection.vendor == "postgresql" else '"omniq.task"'
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table}")
        return cursor.fetchone()[0]


class First(TestCase):
    # In a transaction each, which is rolled back: whichever comes first, the other sees nothing of it.
    def test_one(self):
        Order.objects.create(note="written before")
        self.assertEqual(stored(), 0)
        tasks.record.enqueue("never runs")
        self.assertEqual(stored(), 1)

    test_two = test_one


class Second(First):
    pass


class Running(TransactionTestCase):
    def test_what_is_enqueued_is_run(self):
        result = tasks.record.enqueue("of a test")
        call_command("omniq", "worker", "--drain")
        result.refresh()
        self.assertEqual(result.status, "SUCCESSFUL")
        self.assertEqual([order.note for order in Order.objects.all()], ["of a test"])
        default_task_backend.queue.delete(result.id)


class RunningToo(Running):
    pass
"""

LIBRARY = """
from django.core.management import call_command

try:
    from django.tasks import TaskResultStatus, default_task_backend, exceptions, signals, task
except ImportError:
    from django_tasks import TaskResultStatus, default_task_backend, exceptions, signals, task


def work(*options):
    if default_task_backend.supports_get_result:
        call_command("omniq", "worker", "--drain", *options)
"""

TASKS = """
from django.db import connection

from library import task
from shop.models import Order


class Refused(Exception):
    pass


@task
def add(one, other=0):
    return one + other


@task()
def count(of: list[str]) -> tuple[int, str]:
    return len(of), type(of).__name__


@task
def fail(text):
    raise Refused(text)


@task
def give_a_set():
    return {1}


@task(queue_name="mail", takes_context=True)
def tell(context, name):
    return [context.attempt, context.task_result.id, context.task_result.args, name]


@task
async def note(text):
    await Order.objects.acreate(note=text)
    return await Order.objects.acount()


@task
def record(text):
    return Order.objects.create(note=text).pk


@task
def break_connection():
    connection.ensure_connection()
    # As a server does that restarts: the connection is there, and no statement works on it any more.
    connection.connection.close()
    Order.objects.count()
"""


@frozen
class Project:
    """A project in a folder.

    :param folder: where its files are.
    """

    folder: Path

    def write(self, **environment: str) -> None:
        """Write the files, and create the tables."""
        package = self.folder / "shop"
        package.mkdir()
        files = {
            "settings.py": SETTINGS,
            "manage.py": MANAGE,
            "library.py": LIBRARY,
            "shop/__init__.py": "",
            "shop/models.py": MODELS,
            "shop/tasks.py": TASKS,
            "shop/tests.py": TESTS,
        }
        for name, text in files.items():
            (self.folder / name).write_text(text)
        create = "from django.core.management import call_command as call"
        self.python(f"{create}; call('migrate', run_syncdb=True, verbosity=0); call('omniq', 'stats')", **environment)

    def manage(self, *arguments: str, **environment: str) -> str:
        """Run a command of ``manage.py``, and return what it printed."""
        return self._run("manage.py", *arguments, **environment)

    def python(self, code: str, **environment: str) -> str:
        """Run some code with the project set up, and return what it printed."""
        setup = "import django; django.setup()\nfrom library import *\nfrom shop import tasks\n"
        return self._run("-c", setup + code, DJANGO_SETTINGS_MODULE="settings", **environment)

    @contextmanager
    def worker(self, *options: str, **environment: str) -> Iterator[None]:
        """Have a worker run, which ends as it should, and print what it said if anything fails meanwhile."""
        log = self.folder / "worker.log"
        command = [sys.executable, "manage.py", "omniq", "worker", *options]
        with log.open("wb") as output:
            process = Popen(command, cwd=self.folder, env=self._environment(environment), stdout=output, stderr=output)
        try:
            yield
            process.terminate()
            assert process.wait(TIME) == 0
        except BaseException:
            print(log.read_text())
            raise
        finally:
            process.kill()
            process.wait()

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMNIQ", "DJANGO"))}
        return kept | more

    def _run(self, *arguments: str, **environment: str) -> str:
        done = run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self._environment(environment),
            capture_output=True,
            text=True,
            timeout=TIME,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)
