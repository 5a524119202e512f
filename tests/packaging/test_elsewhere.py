"""On systems that are not POSIX everything can be imported, and what they cannot do is refused in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_without_what_only_posix_systems_have(tmp_path: Path) -> None:
    program = Path(__file__).with_name("elsewhere.py")
    done = subprocess.run(
        [sys.executable, program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    files, processes = done.stdout.splitlines()
    assert "the file storage needs a POSIX system" in files
    assert "take sqlite:///" in files
    assert "_compute" in processes
    assert "needs a POSIX system" in processes
    assert "omniq demo needs a POSIX system" in done.stderr
