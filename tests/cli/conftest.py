"""A folder with a small application in it, as the current folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from omniq import TaskQueue
from tests.cli.program import SHOP, Program


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with shop.py in it. What a test imports from it is forgotten afterwards."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMNIQ_URL", raising=False)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin is not None and Path(origin).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def store(folder: Path) -> Iterator[TaskQueue]:
    """The application's store, seen from outside."""
    with TaskQueue(f"sqlite:///{folder / 'jobs.db'}") as queue:
        yield queue


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Program]]:
    """Start commands in the folder; those that still run after the test are ended."""
    started: list[Program] = []

    def start(*arguments: str, **more: str) -> Program:
        program = Program(*arguments, cwd=folder, **more)
        started.append(program)
        return program

    yield start
    for program in started:
        program.end()
