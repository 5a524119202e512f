"""A small project of Django for the tests: its files, and how its commands are run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from attrs import frozen

__all__ = ["Project"]

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
QUEUES = ["default", "mail"]
try:
    import django.tasks

    library = "django.tasks"
except ImportError:
    library = "django_tasks"
if os.environ.get("BACKEND") == "immediate":
    TASKS = {"default": {"BACKEND": f"{library}.backends.immediate.ImmediateBackend", "QUEUES": QUEUES}}
else:
    OPTIONS = {"url": f"sqlite:///{FILE}?foreign=allow&busy_timeout=60", "max_retries": 0}
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

    def write(self) -> None:
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
        }
        for name, text in files.items():
            (self.folder / name).write_text(text)
        create = "from django.core.management import call_command as call"
        self.python(f"{create}; call('migrate', run_syncdb=True, verbosity=0); call('omniq', 'stats')")

    def manage(self, *arguments: str, **environment: str) -> str:
        """Run a command of ``manage.py``, and return what it printed."""
        return self._run("manage.py", *arguments, **environment)

    def python(self, code: str, **environment: str) -> str:
        """Run some code with the project set up, and return what it printed."""
        setup = "import django; django.setup()\nfrom library import *\nfrom shop import tasks\n"
        return self._run("-c", setup + code, DJANGO_SETTINGS_MODULE="settings", **environment)

    def _run(self, *arguments: str, **environment: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMNIQ", "DJANGO"))}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=kept | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
