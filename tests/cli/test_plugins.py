"""``omniq plugins``: what is installed, and what is wrong with it."""

from __future__ import annotations

import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from omniq.cli import main
from tests.cli.program import run_omniq


def install(folder: Path, distribution: str, module: str, text: str) -> None:
    """Put a distribution with one plugin into a folder, as an installer would."""
    (folder / f"{module}.py").write_text(text)
    about = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[omniq]\n{module} = {module}\n")


STORE = """
import omniq

@omniq.hookimpl
def omniq_storages():
    return {"%s": "nowhere:Storage"}
"""


def plugins_of(text: str) -> dict[str, Any]:
    return {plugin["distribution"]: plugin for plugin in json.loads(text)["plugins"]}


def test_installed_plugins_are_shown_with_what_they_bring(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0

    text = capsys.readouterr().out
    assert f"omniq-core {version('omniq-core')}\n" in text
    assert f"omniq-local {version('omniq-local')}  (local)\n  storages        file, memory, sqlite" in text
    assert "retry policies  exponential, fixed, linear" in text
    assert "\x1b" not in text


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--json"]) == 0

    text = capsys.readouterr().out
    assert json.loads(text)["conflicts"] == []
    local = plugins_of(text)["omniq-local"]
    assert local["version"] == version("omniq-local")
    assert set(local["provides"]["storage"]) >= {"memory", "sqlite"}
    assert local["problem"] is None


def test_a_plugin_of_a_third_party_is_found(folder: Path) -> None:
    install(folder, "shop-store", "shop_store", STORE % "shop")

    ended = run_omniq("plugins", cwd=folder, PYTHONPATH=str(folder))

    assert ended.returncode == 0
    assert "shop-store 1.2  (shop_store)\n  storages        shop" in ended.stdout


def test_a_plugin_that_only_listens_says_so(folder: Path) -> None:
    install(folder, "shop-ears", "shop_ears", "import omniq\n@omniq.hookimpl\ndef omniq_worker_stopped(worker): ...\n")

    ended = run_omniq("plugins", cwd=folder, PYTHONPATH=str(folder))

    assert "shop-ears 1.2  (shop_ears)\n  listens to events only" in ended.stdout


def test_a_broken_plugin_is_shown_and_fails_the_command(folder: Path) -> None:
    install(folder, "shop-broken", "shop_broken", "1 / 0")

    ended = run_omniq("plugins", cwd=folder, PYTHONPATH=str(folder))
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "shop-broken 1.2  (shop_broken)\n  broken: ZeroDivisionError: division by zero" in ended.stdout
    assert "omniq-local" in ended.stdout

    ended = run_omniq("plugins", "--json", cwd=folder, PYTHONPATH=str(folder))
    assert (ended.returncode, ended.stderr) == (1, "")
    assert plugins_of(ended.stdout)["shop-broken"]["problem"] == "ZeroDivisionError: division by zero"


def test_two_plugins_that_claim_one_name_fail_the_command(folder: Path) -> None:
    install(folder, "shop-one", "shop_one", STORE % "shop")
    install(folder, "shop-two", "shop_two", STORE % "shop")

    ended = run_omniq("plugins", cwd=folder, PYTHONPATH=os.fspath(folder))
    assert ended.returncode == 1
    assert "conflict: storage 'shop' is claimed by shop-one and shop-two; uninstall one of them" in ended.stdout

    ended = run_omniq("plugins", "--json", cwd=folder, PYTHONPATH=os.fspath(folder))
    assert ended.returncode == 1
    assert len(json.loads(ended.stdout)["conflicts"]) == 1


def test_how_long_each_took_is_shown_and_what_is_left_out(folder: Path) -> None:
    install(folder, "shop-slow", "shop_slow", "import time; time.sleep(0.2)")  # the time that is shown

    ended = run_omniq("plugins", cwd=folder, PYTHONPATH=str(folder))
    assert re.search(r"\(shop_slow\)\n  listens to events only\n  loaded in       [\d,]+\.\d ms", ended.stdout)
    ended = run_omniq("plugins", "--json", cwd=folder, PYTHONPATH=str(folder))
    assert plugins_of(ended.stdout)["shop-slow"]["seconds"] >= 0.2

    ended = run_omniq("plugins", cwd=folder, PYTHONPATH=str(folder), OMNIQ_PLUGINS="-shop-slow")
    assert "(shop_slow)\n  left out by OMNIQ_PLUGINS\n" in ended.stdout
