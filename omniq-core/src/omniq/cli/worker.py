"""``omniq worker``: runs an application's tasks, in this process or in several."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version

from omniq._client.queue import TaskQueue
from omniq._worker.metrics import Metrics
from omniq._worker.worker import Worker, WorkerOptions
from omniq._worker.worker_process import run_as_process
from omniq.cli.app import import_module_of, is_shared, load_queue
from omniq.cli.arguments import add_app, configuring, count, flag, known_app_name, label, option, seconds, size, value
from omniq.cli.exposition import require_library
from omniq.cli.failures import UsageError, suggestion
from omniq.cli.http import http_option
from omniq.cli.logs import heed_application, logging_to_stderr
from omniq.cli.parent_watch import stop_when_parent_ends
from omniq.cli.plugin_commands import held_warnings
from omniq.cli.probes import reason_of, serve_probes
from omniq.cli.reload import Restart, bury_inherited, serve, wait_for_change
from omniq.cli.reports import Reporter, Reports
from omniq.cli.supervisor import PATIENCE, Supervisor
from omniq.cli.wording import plural
from omniq.storage.escaping import get_logger
from omniq.storage.posix import require_posix

__all__ = ["configure", "run"]

_log = get_logger("omniq.supervisor")

MOST_NAMES = 8
"""So many tasks are named at most."""
LEVELS = ("debug", "info", "warning", "error")


def _queues(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


configure = configuring(
    "Run an application's tasks until SIGTERM or Ctrl-C. Tasks that run may then end (--grace);\n"
    "a second signal puts them back at once. What it does is logged on stderr.",
    "omniq worker shop.tasks:queue\n"
    "omniq worker shop.tasks:queue -q urgent,default -c 200   urgent first, 200 tasks at once\n"
    "omniq worker shop.tasks:queue --processes 4              four processes, kept running\n"
    "omniq worker shop.tasks:queue --drain                    do what there is to do, and leave\n"
    "omniq worker shop.tasks:queue --reload                   start again when the code changes",
    add_app,
    value(
        "--import",
        str,
        "MODULE",
        "a module to import, too, that declares tasks of the queue; may be given several times",
        dest="imports",
        action="append",
        default=[],
    ),
    value("-q --queues", _queues, "A,B", "the queues to serve, the first before the second; default: all"),
    value("-c --concurrency", count, "N", "tasks at once in a process (default 100)", default=100),
    value("--threads", count, "N", "how many of them may be plain functions, on threads (default 20)"),
    value(
        "--process-slots",
        count,
        "N",
        'how many may be functions with executor="process" (default: one for each core)',
    ),
    value(
        "--process-tasks", count, "N", "tasks after which such a process is replaced (default 10000)", default=10_000
    ),
    value(
        "--process-memory", size, "BYTES", "memory above which it is replaced after a task, such as 500M (default: any)"
    ),
    value(
        "--processes", count, "N", "how many such workers to run; one that dies is started again (default 1)", default=1
    ),
    value(
        "--lease",
        seconds,
        "S",
        "seconds after which the tasks of a worker that died run elsewhere (default 30)",
        default=30.0,
    ),
    value("--recover-every", seconds, "S", "pause between two looks for such tasks (default: lease / 2)"),
    value("--grace", seconds, "S", "seconds that running tasks get to end (default 25)", default=25.0),
    flag("--drain", "leave as soon as no task is running or may start, instead of waiting for more"),
    flag("--no-scheduler", "leave schedules to other workers", off="scheduler"),
    flag("--reload", "for development: start again when a file of the imported modules in the current folder changes"),
    value(
        "--label",
        label,
        "NAME=VALUE",
        "what `omniq workers` shows of this worker beside the rest, such as zone=a; may be repeated",
        dest="labels",
        action="append",
        default=[],
    ),
    http_option(
        "where to serve /metrics for Prometheus, and /livez and /readyz for probes; with --processes N for all of them"
    ),
    option("--log-level", choices=LEVELS, help="the least to log (default info; with -v debug)"),
    option(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="how to log: lines to read (default), or a JSON object a line for programs",
    ),
    flag("--no-log-setup", "leave logging to what the application sets up", off="log_setup"),
    option("--parent-watch", type=int, help=argparse.SUPPRESS),
    option("--reports", type=int, help=argparse.SUPPRESS),
    option("--reloaded", action="store_true", help=argparse.SUPPRESS),
)


def run(options: argparse.Namespace) -> int:
    """Work until told to stop."""
    level = logging.getLevelNamesMapping()[(options.log_level or ("debug" if options.verbose else "info")).upper()]
    supervised = options.parent_watch is not None
    if options.reload and options.processes > 1:
        raise UsageError("--reload is for one worker process; leave --processes out (see omniq worker --help)")
    if options.reload and options.drain:
        raise UsageError("--reload waits for changes, --drain for nothing; leave one of them out")
    if options.processes > 1:
        require_posix("--processes", "start several workers instead")
    if options.reload:
        require_posix("--reload", "start the worker anew instead")
    if options.http is not None:
        if options.reload:
            raise UsageError("--reload is for development, --http for what watches a worker; leave one of them out")
        require_library()
    several = supervised or options.processes > 1
    shown = logging_to_stderr(level, with_process=several, as_json=options.log_format == "json")
    with shown if options.log_setup else contextlib.nullcontext():
        held_warnings()
        # Before the application is imported, which may change the folder and the environment.
        restart = Restart(_command(options, *([] if options.reloaded else ["--reloaded"])))
        queue = _load(options, restart)
        heed_application()
        planned = _planned(queue, options)
        if not is_shared(queue):
            _log.warning("%s lives inside this process: only tasks that are enqueued in it will run", queue.url)
        if not queue.runnable:
            _log.warning("%s has no tasks: is the module imported that declares them with @queue.task?", options.app)
        if not supervised:
            _introduce(queue, planned, options)
        if supervised:
            stop_when_parent_ends(options.parent_watch, within=options.grace + PATIENCE)
        elif options.processes > 1:
            return asyncio.run(_supervise(options))
        elif options.reload:
            worker = queue.worker(**_worker_options(options))
            if run_as_process(lambda: serve(queue, worker, restart.folder), grace=worker.grace):
                restart.now()
            return 0
        _work(queue, options, supervised=supervised)
    return 0


def _work(queue: TaskQueue, options: argparse.Namespace, *, supervised: bool) -> None:
    worker, metrics = queue.worker(**_worker_options(options)), Metrics()
    if options.http is not None or options.reports is not None:
        worker.metrics = metrics

    async def work() -> None:
        async with queue:
            with _watched(worker, metrics, options):
                await worker.run(supervised=supervised, own_process=True)

    run_as_process(work, grace=worker.grace, supervised=supervised)


@contextlib.contextmanager
def _watched(worker: Worker, metrics: Metrics, options: argparse.Namespace) -> Iterator[None]:
    """Let the worker be watched while it works: over HTTP, or by the process that started it."""
    with contextlib.ExitStack() as watching:
        reason = partial(reason_of, worker)
        if options.reports is not None:
            watching.callback(Reporter(options.reports, metrics.totals, reason).close)
        elif options.http is not None:
            loop = asyncio.get_running_loop()
            server = serve_probes(options.http, loop, totals=metrics.totals, processes=lambda: 1, reason=reason)
            watching.callback(server.close)
        yield


def _introduce(queue: TaskQueue, planned: Worker, options: argparse.Namespace) -> None:
    log = get_logger("omniq.worker")
    for line in _introduction(queue, planned, options.processes):
        log.info("%s", line)
    if queue.functions:
        for line in _undeclared_queues(queue, options.queues or ()):
            log.warning("%s", line)


def _introduction(queue: TaskQueue, worker: Worker, processes: int) -> Iterator[str]:
    """Yield lines that say what begins to work here, on what, and how much at once."""
    namespace = f", namespace {queue.namespace}" if queue.namespace else ""
    yield f"OmniQ {version('omniq-core')}, Python {platform.python_version()}: store {queue.url}{namespace}"
    names = sorted(queue.functions)
    named = ", ".join(names[:MOST_NAMES]) + (", …" if names[MOST_NAMES:] else "")
    yield f"{plural(len(names), 'task')}{': ' if names else ''}{named}"
    each = "" if processes == 1 else f"{processes} processes, in each "
    yield (
        f"{each}{worker.concurrency} tasks at once, of them {worker.threads} on threads and {worker.processes} in "
        f"processes of their own; lease {worker.lease:g} s, grace {worker.grace:g} s"
    )


def _undeclared_queues(queue: TaskQueue, served: Iterable[str]) -> Iterator[str]:
    """Yield a line for each queue that a worker is to serve and that no task of its application is declared for."""
    declared = {function.options.queue for function in queue.functions.values()}
    for name in served:
        if name not in declared:
            hint = suggestion(name, declared) or f"; they are declared for {', '.join(sorted(declared)) or 'none'}"
            yield f"no task is declared for queue {name}: it has tasks only of using(queue=…){hint}"


def _load(options: argparse.Namespace, restart: Restart) -> TaskQueue:
    if options.reloaded:
        bury_inherited()
    try:
        queue = load_queue(options.app)
        for name in options.imports:
            import_module_of(name)
        return queue
    except UsageError as error:
        if not options.reloaded:
            raise
        _log.error("%s; waiting for the next change in %s", error, restart.folder)
        wait_for_change(restart.folder)
        restart.now()


def _worker_options(options: argparse.Namespace) -> WorkerOptions:
    return {
        "queues": options.queues,
        "concurrency": options.concurrency,
        "threads": options.threads,
        "processes": options.process_slots,
        "process_tasks": options.process_tasks,
        "process_memory": options.process_memory,
        "lease": options.lease,
        "grace": options.grace,
        "scheduler": options.scheduler,
        "recover_every": options.recover_every,
        "drain": options.drain,
        "app": options.app,
        "labels": dict(options.labels) or None,
    }


def _planned(queue: TaskQueue, options: argparse.Namespace) -> Worker:
    """Return a worker like those that will run, which is never started."""
    try:
        return queue.worker(**_worker_options(options))
    except ValueError as error:
        raise UsageError(str(error)) from error


async def _supervise(options: argparse.Namespace) -> int:
    def command(parent_watch: int, reports: int | None = None) -> Sequence[str]:
        told = () if reports is None else ("--reports", str(reports))
        return _command(options, "--parent-watch", str(parent_watch), *told)

    supervisor = Supervisor(command, processes=options.processes, grace=options.grace, drain=options.drain)
    if options.http is None:
        return await supervisor.run()
    reports = supervisor.reports = Reports(options.processes)

    def reason() -> str | None:
        return "it is stopping" if supervisor.is_stopping else reports.reason()

    loop = asyncio.get_running_loop()
    server = serve_probes(options.http, loop, totals=reports.totals, processes=reports.alive, reason=reason)
    try:
        return await supervisor.run()
    finally:
        server.close()


def _command(options: argparse.Namespace, *more: str) -> list[str]:
    """Return what starts another worker with the words that this one was given, and some before them."""
    app = [options.app] if known_app_name() is not None else []
    return [sys.executable, "-m", "omniq", "worker", *more, *app, *options._words]
