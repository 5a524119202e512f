"""``python -m tests.servers``: a server for as long as a command needs it, and not longer."""

from __future__ import annotations

import socket
import subprocess
import sys
from urllib.parse import urlsplit

from omniq.testing import wait_until
from tests.faults.scene import ROOT
from tests.servers.base import HOST

HELPER = [sys.executable, "-m", "tests.servers"]
TELL = "import os; print(os.environ['OMNIQ_URL'], flush=True);"


def answers(url: str) -> bool:
    try:
        socket.create_connection((HOST, urlsplit(url).port or 0), 1).close()
    except OSError:
        return False
    return True


def test_a_command_runs_beside_a_server_which_ends_with_it() -> None:
    connect = "import redis; redis.Redis.from_url(os.environ['OMNIQ_URL']).ping();"
    done = subprocess.run(
        [*HELPER, "redis", "--", sys.executable, "-c", f"{TELL} {connect} raise SystemExit(3)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("redis://")
    assert not answers(done.stdout)


def test_a_server_ends_although_whoever_asked_for_it_is_killed() -> None:
    waiting = f"{TELL} import sys; sys.stdin.read()"
    with subprocess.Popen(
        [*HELPER, "redis", "--", sys.executable, "-c", waiting],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as helper:
        assert helper.stdout is not None
        url = helper.stdout.readline()
        assert answers(url)
        helper.kill()
    wait_until(lambda: not answers(url), what="the server's end")


def test_a_wrong_kind_is_refused_with_the_right_ones() -> None:
    done = subprocess.run([*HELPER, "oracle"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "redis|postgres|nats" in done.stderr
