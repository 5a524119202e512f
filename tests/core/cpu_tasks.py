"""Tasks for processes: at a module's top level, where a new process finds them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from omniq import Fixed, TaskQueue, current_task

queue = TaskQueue("memory://")


@queue.task(executor="process")
def pid() -> int:
    return os.getpid()


@queue.task(executor="process")
def meet(here: Path, there: Path) -> int:
    """End only if another process is in the middle of the same at the same time."""
    here.touch()
    while not there.exists():
        time.sleep(0.001)  # no event crosses processes
    return os.getpid()


@queue.task(executor="process", max_retries=1, retry=Fixed(0))
def crash(marker: Path) -> str:
    if marker.exists():
        return "came through"
    marker.touch()
    os._exit(7)


@queue.task(executor="process", max_retries=0)
def always_crash() -> None:
    os.abort()


@queue.task(executor="process", max_retries=0, timeout=0.3)
def too_long() -> None:
    while True:
        pass


@queue.task(executor="process", max_retries=5)
def endless(marker: Path) -> None:
    marker.write_text(str(os.getpid()))
    current_task().progress(1, 3, "begun")
    while True:
        pass


@queue.task(executor="process", max_retries=0)
def fail() -> None:
    raise LookupError("not here")


@queue.task(executor="process", max_retries=0)
def leave() -> None:
    sys.exit(3)


@queue.task(executor="process")
def hoard(megabytes: int) -> int:
    globals()["hoarded"] = bytearray(megabytes << 20)
    return os.getpid()


@queue.task
def on_a_thread() -> int:
    return os.getpid()


@queue.task(executor="process", max_retries=0)
def pid_once() -> int:
    return os.getpid()


@queue.task(executor="process", max_retries=0)
def parent(marker: Path) -> None:
    """Run until it is stopped, with a process of its own."""
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # until it is killed
    marker.with_suffix(".tmp").write_text(str(own.pid))
    marker.with_suffix(".tmp").rename(marker)
    own.wait()


class Unknown:
    """Of a class that the worker may not have."""


@queue.task(executor="process", max_retries=0)
def headers_here() -> dict[str, str]:
    return dict(current_task().headers)


@queue.task(executor="process", max_retries=0)
def log() -> int:
    logger = logging.getLogger("shop")
    logger.debug("not asked for")
    logger.info("sold %s", Unknown.__name__, extra={"customer": 7, "basket": Unknown()})
    logging.getLogger("shop.chatty").info("too much")
    try:
        raise LookupError("sold out")
    except LookupError:
        logger.exception("no %d", "number")
    if os.fork() == 0:
        logging.getLogger("shop").setLevel(logging.CRITICAL)
        logging.getLogger("shop").critical("of a fork")
        os._exit(0)
    os.wait()
    return os.getpid()


@queue.task(executor="process", max_retries=0)
def log_at_every_level() -> None:
    logger = logging.getLogger("shop")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(level, "hello")
    logger.critical("hello", extra={"task_name": "of its own"})
    thread = threading.Thread(target=logger.info, args=("from a thread",))
    thread.start()
    thread.join()


@queue.task(executor="process", max_retries=0, timeout=0.3)
def log_for_ever() -> None:
    while True:
        logging.getLogger("shop").info("again")


@queue.task(executor="process", max_retries=0)
def step(kind: str, marker: Path) -> int:
    """Be quick, unless told otherwise."""
    if kind == "crash":
        os._exit(7)
    if kind == "hold":
        marker.touch()
        while marker.exists():
            time.sleep(0.001)  # no event crosses processes
    return os.getpid()
