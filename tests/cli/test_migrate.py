"""``omniq migrate``: what is missing is shown, applied, and then there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import ClassVar

import pytest
from attrs import evolve

from omniq import TaskQueue
from omniq._runtime.connections import Connections
from omniq.cli import main
from omniq.storage import StorageConfig
from omniq.storage.migrations import Migrated, Migration
from omniq_local.memory.storage import MemoryStorage

STEPS = (
    Migration(version=1, name="tasks", sql="CREATE TABLE task (id text);", applied=True),
    Migration(version=2, name="schedules", sql="CREATE TABLE schedule (id text);", applied=False),
)


class MigratedStorage(MemoryStorage, Migrated):
    """A store whose schema is a list."""

    steps: ClassVar[list[Migration]] = []

    async def migrations(self) -> list[Migration]:
        return list(self.steps)

    async def migrate(self) -> list[Migration]:
        missing = [step for step in self.steps if not step.applied]
        self.steps[:] = [evolve(step, applied=True) for step in self.steps]
        return missing


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Migration]]:
    """Yield the steps of a store that ``memory://`` leads to for the moment."""
    config = StorageConfig(scheme="memory", location="memory://", redacted="memory://")
    storage = MigratedStorage(config)
    monkeypatch.setattr(Connections, "sibling", lambda _: storage)
    MigratedStorage.steps[:] = STEPS
    yield MigratedStorage.steps
    MigratedStorage.steps.clear()


def test_what_is_missing_is_applied_once(steps: list[Migration], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "memory://"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "memory://",
        "   1  tasks: there already",
        "   2  schedules: applied",
        "1 step applied",
    ]
    assert all(step.applied for step in steps)
    assert main(["migrate", "memory://"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no steps applied"


def test_a_dry_run_changes_nothing(steps: list[Migration], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "memory://", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "   1  tasks: there already",
        "   2  schedules: missing",
        "1 step missing",
    ]
    assert tuple(steps) == STEPS


def test_the_statements_of_what_is_missing_are_printed(
    steps: list[Migration], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "memory://", "--sql"]) == 0
    assert capsys.readouterr().out == "-- 2: schedules\nBEGIN;\nCREATE TABLE schedule (id text);\nCOMMIT;\n\n"
    assert tuple(steps) == STEPS


@pytest.mark.parametrize(("more", "applied"), [((), [True, True]), (("--dry-run",), [True, False])])
def test_json_has_every_step(
    steps: list[Migration], more: tuple[str, ...], applied: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "memory://", "--json", *more]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["url"] == "memory://"
    assert [step["applied"] for step in answer["migrations"]] == applied
    assert [step["applied_now"] for step in answer["migrations"]] == [False, not more]
    assert all("sql" not in step for step in answer["migrations"])
    assert len(steps) == 2


def test_a_store_without_a_schema_has_nothing_to_migrate(store: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", store.url]) == 0
    assert capsys.readouterr().out == f"{store.url} has no schema to migrate\n"
    assert main(["migrate", store.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"url": store.url, "migrations": []}


def test_showing_and_printing_at_once_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "memory://", "--sql", "--dry-run"]) == 2
    assert "not allowed with" in capsys.readouterr().err
