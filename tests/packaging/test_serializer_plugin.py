"""A serializer of somebody else's: built, put into a folder as a wheel, installed from there by its name, and used.

Its code is that of the page that tells how to write one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from build import ProjectBuilder
from pyproject_hooks import quiet_subprocess_runner

from tests.docs.pages import DOCS, blocks
from tests.packaging.project import (
    CORE,
    DISTRIBUTIONS,
    Built,
    Distribution,
    Environment,
    link_distribution,
    make_environment,
)

PAGE = DOCS / "how-to" / "serializers.md"
LOCAL = next(distribution for distribution in DISTRIBUTIONS if distribution.name == "omniq-local")

PROGRAM = """
import asyncio, json
from omniq import PayloadRejected, SerializationError, TaskFailed, TaskQueue

queue = TaskQueue("sqlite:///jobs.db", serializer="msgpack", signing_key="a key of the plugin's own user")


@queue.task(name="total")
def total(numbers: list[int], *, times: int = 1) -> dict[str, int]:
    return {"total": sum(numbers) * times}


async def main():
    async with queue, queue.worker():
        handle = await total.aenqueue([1, 2, 3], times=2**40)
        result = await handle.aresult(30)
        task = await handle.atask()
    try:
        total.enqueue([1, 2, (3,)])
    except SerializationError as error:
        refused = str(error)
    plain = TaskQueue("sqlite:///jobs.db")
    try:
        (await plain.aget(task.id)).args
    except PayloadRejected as error:
        rejected = str(error)
    await plain.aclose()
    print(json.dumps([result, task.serializer, task.payload.hex(), task.args, refused, rejected]))


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the plugin's wheel, as an index of packages would."""
    source = tmp_path_factory.mktemp("omniq-msgpack")
    page = blocks(PAGE)
    (project,) = [block for block in page if block.language == "toml"]
    source.joinpath("pyproject.toml").write_text("\n".join(project.lines), encoding="utf-8")
    for block in page:
        if block.file is not None:
            file = source / block.file
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(block.lines) + "\n", encoding="utf-8")
    folder = tmp_path_factory.mktemp("published")
    ProjectBuilder(source, python_executable=sys.executable, runner=quiet_subprocess_runner).build("wheel", folder)
    return folder


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, build: Callable[[Distribution], Built], published: Path
) -> Environment:
    """A fresh environment with the core and the local storages, into which pip has installed the plugin by its name."""
    wheels = [build(distribution).wheel for distribution in (CORE, LOCAL)]
    made = make_environment(tmp_path_factory.mktemp("environment"), wheels, {CORE.name, LOCAL.name})
    link_distribution("msgpack", made)
    pip = [sys.executable, "-m", "pip", "--python", str(made.python), "install", "--no-index", "--quiet"]
    done = subprocess.run(
        [*pip, "--find-links", str(published), "omniq-msgpack"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return made


def test_it_is_found_by_its_name_and_loads_nothing_before_it_is_used(environment: Environment) -> None:
    listed = json.loads(environment.run("omniq", "plugins", "--json").stdout)
    (plugin,) = [plugin for plugin in listed["plugins"] if plugin["distribution"] == "omniq-msgpack"]

    assert (plugin["provides"], plugin["version"], plugin["problem"]) == ({"serializer": ["msgpack"]}, "0.1.0", None)
    program = "import sys; from omniq import TaskQueue; TaskQueue('memory://'); print('msgpack' in sys.modules)"
    assert environment.evaluate(program) == "False"


def test_tasks_and_results_go_through_it_and_queues_that_do_not_accept_it_read_nothing(
    environment: Environment,
) -> None:
    result, serializer, payload, args, refused, rejected = json.loads(environment.evaluate(PROGRAM))

    assert result == {"total": 6 * 2**40}
    assert serializer == "msgpack"
    assert payload == "929193010203" + "81a574696d6573cf" + f"{2**40:016x}"
    assert args == [[1, 2, 3]]
    assert refused == "args[0][2]: msgpack cannot hold this tuple"
    assert "which this queue does not accept" in rejected


def test_where_it_is_not_installed_its_name_is_answered_with_those_that_are(
    build: Callable[[Distribution], Built], tmp_path: Path
) -> None:
    bare = make_environment(tmp_path, [build(CORE).wheel, build(LOCAL).wheel], {CORE.name, LOCAL.name})
    done = bare.run("python", "-c", "from omniq import TaskQueue; TaskQueue('memory://', serializer='msgpack')")

    assert "UnknownPlugin: no serializer is called 'msgpack'; installed: cloudpickle, json" in done.stderr
