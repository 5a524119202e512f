"""Tasks in the context of a Flask application, and omniq's commands beside Flask's own."""

from __future__ import annotations

import os
from collections.abc import Generator

from omniq import ConfigurationError, TaskQueue
from omniq.cli import main
from omniq.contrib import _needs
from omniq.hookspecs import hookimpl
from omniq.task import Ending

with _needs("flask"):
    import click
    from flask import Flask, current_app, has_app_context
    from flask.cli import ScriptInfo, with_appcontext

__all__ = ["init_app"]

_QUEUE = f"{__name__}:queue"
"""The application's queue as the command line names one; processes that a command starts find it by this, too."""


class _AppContext:
    """Pushes an application context around each attempt.

    :param app: the application.
    """

    def __init__(self, app: Flask) -> None:
        self.app = app

    @hookimpl
    def omniq_around_task(self) -> Generator[None, Ending, None]:
        context = self.app.app_context()
        context.push()
        error: BaseException | None = None
        try:
            error = (yield).error
        finally:
            context.pop(error)


def init_app(app: Flask, queue: TaskQueue) -> None:
    """Run the queue's tasks in the application's context, and add the command ``flask omniq``.

    Each attempt has a context of its own, on the loop, on threads and in child processes; functions that are registered
    with ``teardown_appcontext`` are called at its end, with the error of the task. A child process imports the module
    of the task: there this must have been called on import. Called again for the queue, the last application counts.

    :param app: the application.
    :param queue: its queue, which ``app.extensions["omniq"]`` holds.
    :raises TypeError: if one of them is something else.
    """
    for given, kind in ((app, Flask), (queue, TaskQueue)):
        if not isinstance(given, kind):
            raise TypeError(f"init_app(app, queue) takes a Flask and a TaskQueue, not {given!r}")
    pushing = next((one for _, one in queue.plugins.by_hand if isinstance(one, _AppContext)), None)
    if pushing is not None:
        pushing.app = app
    else:
        # The queue's own from here on: without any it shares the installed ones with every other queue.
        queue.plugins = queue.codec.plugins = queue.plugins.extended([_AppContext(app)])
    app.extensions["omniq"] = queue
    app.cli.add_command(_omniq)


@click.command(
    "omniq",
    short_help="Run workers; see and control tasks, queues and schedules.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
@with_appcontext
def _omniq(context: click.Context, arguments: tuple[str, ...]) -> None:
    info = context.ensure_object(ScriptInfo)
    if info.app_import_path:
        # `flask --app` is known to this process alone, not to those that a worker starts.
        os.environ["FLASK_APP"] = info.app_import_path
    # With an application of its own making, as a test's runner has it, the process goes on afterwards.
    context.exit(main(arguments, app=_QUEUE, prog="flask omniq", ends_process=info.create_app is None))


def __getattr__(name: str) -> TaskQueue:
    if name != "queue":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    app = current_app if has_app_context() else ScriptInfo(os.environ.get("FLASK_APP")).load_app()
    queue = app.extensions.get("omniq")
    if not isinstance(queue, TaskQueue):
        raise ConfigurationError(f"{app.name} has no queue: call omniq.contrib.flask.init_app(app, queue)")
    return queue
