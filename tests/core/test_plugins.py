"""Plugins as they are installed: real distributions (metadata and entry points on the path), found as any other."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Protocol

import pytest

import omniq
from omniq.errors import ConfigurationError, PluginConflict, UnknownPlugin, UnknownScheme
from omniq.plugins import Plugin, Plugins
from omniq.retry import Exponential, Fixed, Linear
from omniq.storage.urls import parse_url
from tests.core.running import working

STORAGE = """
    from omniq.storage import Storage

    class Shelf(Storage):
        def __init__(self, config):
            config.check_options({"height"})
            self.config = config

    Shelf.__abstractmethods__ = frozenset()
"""


class Install(Protocol):
    """Puts a distribution onto the path: its modules by name, and its entry points."""

    def __call__(
        self,
        distribution: str,
        modules: dict[str, str],
        *,
        version: str = ...,
        entry_points: dict[str, str] | None = ...,
        group: str = ...,
    ) -> None: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.syspath_prepend(tmp_path)

    def install(
        distribution: str,
        modules: dict[str, str],
        *,
        version: str = "1.0",
        entry_points: dict[str, str] | None = None,
        group: str = "omniq",
    ) -> None:
        for module, source in modules.items():
            (tmp_path / f"{module}.py").write_text("import omniq\n" + dedent(source))
            # The next test may have another module of that name.
            monkeypatch.delitem(sys.modules, module, raising=False)
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        named = {next(iter(modules)): next(iter(modules))} if entry_points is None else entry_points
        (folder / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()))
        importlib.invalidate_caches()

    return install


def found(plugins: Plugins, distribution: str) -> Plugin:
    (plugin,) = [plugin for plugin in plugins.found if plugin.distribution == distribution]
    return plugin


def test_a_plugin_is_found_with_its_distribution_its_version_and_what_it_brings(install: Install) -> None:
    install(
        "acme-queue",
        {
            "acme_plugin": """
                @omniq.hookimpl
                def omniq_storages():
                    return {"shelf": "acme_storage:Shelf", "rack": "acme_storage:Shelf"}

                @omniq.hookimpl
                def omniq_triggers():
                    return {"full moon": "acme_moon:FullMoon"}
            """
        },
        version="2.3",
        entry_points={"acme": "acme_plugin"},
    )

    assert found(Plugins(), "acme-queue") == Plugin(
        name="acme",
        distribution="acme-queue",
        version="2.3",
        provides={"storage": ("rack", "shelf"), "trigger": ("full moon",)},
    )


def test_a_third_partys_storage_is_opened_by_its_scheme_and_imported_only_then(install: Install) -> None:
    install(
        "acme-queue",
        {
            "acme_plugin": """
                @omniq.hookimpl
                def omniq_storages():
                    return {"shelf": "acme_storage:Shelf"}
            """,
            "acme_storage": STORAGE,
        },
    )
    plugins = Plugins()
    assert "acme_plugin" in sys.modules
    assert "acme_storage" not in sys.modules

    opened: Any = plugins.open_storage(parse_url("shelf://hall?height=3"))

    assert type(opened).__module__ == "acme_storage"
    assert (opened.config.location, opened.config.options) == ("shelf://hall", {"height": "3"})


def test_a_storages_complaint_about_an_option_is_a_configuration_error(install: Install) -> None:
    install(
        "acme-queue",
        {
            "acme_plugin": STORAGE
            + """
    @omniq.hookimpl
    def omniq_storages():
        return {"shelf": Shelf}
            """
        },
    )

    with pytest.raises(ConfigurationError, match="unknown option 'width'; shelf:// knows height, namespace"):
        Plugins().open_storage(parse_url("shelf://hall?width=3"))


def test_third_party_serializers_retry_policies_and_triggers_are_found_by_name(install: Install) -> None:
    install(
        "acme-queue",
        {
            "acme_plugin": """
                class Lunar:
                    kind = "lunar"

                @omniq.hookimpl
                def omniq_serializers():
                    return {"runes": "acme_parts:runes"}

                @omniq.hookimpl
                def omniq_retry_policies():
                    return {"lunar": Lunar}

                @omniq.hookimpl
                def omniq_triggers():
                    return {"full moon": "acme_parts:FullMoon"}
            """,
            "acme_parts": """
                runes = object()

                class FullMoon:
                    kind = "full moon"
            """,
        },
    )
    plugins = Plugins()

    parts = importlib.import_module("acme_parts")
    assert plugins.serializer("runes") is parts.runes
    assert plugins.trigger("full moon") is parts.FullMoon
    assert plugins.retry_policy("lunar").kind == "lunar"


def test_the_cores_own_parts_come_through_the_same_hooks() -> None:
    plugins = Plugins(discover=False)

    assert [plugins.retry_policy(kind) for kind in ("exponential", "fixed", "linear")] == [Exponential, Fixed, Linear]
    assert found(plugins, "omniq-core").provides["serializer"] == ("cloudpickle", "json")


BROKEN = {
    "fails at import": ("import no_such_driver", "ModuleNotFoundError: No module named 'no_such_driver'"),
    "leaves at import": ("raise SystemExit('not today')", "SystemExit: not today"),
    "has a syntax error": ("def (", "SyntaxError"),
    "has a hook that raises": (
        """
        @omniq.hookimpl
        def omniq_storages():
            raise RuntimeError("no shelf today")
        """,
        "RuntimeError: no shelf today",
    ),
    "has a hook that gives no mapping": (
        """
        @omniq.hookimpl
        def omniq_storages():
            return 5
        """,
        "TypeError",
    ),
    "misspells a hook": (
        """
        @omniq.hookimpl
        def omniq_storage():
            return {"shelf": "acme_storage:Shelf"}
        """,
        "unknown hook 'omniq_storage'",
    ),
    "asks for a parameter that the hook has not": (
        """
        @omniq.hookimpl
        def omniq_task_started(task, colour):
            pass
        """,
        "colour",
    ),
}


@pytest.mark.parametrize(("source", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_plugin_is_reported_and_harms_nobody_when_it(
    install: Install, caplog: pytest.LogCaptureFixture, source: str, problem: str
) -> None:
    install("acme-broken", {"acme_broken": source}, version="0.9")
    install(
        "acme-sound",
        {
            "acme_sound": """
                @omniq.hookimpl
                def omniq_serializers():
                    return {"runes": "acme_sound:RUNES"}

                RUNES = "runes"
            """
        },
    )

    with caplog.at_level(logging.WARNING, logger="omniq.plugins"):
        plugins = Plugins()

    broken = found(plugins, "acme-broken")
    assert problem in (broken.problem or "")
    assert (broken.name, broken.version, broken.provides) == ("acme_broken", "0.9", {})
    assert "acme_broken" in caplog.text
    assert "acme-broken" in caplog.text
    assert problem in caplog.text
    assert found(plugins, "acme-sound").problem is None
    assert plugins.serializer("runes") == "runes"  # type: ignore[comparison-overlap]  # not a real serializer
    with pytest.raises(UnknownScheme, match="these plugins are broken: 'acme_broken' of acme-broken"):
        plugins.open_storage(parse_url("shelf://"))


def test_a_misspelt_hook_is_an_error_that_names_the_plugin_and_the_hook() -> None:
    class Listener:
        @omniq.hookimpl
        def omniq_task_begun(self) -> None: ...

    plugins = Plugins(discover=False)
    with pytest.raises(ConfigurationError, match=r"plugin 'metrics' of metrics: unknown hook 'omniq_task_begun'"):
        plugins.register(Listener(), name="metrics")

    # It left nothing behind that would fail the next one.
    plugins.register(object(), name="sound")
    assert [plugin.name for plugin in plugins.found] == ["omniq", "sound"]


def test_a_hook_that_raises_leaves_nothing_of_its_plugin_behind() -> None:
    class Halfway:
        @omniq.hookimpl
        def omniq_storages(self) -> dict[str, str]:
            return {"shelf": "acme_storage:Shelf"}

        @omniq.hookimpl
        def omniq_triggers(self) -> dict[str, str]:
            raise RuntimeError("no moon")

        @omniq.hookimpl
        def omniq_worker_stopped(self) -> None: ...

    plugins = Plugins(discover=False)
    with pytest.raises(ConfigurationError, match="plugin 'half' of half: RuntimeError: no moon"):
        plugins.register(Halfway(), name="half")

    with pytest.raises(UnknownScheme):
        plugins.open_storage(parse_url("shelf://"))
    assert plugins.event("omniq_worker_stopped") is None


CLAIMS = {
    "omniq_storages": ("storage 'twin' is claimed by acme-a and acme-b", "shelf"),
    "omniq_serializers": ("serializer 'twin' is claimed by acme-a and acme-b", "json"),
    "omniq_retry_policies": ("retry policy 'twin' is claimed by acme-a and acme-b", "fixed"),
    "omniq_triggers": ("trigger 'twin' is claimed by acme-a and acme-b", ""),
}


def ask(plugins: Plugins, hook: str, name: str) -> Any:
    match hook:
        case "omniq_storages":
            config = parse_url(f"{name}://")
            return plugins.storage_factory(config)(config)
        case "omniq_serializers":
            return plugins.serializer(name)
        case "omniq_retry_policies":
            return plugins.retry_policy(name)
        case _:
            return plugins.trigger(name)


@pytest.mark.parametrize("hook", CLAIMS)
def test_a_name_that_two_distributions_claim_is_an_error_that_names_both_and_no_other_name_is(
    install: Install, hook: str
) -> None:
    for letter in "ab":
        install(
            f"acme-{letter}",
            {
                f"acme_{letter}": f"""
                    @omniq.hookimpl
                    def {hook}():
                        return {{"twin": print, "own-{letter}": lambda config=None: "{letter}"}}
                """
            },
        )
    plugins = Plugins()

    with pytest.raises(PluginConflict, match=CLAIMS[hook][0]):
        ask(plugins, hook, "twin")
    (conflict,) = [conflict for conflict in plugins.conflicts if "twin" in conflict]
    assert conflict.startswith(f"{CLAIMS[hook][0]}; uninstall one of them, or leave one out: ")
    assert conflict.endswith("OMNIQ_PLUGINS=-acme-a")
    for letter in "ab":
        own = ask(plugins, hook, f"own-{letter}")
        assert (own if hook == "omniq_storages" else own()) == letter
        assert found(plugins, f"acme-{letter}").problem is None


def test_a_distribution_that_claims_a_name_of_the_core_conflicts_with_it(install: Install) -> None:
    install(
        "acme-queue",
        {
            "acme_plugin": """
                @omniq.hookimpl
                def omniq_retry_policies():
                    return {"fixed": "acme_parts:Fixed"}
            """
        },
    )

    with pytest.raises(PluginConflict, match="retry policy 'fixed' is claimed by omniq-core and acme-queue"):
        Plugins().retry_policy("fixed")


def test_two_distributions_whose_entry_points_have_one_name_are_both_loaded(install: Install) -> None:
    for letter in "ab":
        install(
            f"acme-{letter}",
            {
                f"acme_{letter}": f"""
                    @omniq.hookimpl
                    def omniq_serializers():
                        return {{"{letter}": "{letter}"}}
                """
            },
            entry_points={"acme": f"acme_{letter}"},
        )
    plugins = Plugins()

    assert {found(plugins, f"acme-{letter}").name for letter in "ab"} == {"acme"}
    assert {found(plugins, f"acme-{letter}").problem for letter in "ab"} == {None}
    assert found(plugins, "acme-b").provides == {"serializer": ("b",)}


def test_a_module_that_two_entry_points_name_is_one_plugin(install: Install) -> None:
    install(
        "acme-queue",
        {
            "acme_plugin": """
                @omniq.hookimpl
                def omniq_storages():
                    return {"shelf": lambda config: "a shelf", "rack": lambda config: "a rack"}
            """
        },
        entry_points={"rack": "acme_plugin", "shelf": "acme_plugin"},
    )
    plugins = Plugins()

    assert found(plugins, "acme-queue").problem is None
    assert ask(plugins, "omniq_storages", "rack") == "a rack"
    assert ask(plugins, "omniq_storages", "shelf") == "a shelf"


@pytest.mark.parametrize(
    ("url", "extra"),
    [
        ("sqlite:///jobs.db", "local"),
        ("memory://", "local"),
        ("redis://shop:hush@localhost", "redis"),
        ("rediss://localhost", "redis"),
        ("postgresql://localhost/db", "postgres"),
        ("postgres://localhost/db", "postgres"),
        ("nats://localhost", "nats"),
        ("tls://localhost", "nats"),
    ],
)
def test_a_scheme_that_nobody_installed_opens_names_the_command_that_brings_it(url: str, extra: str) -> None:
    with pytest.raises(UnknownScheme) as caught:
        Plugins(discover=False).open_storage(parse_url(url))

    assert f"pip install 'omniq-core[{extra}]'" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_scheme_that_nobody_knows_is_answered_with_those_that_are_installed(install: Install) -> None:
    install(
        "acme-queue",
        {
            "acme_plugin": """
                @omniq.hookimpl
                def omniq_storages():
                    return {"shelf": "acme_storage:Shelf"}
            """
        },
    )

    with pytest.raises(UnknownScheme, match=r"no storage opens self:// .*installed: .*shelf://"):
        Plugins().open_storage(parse_url("self://"))


@pytest.mark.parametrize("hook", ["omniq_serializers", "omniq_retry_policies"])
def test_an_unknown_name_is_answered_with_those_that_are_installed(hook: str) -> None:
    plugins = Plugins(discover=False)

    with pytest.raises(UnknownPlugin, match=r"is called 'runes'; installed: \w+"):
        ask(plugins, hook, "runes")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def Shelf(config): return 'a shelf'", r"Shelf returned a str, which is no omniq\.storage\.Storage"),
        ("def Shelf(config): pass", r"Shelf returned a NoneType, which is no omniq\.storage\.Storage"),
        ("Shelf = 5", "is of type int; name a class or function that makes one"),
        (
            """
            from omniq.storage import SimpleStorage

            class Shelf(SimpleStorage):
                def connect(self): ...
                def fault(self, error): ...
            """,
            r"lacks methods of omniq\.storage\.Storage: findings, transaction$",
        ),
        (
            """
            from omniq.storage import Storage

            class Shelf:
                def __init__(self, config): ...

            for name in Storage.__abstractmethods__ - {"claim", "finish"}:
                setattr(Shelf, name, print)
            """,
            r"lacks methods of omniq\.storage\.Storage: claim, finish$",
        ),
    ],
    ids=["text", "nothing", "a-number", "half-a-class", "half-of-another"],
)
def test_what_is_no_storage_is_an_error_that_says_whose_it_is_and_what_it_lacks(
    install: Install, source: str, problem: str
) -> None:
    install(
        "acme-queue",
        {
            "acme_plugin": """
                @omniq.hookimpl
                def omniq_storages():
                    return {"shelf": "acme_storage:Shelf"}
            """,
            "acme_storage": source,
        },
    )

    with pytest.raises(ConfigurationError, match=f"storage 'shelf' of acme-queue.*{problem}"):
        Plugins().open_storage(parse_url("shelf://hall"))


def test_a_scheme_of_a_distribution_that_is_not_installed_is_answered_with_how_to_look() -> None:
    with pytest.raises(UnknownScheme, match="install that here and look with: omniq plugins"):
        Plugins(discover=False).open_storage(parse_url("shelf://hall"))


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("acme_missing:Shelf", "ModuleNotFoundError: No module named 'acme_missing'"),
        ("acme_storage:Shell", "AttributeError: .*Shell"),
        ("acme_storage.Shelf", "write module:attribute, such as"),
        ("acme_storage", "write module:attribute, such as"),
        (":Shelf", "write module:attribute, such as"),
        ("acme_broken:Shelf", "RuntimeError: no shelf today"),
    ],
)
def test_a_storage_that_cannot_be_loaded_is_an_error_that_says_whose_it_is_and_why(
    install: Install, place: str, problem: str
) -> None:
    install(
        "acme-queue",
        {
            "acme_plugin": f"""
                @omniq.hookimpl
                def omniq_storages():
                    return {{"shelf": "{place}"}}
            """,
            "acme_storage": STORAGE,
            "acme_broken": "raise RuntimeError('no shelf today')",
        },
    )

    with pytest.raises(
        ConfigurationError, match=f"storage 'shelf' of acme-queue cannot be loaded .*{problem}"
    ) as caught:
        Plugins().open_storage(parse_url("shelf://"))
    assert caught.value.__cause__ is not None


class Listener:
    """Writes down the workers it is told of."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @omniq.hookimpl
    def omniq_worker_stopped(self, worker: str) -> None:
        self.heard.append(worker)


class Deaf:
    """Raises whatever it is told."""

    @omniq.hookimpl
    def omniq_worker_stopped(self) -> None:
        raise RuntimeError("not listening")


def test_an_event_hook_that_raises_is_logged_and_the_others_are_still_told(caplog: pytest.LogCaptureFixture) -> None:
    plugins = Plugins(discover=False)
    first, last = Listener(), Listener()
    plugins.register(first, name="first")
    plugins.register(Deaf(), name="deaf")
    plugins.register(last, name="last")

    tell = plugins.event("omniq_worker_stopped")
    assert tell is not None
    tell(worker="w1")

    assert (first.heard, last.heard) == (["w1"], ["w1"])
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "omniq_worker_stopped of plugin deaf:deaf raised" in record.getMessage()
    assert "not listening" in caplog.text


def test_an_event_that_nobody_listens_to_is_none_so_that_it_costs_nothing() -> None:
    plugins = Plugins(discover=False)
    plugins.register(Listener(), name="listener")

    assert plugins.event("omniq_task_started") is None
    assert plugins.event("omniq_worker_stopped") is not None


def test_one_plugin_registered_twice_is_an_error_and_told_once() -> None:
    plugins = Plugins(discover=False)
    listener = Listener()
    plugins.register(listener, name="listener")

    with pytest.raises(ConfigurationError, match="listener"):
        plugins.register(listener, name="again")

    tell = plugins.event("omniq_worker_stopped")
    assert tell is not None
    tell(worker="w1")
    assert listener.heard == ["w1"]


def test_an_installed_plugin_is_found_by_a_process_that_only_imports_omniq(install: Install, tmp_path: Path) -> None:
    install(
        "acme-queue",
        {
            "acme_plugin": """
                @omniq.hookimpl
                def omniq_storages():
                    return {"shelf": "acme_storage:Shelf"}
            """,
            "acme_storage": STORAGE,
        },
    )
    program = """
        import json, sys
        import omniq
        loaded_by_import = "acme_plugin" in sys.modules
        from omniq.plugins import default_plugins
        from omniq.storage.urls import parse_url
        opened = default_plugins().open_storage(parse_url("shelf://hall"))
        print(json.dumps([loaded_by_import, type(opened).__module__, default_plugins() is default_plugins()]))
    """
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [False, "acme_storage", True]


# What no program asked for

ENDS = ["KeyboardInterrupt()", "SystemExit(3)", "GeneratorExit()", "asyncio.CancelledError()", "BaseException('x')"]


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize(
    "module",
    [
        "raise {}",
        """
        @omniq.hookimpl
        def omniq_storages():
            raise {}
        """,
    ],
    ids=["on import", "in a hook"],
)
def test_whatever_a_plugin_raises_ends_nothing(install: Install, module: str, error: str) -> None:
    install("acme-queue", {"acme_plugin": dedent("import asyncio\n" + dedent(module).format(error))})

    plugins = Plugins()

    assert error.partition("(")[0].rpartition(".")[2] in (found(plugins, "acme-queue").problem or "")
    assert plugins.open_storage(parse_url("memory://")) is not None


@pytest.mark.parametrize("error", ENDS)
def test_whatever_a_listener_raises_is_logged(install: Install, error: str, caplog: pytest.LogCaptureFixture) -> None:
    source = f"""
        import asyncio

        @omniq.hookimpl
        def omniq_task_enqueued():
            raise {error}

        @omniq.hookimpl
        def omniq_task_started():
            raise {error}
    """
    install("acme-queue", {"acme_plugin": source})
    queue = omniq.TaskQueue("memory://", plugins=Plugins())

    @queue.task
    def work() -> int:
        return 5

    with working(queue):
        assert work.enqueue().result(timeout=30) == 5
    queue.close()
    said = [record.getMessage() for record in caplog.records if record.exc_info]
    assert said == [
        "omniq_task_enqueued of plugin acme-queue:acme_plugin raised; ignored",
        "omniq_task_started of plugin acme-queue:acme_plugin raised; ignored",
    ]


@pytest.mark.parametrize("where", ["on import", "in a hook"])
def test_ctrl_c_while_a_plugins_code_runs_is_no_error_of_the_plugins(
    install: Install, tmp_path: Path, where: str
) -> None:
    press = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"  # until it is interrupted
    source = (
        press
        if where == "on import"
        else f"""
        @omniq.hookimpl
        def omniq_task_enqueued():
            {press}
    """
    )
    install("acme-queue", {"acme_plugin": source})
    program = """
import omniq
queue = omniq.TaskQueue("memory://")
@queue.task
def work(): ...
try:
    work.enqueue()
except KeyboardInterrupt:
    print("interrupted in main")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    if where == "on import":
        assert "KeyboardInterrupt" in ended.stderr
        assert ended.returncode != 0
    else:
        assert ended.stdout == "interrupted in main\n"


CLAIMS_SQLITE = """
    @omniq.hookimpl
    def omniq_storages():
        return {"sqlite": "acme_storage:Shelf"}
"""


@pytest.mark.parametrize("choice", ["-acme-queue", "-Acme_Queue", "-acme_plugin", "omniq-local", "omniq-local,-nats"])
def test_of_two_that_claim_one_scheme_either_can_be_left_out(
    install: Install, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    install("acme-queue", {"acme_plugin": CLAIMS_SQLITE, "acme_storage": STORAGE})
    url = parse_url("sqlite:///jobs.db")
    with pytest.raises(PluginConflict, match=r"acme-queue and omniq-local.*OMNIQ_PLUGINS=-acme-queue"):
        Plugins().open_storage(url)

    monkeypatch.setenv("OMNIQ_PLUGINS", choice)
    plugins = Plugins()

    assert type(plugins.open_storage(url)).__module__.startswith("omniq_local.")
    assert found(plugins, "acme-queue").left_out
    assert plugins.conflicts == ()


def test_ours_can_be_left_out_for_the_other(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("acme-queue", {"acme_plugin": CLAIMS_SQLITE, "acme_storage": STORAGE})
    monkeypatch.setenv("OMNIQ_PLUGINS", "-omniq-local")
    plugins = Plugins()

    assert type(plugins.open_storage(parse_url("sqlite:///jobs.db"))).__module__ == "acme_storage"
    with pytest.raises(UnknownScheme, match="OMNIQ_PLUGINS leaves these plugins out: 'local' of omniq-local"):
        plugins.open_storage(parse_url("memory://"))


# What is loaded only when it is asked for


def test_an_entry_point_that_is_a_storage_is_imported_when_its_scheme_is_opened(install: Install) -> None:
    entry_points = {"shelf": "acme_storage:Shelf"}
    install("acme-queue", {"acme_storage": STORAGE}, entry_points=entry_points, group="omniq.storages")

    plugins = Plugins()

    assert found(plugins, "acme-queue") == Plugin(
        name="shelf", distribution="acme-queue", version="1.0", provides={"storage": ("shelf",)}
    )
    plugins.open_storage(parse_url("memory://"))
    assert "acme_storage" not in sys.modules
    assert type(plugins.open_storage(parse_url("shelf://hall"))).__module__ == "acme_storage"
    assert plugins.versions("shelf")["acme-queue"] == "1.0"


def test_so_are_serializers_retry_policies_and_triggers(install: Install) -> None:
    source = """
        from attrs import frozen

        class Zip:
            name = "zip"

        @frozen
        class Once(omniq.RetryPolicy):
            kind = "once"

            def next_delay(self, attempt, error):
                return None

        @frozen
        class Never(omniq.Trigger):
            kind = "never"

            def next_after(self, moment):
                return None
    """
    install("acme-a", {"acme_things": source}, entry_points={"zip": "acme_things:Zip"}, group="omniq.serializers")
    install("acme-b", {}, entry_points={"once": "acme_things:Once"}, group="omniq.retry_policies")
    install("acme-c", {}, entry_points={"never": "acme_things:Never"}, group="omniq.triggers")
    plugins = Plugins()
    assert "acme_things" not in sys.modules
    assert plugins.serializer("zip").name == "zip"
    assert plugins.retry_policy("once").kind == "once"
    assert plugins.trigger("never").kind == "never"


def test_a_name_that_such_an_entry_point_claims_is_claimed_without_being_imported(install: Install) -> None:
    install("acme-queue", {"acme_storage": "1 / 0"}, entry_points={"sqlite": "acme_storage:X"}, group="omniq.storages")
    plugins = Plugins()
    with pytest.raises(PluginConflict, match="storage 'sqlite' is claimed by acme-queue and omniq-local"):
        plugins.open_storage(parse_url("sqlite:///jobs.db"))
    assert "acme_storage" not in sys.modules


def test_one_that_cannot_be_imported_is_an_error_for_who_asks_for_it(install: Install) -> None:
    source = "raise KeyboardInterrupt"
    install("acme-queue", {"acme_storage": source}, entry_points={"shelf": "acme_storage:X"}, group="omniq.storages")
    with pytest.raises(ConfigurationError, match="storage 'shelf' of acme-queue cannot be loaded"):
        Plugins().open_storage(parse_url("shelf://hall"))


def test_how_long_a_plugin_took_to_load_is_known(install: Install) -> None:
    install("acme-queue", {"acme_plugin": "import time; time.sleep(0.05)"})  # the time that is told
    assert found(Plugins(), "acme-queue").seconds >= 0.05
