"""What a user gets: wheels in environments of their own, with what they declare to need and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from tests.packaging.project import BACKENDS, CORE, Distribution, Environment

MakeEnvironment = Callable[[Iterable[Distribution]], Environment]

IMPORT_ALL = """
import importlib, json, pkgutil, sys
failed = {}
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.startswith(tuple(sys.argv[2:])):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed[module.name] = str(error)
print(json.dumps(failed))
"""
# Modules that need an extra of omniq-core: the test kit, the demo with its store, the dashboard, what stands beside
# other libraries.
BESIDE_OTHERS = {
    "omniq.contrib.django": "django",
    "omniq.contrib.flask": "flask",
    "omniq.contrib.opentelemetry": "otel",
    "omniq.contrib.sentry": "sentry",
    "omniq.contrib.structlog": "structlog",
}
OF_EXTRAS = ("omniq.testing", "omniq.cli.demo", "omniq.dashboard", *BESIDE_OTHERS)


def test_every_module_of_a_distribution_needs_only_what_the_distribution_declares(
    environment: MakeEnvironment, distribution: Distribution
) -> None:
    done = environment({distribution} - {CORE}).run("python", "-c", IMPORT_ALL, distribution.package, *OF_EXTRAS)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}


def test_a_module_beside_another_library_names_the_extra_that_installs_it(environment: MakeEnvironment) -> None:
    for module, extra in BESIDE_OTHERS.items():
        done = environment(set()).run("python", "-c", f"import {module}")

        assert f"pip install 'omniq-core[{extra}]'" in done.stderr


def test_the_core_alone_finds_its_own_parts_and_says_what_to_install_for_a_store(environment: MakeEnvironment) -> None:
    shown = environment([]).evaluate("""if True:
        import json
        from omniq import TaskQueue, UnknownScheme
        from omniq.plugins import default_plugins
        try:
            TaskQueue("sqlite:///jobs.db")
        except UnknownScheme as error:
            print(json.dumps([[plugin.distribution for plugin in default_plugins().found], str(error)]))
    """)
    distributions, error = json.loads(shown)

    assert distributions == ["omniq-core"]
    assert "pip install 'omniq-core[local]'" in error


def listed(environment: Environment) -> dict[str, Any]:
    """Return what ``omniq plugins`` says in an environment: distribution → what was found of it."""
    done = environment.run("omniq", "plugins", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["conflicts"] == []
    return {plugin["distribution"]: plugin for plugin in answer["plugins"]}


def test_a_backend_installed_without_its_siblings_is_found(environment: MakeEnvironment, backend: Distribution) -> None:
    found = listed(environment([backend]))

    assert set(found) == {CORE.name, backend.name}
    assert found[backend.name]["version"] == backend.project["version"]
    assert found[backend.name]["provides"]["storage"]
    assert found[backend.name]["problem"] is None


def test_all_of_them_together_are_found_and_claim_no_name_twice(environment: MakeEnvironment) -> None:
    assert set(listed(environment(BACKENDS))) == {CORE.name} | {backend.name for backend in BACKENDS}
