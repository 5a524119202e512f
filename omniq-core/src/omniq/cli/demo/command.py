"""``omniq demo``: its arguments, and the store that it works on."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

from omniq.cli.arguments import configuring, count, flag, value
from omniq.cli.http import http_option
from omniq.storage.posix import require_posix

__all__ = ["configure", "run"]


configure = configuring(
    "Watch OmniQ at work: every module of Python's standard library becomes a task that measures it.\n"
    "Two worker processes run them; some tasks fail once and are retried; one worker is killed in the\n"
    "middle, and what it ran is recovered. In the end every result is compared with that of a plain loop.\n"
    "Takes less than a minute.",
    "omniq demo\n"
    "omniq demo --limit 200 --workers 3\n"
    "omniq demo --keep                          keep the store and the logs to look at them\n"
    "omniq demo --dashboard                     something else: an invented shop, in the browser",
    value("--workers", count, "N", "worker processes (default 2)", default=2),
    value("--limit", count, "N", "only so many modules"),
    value("--url", str, "URL", "another store than SQLite in a temporary folder"),
    flag("--dashboard", "show the dashboard of an invented shop instead, until Ctrl-C"),
    http_option("where the dashboard listens (default 127.0.0.1:8787)", ("127.0.0.1", 8787)),
    flag("--keep", "leave the store and the workers' logs when done"),
)


def run(options: argparse.Namespace) -> int:
    """Run the demo.

    :return: 0 if every result is right, else 1.
    """
    if options.dashboard:
        if options.url:
            options.url = _in_own_namespace(options.url)
        code: int = import_module("omniq.dashboard.demo").run(options)
        return code
    require_posix("omniq demo", "it kills and stops worker processes")
    folder = Path(tempfile.mkdtemp(prefix="omniq-demo-"))
    # The workers, and this process's own import of the tasks, find the store here.
    os.environ["OMNIQ_URL"] = _in_own_namespace(options.url) if options.url else f"sqlite:///{folder / 'demo.db'}"
    try:
        from omniq.cli.demo.runner import Demo

        return Demo(folder, workers=options.workers, limit=options.limit, keep=options.keep).run()
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _in_own_namespace(url: str) -> str:
    # What else is in that store is neither shown nor touched.
    if "namespace=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}namespace=demo-{secrets.token_hex(3)}"
