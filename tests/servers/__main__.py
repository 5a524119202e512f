"""Starts a server for as long as it is needed.

``python -m tests.servers redis -- COMMAND …`` runs a command with ``OMNIQ_URL`` set to a new server's URL;
``python -m tests.servers redis`` prints the URL and keeps the server until the end of its input.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.servers.starting import KINDS, make_server

USAGE = f"usage: python -m tests.servers {'|'.join(KINDS)} [-- COMMAND ...]"


def serve(kind: str) -> int:
    """Start a server, say where it is, and end it when the input ends."""
    with tempfile.TemporaryDirectory(prefix=f"omniq-{kind}-") as folder, make_server(kind, Path(folder)) as server:
        print(server.url, flush=True)
        sys.stdin.read()
    return 0


def run(kind: str, command: Sequence[str]) -> int:
    """Run a command beside a server.

    :return: the command's exit code.
    """
    # In a session of its own, so that Ctrl-C ends the command and not the server under it; whatever becomes of this
    # process, its pipe closes, and the server ends.
    serving = subprocess.Popen(
        [sys.executable, "-m", "tests.servers", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert serving.stdin is not None
    assert serving.stdout is not None
    with serving:
        url = serving.stdout.readline().strip()
        if not url:
            return serving.wait() or 1
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides what it means
        try:
            return subprocess.run(
                command,
                env={**os.environ, "OMNIQ_URL": url},
                check=False,
                preexec_fn=lambda: signal.signal(signal.SIGINT, before),
            ).returncode
        finally:
            serving.stdin.close()


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say."""
    match arguments:
        case [kind] if kind in KINDS:
            return serve(kind)
        case [kind, "--", _, *_] if kind in KINDS:
            return run(kind, arguments[2:])
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
