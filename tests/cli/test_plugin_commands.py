"""Commands that plugins add to ``omniq``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import omniq
from omniq.cli.plugin_commands import summaries
from omniq.errors import ConfigurationError, PluginConflict
from omniq.plugins import Plugins
from tests.cli.program import run_omniq
from tests.cli.test_plugins import install

PLUGIN = """
import omniq

@omniq.hookimpl
def omniq_commands():
    return {%r: ("%s", "order 100%% of what runs out")}
"""
COMMAND = """
import omniq

def configure(parser):
    parser.add_argument("article")
    parser.add_argument("--amount", type=int, default=1)

def run(options):
    if options.article == "gold":
        raise omniq.OmniQError("nobody sells gold")
    print(f"{options.amount} of {options.article}")
    return 7
"""


@pytest.fixture
def shop(folder: Path) -> Path:
    install(folder, "shop-cli", "shop_cli", PLUGIN % ("restock", "shop_restock"))
    (folder / "shop_restock.py").write_text(COMMAND)
    return folder


def test_a_command_of_a_plugin_is_shown_and_run_like_our_own(shop: Path) -> None:
    shown = run_omniq("--help", cwd=shop, PYTHONPATH=str(shop))
    assert shown.returncode == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("    restock ")]
    assert line.endswith(" order 100% of what runs out")
    assert run_omniq("restock", "tea", "--amount", "2", cwd=shop, PYTHONPATH=str(shop)).stdout == "2 of tea\n"

    ended = run_omniq("restock", "gold", cwd=shop, PYTHONPATH=str(shop))
    assert (ended.returncode, ended.stderr) == (1, "omniq: error: nobody sells gold\n")
    ended = run_omniq("restock", "tea", "--colour", cwd=shop, PYTHONPATH=str(shop))
    assert (ended.returncode, ended.stderr) == (
        2,
        "omniq: error: there is no option --colour (see omniq restock --help)\n",
    )


def test_a_command_of_a_plugin_may_call_its_arguments_as_it_likes(shop: Path) -> None:
    (shop / "shop_restock.py").write_text(COMMAND.replace("article", "words").replace("amount", "command"))
    ended = run_omniq("restock", "tea", "--command", "2", cwd=shop, PYTHONPATH=str(shop))
    assert ended.stdout == "2 of tea\n", ended.stderr


def test_a_name_that_two_claim_is_an_error_that_names_both(shop: Path) -> None:
    install(shop, "store-cli", "store_cli", PLUGIN % ("restock", "shop_restock"))
    install(shop, "other-cli", "other_cli", PLUGIN % ("stats", "shop_restock"))

    ended = run_omniq("restock", "tea", cwd=shop, PYTHONPATH=str(shop))
    assert ended.returncode == 2
    assert "command 'restock' is claimed by shop-cli and store-cli; uninstall one of them" in ended.stderr
    ended = run_omniq("stats", "x:y", cwd=shop, PYTHONPATH=str(shop))
    assert ended.returncode == 2
    assert "command 'stats' is claimed by omniq-core and other-cli" in ended.stderr

    told = json.loads(run_omniq("plugins", "--json", cwd=shop, PYTHONPATH=str(shop)).stdout)
    assert ["restock" in told["conflicts"][0], "stats" in told["conflicts"][1]] == [True, True]
    shown = run_omniq("--help", cwd=shop, PYTHONPATH=str(shop), COLUMNS="300").stdout
    assert "(command 'restock' is claimed by shop-cli and store-cli" in shown


class Runs:
    """A command as an object."""

    def configure(self, parser: object) -> None: ...

    def run(self, options: object) -> int:
        return 0


def plugins_with(thing: object, name: str = "restock") -> Plugins:
    class Own:
        @omniq.hookimpl
        def omniq_commands(self) -> object:
            return {name: thing}

    plugins = Plugins(discover=False)
    plugins.register(Own(), name="own", distribution="own-cli")
    return plugins


def test_a_command_may_be_an_object() -> None:
    command = Runs()

    assert plugins_with((command, "order")).command("restock") is command
    assert list(summaries(plugins_with((command, "order"))))[-1] == ("restock", "order")


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("shop.restock", "command 'restock' of own-cli: omniq_commands must map it to a pair"),
        ((Runs(), 3), "must map it to a pair"),
        (("nowhere.restock", "order"), "of own-cli cannot be loaded from 'nowhere.restock': ModuleNotFoundError"),
        (("json:nothing", "order"), "cannot be loaded from 'json:nothing': AttributeError"),
        (("json", "order"), "command 'restock' of own-cli: json has no configure and no run"),
    ],
)
def test_a_command_that_cannot_be_used_is_named(thing: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plugins_with(thing).command("restock")


def test_a_clash_with_a_command_of_ours_names_ours() -> None:
    plugins = plugins_with((Runs(), "order"), name="stats")

    with pytest.raises(PluginConflict, match="claimed by omniq-core and own-cli"):
        plugins.command("stats")
    assert len(plugins.conflicts) == 1
