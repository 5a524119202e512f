"""Releasing: what `make release-check` refuses, and a workflow that publishes every distribution."""

from __future__ import annotations

from datetime import date

import yaml

from tests.packaging.project import ROOT
from tests.release import problems, versions

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-05\n\n- more\n\n## [0.1.0] - 2026-12-01\n"


def test_a_version_with_a_dated_section_can_be_released() -> None:
    assert problems("0.2.0", CHANGELOG, {"omniq-core": "0.2.0", "omniq-redis": "0.2.0"}) == []
    assert problems(None, CHANGELOG, {"omniq-core": "0.2.0"}) == []


def test_what_does_not_fit_together_is_named() -> None:
    assert problems("0.2.0", CHANGELOG, {"omniq-core": "0.2.0", "omniq-redis": "0.1.0"}) == [
        "omniq-redis has version 0.1.0, not 0.2.0"
    ]
    assert problems("0.3.0", CHANGELOG, {"omniq-core": "0.3.0"}) == [
        "CHANGELOG.md has no section '## [0.3.0] - YYYY-MM-DD'"
    ]
    assert problems("0.1.0", CHANGELOG, {"omniq-core": "0.1.0"}) == [
        "the latest section of CHANGELOG.md is that of 0.2.0, not of 0.1.0"
    ]


def test_this_version_can_be_released() -> None:
    assert problems(None, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), versions()) == []


def test_the_workflow_checks_before_it_publishes_each_distribution_and_keeps_no_secret() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert next(step["run"] for step in jobs["check"]["steps"] if "run" in step) == ".ci/run"
    published = jobs["publish"]["strategy"]["matrix"]["distribution"]
    assert sorted(published) == sorted(name.replace("-", "_") for name in versions())
    assert published[0] == "omniq_core"
    assert jobs["publish"]["needs"] == "check"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text


def test_the_dates_of_the_changelog_are_days() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    days = [line.rpartition(" - ")[2] for line in lines if line.startswith("## [") and " - " in line]
    assert days == sorted(days, key=date.fromisoformat, reverse=True)
