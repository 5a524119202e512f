"""Measuring processes, as the runner sees them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.hosts import Place
from tests.bench.job import Job
from tests.bench.lines import Scenario
from tests.bench.registry import Entry

__all__ = ["MeasurementFailed", "Measuring"]

ROOT = Path(__file__).parents[2]


class MeasurementFailed(Exception):
    """A measuring process ended without figures; the text says why."""


class Measuring:
    """A measuring process under way.

    :param scenario: what it measures.
    :param entry: of whom.
    :param size: how much of it.
    :param python: the interpreter of the contender's environment.
    :param place: on the store's server, if it has one.
    :param popen: starts the process.
    """

    def __init__(
        self,
        scenario: Scenario,
        entry: Entry,
        size: int,
        python: Path,
        place: Place | None = None,
        popen: Callable[..., subprocess.Popen[str]] = subprocess.Popen,
    ) -> None:
        self.scenario = scenario
        self.entry = entry
        self.size = size
        self._folder = tempfile.mkdtemp(prefix="omniq-bench-")
        self.place = place
        job = Job(
            contender=entry.name,
            store=entry.store,
            scenario=scenario.name,
            size=size,
            folder=self._folder,
            url=place.url if place else "",
            name=place.name if place else "",
            monitor=place.monitor if place else "",
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
        )
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMNIQ_", "COVERAGE_"))}
        self._process = popen(
            [python, "-m", "tests.bench.child", "measure", job.text],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def values(self, patience: float) -> list[dict[str, Any]]:
        """Wait for the figures.

        :param patience: seconds.
        :raises MeasurementFailed: if none come.
        """
        try:
            output, errors = self._process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, errors = self._process.communicate()
            raise MeasurementFailed(f"{errors}\nno figure within {patience:g} s") from None
        except BaseException:
            self._process.kill()
            raise
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._process.returncode != 0:
            raise MeasurementFailed(errors.strip() or f"code {self._process.returncode}")
        # Some products greet on the standard output.
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]
