"""Starts programs of Python by forking a process that has already imported what most of them need.

To start an interpreter and import OmniQ with a driver takes half a second of a processor, a fork a few hundredths; the
tests start many hundreds of programs, and few of them are about how one starts. :class:`Popen` and :func:`run` are used
like those of ``subprocess``, and the processes are children of the caller as theirs are. What a fork cannot do they do
not try: options of the interpreter other than ``-W error``, its settings in the environment, other systems than Linux.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import importlib
import inspect
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

__all__ = ["Popen", "run"]

ROOT = Path(__file__).parents[1]
PRELOADED = (
    "ssl",
    "omniq.testing.actor",
    "omniq.cli.worker",
    "omniq.cli.stats",
    "omniq.cli.tasks",
    "omniq._worker.worker",
    "omniq._worker.scheduler",
    "omniq_local.memory.storage",
    "omniq_local.sqlite.storage",
    "omniq_local.files.storage",
    "omniq_redis.storage",
    "omniq_postgres.storage",
    "omniq_nats.storage",
)
"""What programs import most of all; none of it does anything when it is imported."""
FOLLOWED = {"PYTHONPATH", "PYTHONUTF8", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
"""The settings of an interpreter that a fork follows, too."""
SETTINGS = ("PYTHON", "LD_PRELOAD", "FAKETIME")
"""How the names begin of those that only an interpreter that starts follows."""
STRICT = ["-W", "error"]
PR_SET_CHILD_SUBREAPER = 36
LARGEST = 1 << 20


# The server


def serve(descriptor: int) -> tuple[dict[str, Any], list[int]]:
    """Fork a process for each order that comes; return in that process.

    :param descriptor: the socket that orders come from; at its end this process ends.
    :return: the order, and the descriptors that came with it: standard input, output and error output.
    """
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:  # what this environment has not
            continue
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=descriptor) as channel:
        while True:
            text, descriptors, _, _ = socket.recv_fds(channel, LARGEST, 3)
            if not text:
                os._exit(0)
            pid = _fork()
            if pid == 0:
                channel.detach()
                return json.loads(text), descriptors
            for one in descriptors:
                os.close(one)
            channel.send(b"%d" % pid)


def _fork() -> int:
    """Fork a process that is the child of this one's parent: return its id here, and 0 there."""
    told, tell = os.pipe()
    begins, begin = os.pipe()
    between = os.fork()
    if between == 0:
        os.close(begin)
        pid = os.fork()
        if pid:
            os.write(tell, b"%d" % pid)
            os._exit(0)
        os.read(begins, 1)  # returns once the process between has gone, and the parent's parent has taken this one
        return 0
    pid = int(os.read(told, 20))
    os.waitpid(between, 0)
    for descriptor in (told, tell, begins, begin):
        os.close(descriptor)
    return pid


def become(order: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Be the program of an order, as an interpreter that was started for it would."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 1024)
    if order["session"]:
        os.setsid()
    environment: dict[str, str] = order["env"]
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _reopen_streams(is_buffered=not environment.get("PYTHONUNBUFFERED"))
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    words: list[str] = order["args"]
    sys.orig_argv = [sys.executable, *words]
    if words[:2] == STRICT:
        words = words[2:]
        sys.warnoptions.append("error")
        warnings.simplefilter("error")
    kind = words.pop(0) if words[0] in ("-m", "-c") else ""
    what = words[0]
    first = {"-m": os.getcwd(), "-c": ""}.get(kind, os.path.dirname(os.path.realpath(what)))
    added = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *added, *sys.path[1:]]
    sys.path_importer_cache.clear()
    for name in ("tests.fork_server", "tests"):  # the program may have a package of that name
        del sys.modules[name]
    sys.argv = [kind or what, *words[1:]]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    code: object = None
    try:
        if kind == "-m":
            cast(Any, runpy)._run_module_as_main(what)  # what the interpreter itself does for -m
        else:
            file = "<string>"
            if not kind:
                file = main.__file__ = os.path.abspath(what)
                what = Path(what).read_text(encoding="utf-8")
            exec(compile(what, file, "exec"), main.__dict__)
    except SystemExit as left:
        code = left.code
    if code is None or isinstance(code, int):
        _end(main, code or 0)
    sys.exit(cast(str, code))


def _end(main: types.ModuleType, code: int) -> None:
    """End as an interpreter does, but leave what was imported before the fork: to tear it down is most of an end."""
    cast(Any, threading)._shutdown()
    cast(Any, atexit)._run_exitfuncs()
    main.__dict__.clear()
    gc.collect()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)  # an interpreter knows what to say of that
    os._exit(code & 0xFF)


def _reopen_streams(*, is_buffered: bool) -> None:
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    for number, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        raw = io.FileIO(number, "wb", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw) if is_buffered else cast(Any, raw),
            encoding="utf-8",
            errors=errors,
            line_buffering=number == 2 or raw.isatty(),
            write_through=not is_buffered,
        )
        setattr(sys, name, stream)
    sys.__dict__.update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)


# The caller's side


class _Server:
    """The server of this process, which is started for the first order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = "import sys; from tests import fork_server; fork_server.become(*fork_server.serve(int(sys.argv[1])))"
        clean = {name: value for name, value in os.environ.items() if name not in FOLLOWED}
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, str(other.fileno())],
                cwd=ROOT,
                env={**clean, "PYTHONUTF8": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
            )
        self._set_subreaper = functools.partial(ctypes.CDLL(None).prctl, PR_SET_CHILD_SUBREAPER)
        atexit.register(self._end)

    def start(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        """Start a program; return its process id."""
        with self._lock:
            # For the moment in which the process changes its parent; what others leave behind is not for us to take.
            self._set_subreaper(1)
            try:
                socket.send_fds(self._channel, [json.dumps(order).encode()], descriptors)
                return int(self._channel.recv(20))
            finally:
                self._set_subreaper(0)

    def _end(self) -> None:
        self._channel.close()
        self._process.wait(30)


@functools.cache
def _server() -> _Server:
    return _Server()


class Popen(subprocess.Popen[Any]):
    """A process that was forked where that can be, and else started."""

    def _execute_child(self, *args: Any, **kwargs: Any) -> None:
        execute: Callable[..., None] = getattr(subprocess.Popen, "_execute_child")  # noqa: B009  # not in its stub
        given = inspect.signature(execute).bind(self, *args, **kwargs).arguments
        command = [os.fspath(word) for word in given["args"]]
        environment = dict(os.environ if given["env"] is None else given["env"])
        if not _can_be_forked(command, given, environment):
            execute(self, *args, **kwargs)
            return
        order = {
            "args": command[1:],
            "env": environment,
            "cwd": os.path.abspath(given["cwd"] or "."),
            "session": given["start_new_session"],
        }
        wanted = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        self.pid = _server().start(order, [own if one == -1 else one for own, one in enumerate(wanted)])
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        cast(Any, self)._close_pipe_fds(*(given[name] for name in pipes))


def _can_be_forked(command: Sequence[str], given: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    if sys.platform != "linux" or command[0] != sys.executable:
        return False
    options = command[3:] if command[1:3] == STRICT else command[1:]
    if options[0].startswith("-") and options[0] not in ("-m", "-c"):
        return False
    if given["preexec_fn"] or given["pass_fds"] or given["executable"] or given["shell"]:
        return False
    if environment.get("PYTHONUTF8", "1") != "1":
        return False
    return not any(name.startswith(SETTINGS) and name not in FOLLOWED for name in environment)


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    input: str | bytes | None = None,  # noqa: A002  # as subprocess calls it
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end: ``subprocess.run`` with the other :class:`Popen`."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.wait(), out, errors)
    if check:
        done.check_returncode()
    return done
