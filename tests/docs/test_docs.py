"""The documentation, held against the code: its blocks run, its commands parse, its links lead somewhere.

And nothing that is public goes unmentioned.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import cast

import attrs
import pytest

import omniq
from omniq import errors, hookspecs
from omniq.cli import COMMANDS, Command
from omniq.cli.arguments import Parser, add_verbose
from omniq.plugins import default_plugins
from omniq.storage import Storage
from omniq.storage.urls import parse_url
from omniq_local.sqlite.settings import OPTIONS
from tests.docs import pages
from tests.docs.pages import DOCS, PAGES, ROOT, STANDALONE, anchors, blocks, commands, links, page_name
from tests.fork_server import run

each_page = pytest.mark.parametrize("page", PAGES, ids=page_name)
BIN = Path(sys.executable).parent
PACKAGES = sorted(path.parent for path in ROOT.glob("omniq-*/src/*/__init__.py"))
SOURCES = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMNIQ", "PYTHON"))}
    return kept | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)} | more


# What a reader types


@each_page
def test_every_python_block_runs(page: Path, tmp_path: Path) -> None:
    program = pages.write_program(page, tmp_path)
    if program is None:
        return

    done = run(
        [sys.executable, "-W", "error", program],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@each_page
def test_every_block_says_what_it_is(page: Path) -> None:
    known = {"python": {"worker"}, "console": {"run"}, "text": set(), "toml": set(), "ini": set()}

    for block in blocks(page):
        assert block.marks <= known[block.language], f"line {block.start + 1}"


@functools.cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):.* ##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@functools.cache
def installable() -> set[str]:
    """What pip can be told to install: a distribution with an extra that it has, or a folder of this repository."""
    found = set()
    for project in ROOT.glob("omniq-*/pyproject.toml"):
        declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        found |= {f"{declared['name']}[{extra}]" for extra in declared.get("optional-dependencies", {})}
        found |= {declared["name"], f"./{project.parent.name}"}
    return found


def apart(requirement: str) -> set[str]:
    """Return a distribution with several extras as several with one."""
    name, bracket, extras = requirement.removesuffix("]").partition("[")
    return {f"{name}[{extra}]" for extra in extras.split(",")} if bracket else {requirement}


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"omniq {name}")
    cast("Command", importlib.import_module(COMMANDS[name][0])).configure(parser)
    add_verbose(parser)
    return parser


def check_command(page: Path, words: tuple[str, ...]) -> None:
    """Fail if a command cannot work as it is typed; of several in a pipe, if one of them cannot."""
    if "|" in words:
        place = words.index("|")
        check_command(page, words[:place])
        check_command(page, words[place + 1 :])
        return
    if words[-2:-1] in ((">",), ("<",)):
        words = words[:-2]
    files = {block.file for block in blocks(page)}
    match words:
        case ["omniq", name, *arguments]:
            parser_of(name).parse_args(arguments)
        case ["make", target, *variables]:
            assert target in make_targets()
            assert all(re.match(r"[A-Z_]+=", variable) for variable in variables)
        case ["pip", "install", *what]:
            assert {one for each in what for one in apart(each)} <= installable()
        case ["python", "-m", "pytest", *what]:
            assert set(what) <= files
        case ["python", file]:
            assert file in files
        case _:
            pytest.fail(f"no test knows whether this works: {' '.join(words)}")


@each_page
def test_every_command_can_be_typed_as_it_is_shown(page: Path) -> None:
    for block in blocks(page):
        if block.language == "console":
            for command in commands(block):
                check_command(page, command.words)


def assert_shown(shown: tuple[str, ...], output: str) -> None:
    """Compare what a page shows with what came out; an ellipsis stands for anything."""
    pattern = "\n".join(re.escape(line).replace("…", ".*") for line in shown)
    assert re.fullmatch(pattern, output.rstrip("\n")), "\n".join(difflib.ndiff(shown, output.splitlines()))


RUN = [page for page in PAGES if any("run" in block.marks for block in blocks(page))]


@pytest.mark.parametrize("page", RUN, ids=page_name)
def test_commands_do_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    pages.write_program(page, tmp_path)
    typed = [command.words for block in blocks(page) if "run" in block.marks for command in commands(block)]
    shown = [command.output for block in blocks(page) if "run" in block.marks for command in commands(block)]
    workers = []
    try:
        for words, output in zip(typed, shown, strict=True):
            if words[:2] == ("omniq", "worker"):
                workers.append(
                    subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
                )
                continue
            done = run(
                words,
                cwd=tmp_path,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stdout
            assert_shown(output, done.stdout)
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        logs = [worker.communicate(timeout=60)[1] for worker in workers]

    assert [worker.returncode for worker in workers] == [0] * len(workers), logs


# Where links lead


@each_page
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        leads_to = (page.parent / path).resolve() if path else page
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors(leads_to), target


def test_the_index_leads_to_every_page() -> None:
    index = DOCS / "index.md"
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in links(index)}

    assert linked >= set(DOCS.rglob("*.md")) - {index}


@pytest.mark.parametrize("page", STANDALONE, ids=page_name)
def test_what_is_shown_on_an_index_links_to_nothing_beside_it(page: Path) -> None:
    assert [target for target in links(page) if not target.startswith(("#", "https://"))] == []


# What is documented, and whether it is so


def text_of(*path: str) -> str:
    return DOCS.joinpath(*path).read_text(encoding="utf-8")


def code_of(text: str) -> str:
    """Return all that stands in code, inline or fenced."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


def names(code: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", code) is not None


def test_the_reference_names_all_that_is_exported() -> None:
    code = code_of(text_of("reference", "api.md"))

    assert [name for name in omniq.__all__ if not names(code, name)] == []


# What the rooms of the core call on each other.
INNER = {
    omniq.TaskQueue: {
        *("aended", "arecord", "aresult", "handle_of", "joined", "order", "run"),
        "tell_enqueued",
    },
    omniq.CurrentTask: {"ask_to_stop"},
}


@pytest.mark.parametrize(
    "cls", [omniq.TaskQueue, omniq.TaskFunction, omniq.TaskHandle, omniq.TaskCall, omniq.CurrentTask, omniq.Worker]
)
def test_the_reference_names_every_method(cls: type) -> None:
    code = code_of(text_of("reference", "api.md"))
    public = {name for name, member in inspect.getmembers(cls) if not name.startswith("_") and callable(member)}

    assert sorted(name for name in public - INNER.get(cls, set()) if not names(code, name)) == []


@pytest.mark.parametrize(
    "cls",
    [
        omniq.Task,
        omniq.Attempt,
        omniq.TaskError,
        omniq.Progress,
        omniq.Schedule,
        omniq.QueueStats,
        omniq.WorkerInfo,
        omniq.WorkerAbout,
    ],
)
def test_the_reference_names_every_field(cls: type[attrs.AttrsInstance]) -> None:
    code = code_of(text_of("reference", "api.md"))

    assert [one.name for one in attrs.fields(cls) if not one.name.startswith("_") and not names(code, one.name)] == []


@pytest.mark.parametrize("call", [omniq.TaskQueue, omniq.TaskQueue.task, omniq.TaskFunction.using, omniq.Worker])
def test_the_pages_name_every_option(call: object) -> None:
    code = code_of("".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")))

    assert callable(call)
    options = set(inspect.signature(call).parameters) - {"self"}
    assert sorted(option for option in options if not names(code, option)) == []


def test_the_tree_of_errors_is_the_one_in_the_code() -> None:
    documented = inspect.getdoc(errors) or ""
    tree = [line for line in documented.splitlines() if re.match(r"\s*(OmniQError$|[│ ]*[├└]──)", line)]
    (shown, *_) = [block for block in blocks(DOCS / "reference" / "errors.md") if block.language == "text"]

    assert [line.strip() for line in shown.lines] == [line.strip() for line in tree]
    assert all(names("\n".join(shown.lines), name) for name in errors.__all__)


def signatures(source: str) -> dict[str, str]:
    """Return the signature of every hook that some code defines."""
    return {
        node.name: f"({ast.unparse(node.args)}) -> {ast.unparse(node.returns) if node.returns else ''}"
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("omniq_")
    }


def test_every_hook_is_documented_with_its_exact_signature() -> None:
    shown: dict[str, str] = {}
    for block in blocks(DOCS / "reference" / "hooks.md"):
        if block.language == "python":
            shown |= signatures("\n".join(block.lines))

    assert shown == signatures(inspect.getsource(hookspecs))


def test_every_command_and_option_is_documented_and_there() -> None:
    common = {"--help", "--verbose"}
    introduction, *sections = re.split(r"^## omniq ", text_of("reference", "cli.md"), flags=re.MULTILINE)
    documented = {
        section.split("\n")[0]: set(re.findall(r"^\| `[^|]*?(--[a-z-]+)", section, re.MULTILINE))
        for section in sections
    }

    assert all(f"`{option}`" in introduction for option in common)
    assert documented == {name: set(re.findall(r"--[a-z][a-z-]*", options_of(name))) - common for name in COMMANDS}


def options_of(name: str) -> str:
    """Return the part of a command's help that lists its options; of one with actions, that of all of them."""
    parsers = [parser_of(name)]
    for action in getattr(importlib.import_module(COMMANDS[name][0]), "ACTIONS", {}).values():
        parsers.append(Parser(prog=f"omniq {name}"))
        action.configure(parsers[-1])
    helps = [parser.format_help().partition("\noptions:\n")[2].partition("\nexamples:\n")[0] for parser in parsers]
    return "\n".join(helps)


def test_every_environment_variable_is_documented() -> None:
    read = {name for path in SOURCES for name in re.findall(r"\"(OMNIQ_[A-Z_]+)\"", path.read_text(encoding="utf-8"))}
    code = code_of(text_of("reference", "environment.md"))

    assert {"OMNIQ_URL", "OMNIQ_FAILPOINT"} <= read
    assert sorted(name for name in read if not names(code, name)) == []


def test_every_failpoint_is_documented() -> None:
    passed = {
        name for path in SOURCES for name in re.findall(r"failpoint\(\"(.+?)\"\)", path.read_text(encoding="utf-8"))
    }
    code = code_of(text_of("reference", "environment.md"))

    assert "worker.after-claim" in passed
    assert sorted(name for name in passed if not names(code, name)) == []


def module_name(path: Path) -> str:
    inside = path.parts[path.parts.index("src") + 1 :]
    return ".".join(inside).removesuffix(".py").removesuffix(".__init__")


def test_every_logger_is_documented() -> None:
    used = set()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r"get_?[lL]ogger\(\"(.+?)\"\)", text))
        used |= {module_name(path)} if "get_logger(__name__)" in text else set()
    code = code_of(text_of("reference", "logging.md"))

    assert {"omniq.worker", "omniq.task"} <= used
    assert sorted(name for name in used if f"`{name}`" not in code) == []


def test_every_option_of_an_sqlite_url_is_documented() -> None:
    for page in (DOCS / "backends" / "sqlite.md", ROOT / "omniq-local" / "README.md"):
        code = code_of(page.read_text(encoding="utf-8"))
        assert [option for option in OPTIONS if f"`{option}`" not in code] == []


def test_the_plugin_page_names_every_operation_of_the_contract() -> None:
    code = code_of(text_of("how-to", "storage-plugin.md"))

    assert sorted(name for name in Storage.__abstractmethods__ if not names(code, name)) == []


def schemes() -> set[str]:
    return {name for plugin in default_plugins().found for name in plugin.provides.get("storage", ())}


def limits_of(url: str) -> list[str]:
    limits = default_plugins().open_storage(parse_url(url)).limits

    def number(value: float | None) -> str:
        return "any number" if value is None else f"{value:,g}" if value < 1000 else f"{value:,.0f}"

    atomic, unique = number(limits.atomic_tasks), number(limits.atomic_unique_tasks)
    return [
        atomic if atomic == unique else f"{atomic}; {unique} if any has a `unique` key",
        "yes" if limits.atomic_across_queues else "no",
        f"{limits.lost_wakeup:g} s" if limits.lost_wakeup else "never: none gets lost",
        "what memory or disk hold" if limits.body is None else f"{limits.body:,} bytes",
        number(limits.running_tasks),
        number(limits.active_keys),
        "until it goes on or ends"
        if limits.stalled_client is None
        else f"{limits.stalled_client:g} s"
        if limits.stalled_client
        else "nothing",
    ]


def test_the_page_on_promises_shows_the_limits_of_every_store(tmp_path: Path) -> None:
    urls = {
        "memory": "memory://",
        "SQLite": f"sqlite:///{tmp_path}/jobs.db",
        "files": f"file://{tmp_path}/jobs",
        "Redis": "redis://localhost",
        "PostgreSQL": "postgresql://localhost/shop",
        "NATS": "nats://localhost",
    }
    head = [
        "store",
        "tasks of one `enqueue`, all or none",
        "changes of several queues, one step",
        "looks for itself after",
        "longest body",
        "running at a time",
        "keys with tasks at a time",
        "what a client that stands still holds up",
    ]
    rows = [head, ["---"] * len(head), *([store, *limits_of(url)] for store, url in urls.items())]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)

    assert table in text_of("explanation", "promises.md"), table


def test_the_readme_shows_every_distribution_of_stores() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| .*?\| `([a-z]+)://.*?` \|", readme, re.MULTILINE))

    assert shown <= schemes()
    for plugin in default_plugins().found:
        assert not plugin.provides.get("storage") or shown & set(plugin.provides["storage"]), plugin.name


def test_every_scheme_is_on_a_page_of_its_backend() -> None:
    code = code_of("".join(path.read_text(encoding="utf-8") for path in (DOCS / "backends").glob("*.md")))

    assert sorted(scheme for scheme in schemes() if f"{scheme}://" not in code) == []


def test_every_room_is_on_the_map_and_no_other() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    folders = {package.name: package for package in PACKAGES}
    wrong = []
    for section in text.split("\n### ")[1:]:
        name = re.split(r"[:\n]", section)[0].strip("`/ ")
        folder = folders.get(name, folders["omniq"] / name)
        rows = re.findall(r"^\| (`[^|]*`) \|(.*)", section, re.MULTILINE)
        shown = {room for names, _ in rows for room in re.findall(r"`([^`]+)`", names)}
        there = {path.name for path in folder.glob("*.py") if path.name != "__init__.py"}
        there |= {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")} - {
            # They have sections of their own.
            f"{heading.strip('`/ ')}/"
            for heading in re.findall(r"^### (`\w+/`)", text, re.MULTILINE)
        }
        wrong += [f"{name}: no row for {room}" for room in there - shown]
        wrong += [f"{name}: there is no {room}" for room in shown if not (folder / room).exists()]
        wrong += [
            f"{name}: there is no {names.strip('`')}{module}"
            for names, what in rows
            if names.endswith("/`")
            for module in re.findall(r"`(\w+\.py)`", what)
            if not (folder / names.strip("`") / module).exists()
        ]

    assert sorted(wrong) == []
