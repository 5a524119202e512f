"""The password in a store's URL: wherever a URL is shown, it is not."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

import omniq
from omniq import ConfigurationError, OmniQError, TaskQueue, hookimpl
from omniq.plugins import Plugins, default_plugins
from omniq.storage import Storage, StorageConfig
from omniq.storage.urls import redact_all
from tests.fork_server import run

SECRET = "".join(["h", "unter", "2"])  # so that a traceback that shows the code does not show it
CORE = str(Path(omniq.__file__).parent)
URLS = [
    f"redis://ada:{SECRET}@127.0.0.1:1/0",
    f"rediss://127.0.0.1:1?password={SECRET}",
    f"unix://ada:{SECRET}@/no/such/socket",
    f"postgresql://ada:{SECRET}@127.0.0.1:1/db",
    f"postgres://127.0.0.1:1/db?password={SECRET}",
    f"redis://{SECRET}@127.0.0.1:1",
    f"redis://ada:to@{SECRET}@127.0.0.1:1",
    f"postgresql://{SECRET}@127.0.0.1:1/db",
    f"postgresql://ada:to@{SECRET}@127.0.0.1:1/db",
    f"nats://{SECRET}@127.0.0.1:1",
    f"tls://127.0.0.1:1?token={SECRET}",
    f"sqlite:///no/such/folder/jobs.db?key={SECRET}",
    f"nowhere://ada:{SECRET}@127.0.0.1:1",
    f"redis://ada:{SECRET}/{SECRET}@127.0.0.1:1",
    f"redis:/ada:{SECRET}@127.0.0.1:1",
    f"ada:{SECRET}@127.0.0.1",
]


@pytest.mark.parametrize("url", URLS)
def test_neither_errors_nor_logs_nor_reprs_show_it(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    try:
        queue = TaskQueue(url)
        shown += [repr(queue), str(queue), queue.url, repr(queue.connections.sibling()), repr(vars(queue))]
        with contextlib.closing(queue):
            queue.stats()
    except OmniQError as error:
        shown += [str(error), repr(error), "".join(traceback.format_exception(error))]
    shown += [f"{one.getMessage()} {one.args!r}" for one in caplog.records]
    assert [text for text in shown if SECRET in text] == []


def frames_of(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames that a tracker of errors sees, of what led to the error, too."""
    found: list[BaseException | None] = [error]
    while found:
        if (one := found.pop()) is not None:
            yield from (frame for frame, _ in traceback.walk_tb(one.__traceback__))
            found += [one.__cause__, one.__context__]


@pytest.mark.parametrize(("url", "key"), [*((url, SECRET * 4) for url in URLS), ("memory://", SECRET)])
def test_no_variable_of_a_frame_of_the_cores_holds_it_nor_a_key(url: str, key: str) -> None:
    try:
        with contextlib.closing(TaskQueue(url, signing_key=key)) as queue:
            queue.stats()
    except OmniQError as error:
        ours = [frame for frame in frames_of(error) if frame.f_code.co_filename.startswith(CORE)]
        assert ours
        told = [
            (frame.f_code.co_qualname, name, repr(value)) for frame in ours for name, value in frame.f_locals.items()
        ]
        assert [each for each in told if SECRET in each[2]] == []


COMMANDS = [
    ["stats"],
    ["doctor", "--json"],
    ["doctor", "--verbose"],
    ["worker"],
    ["enqueue"],
    ["stats", "an-app"],
    ["no-such-command"],
]
SHELL = """
import io, sys, contextlib
from omniq.cli import main
for line in sys.stdin.read().splitlines():
    print("$", line.replace(sys.argv[1], "***"))
    with contextlib.redirect_stderr(sys.stdout):
        try:
            print(main(line.split()))
        except SystemExit as left:
            print(left.code)
"""


@pytest.mark.parametrize("url", URLS)
def test_no_command_shows_it(url: str, tmp_path: Path) -> None:
    lines = [" ".join([*command, url]) for command in COMMANDS]
    done = run(
        [sys.executable, "-c", SHELL, SECRET],
        input="\n".join(lines),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout.count("$ ") == len(COMMANDS), done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("kind", [bytes, bytearray, list])
def test_what_is_no_text_is_not_shown(kind: type) -> None:
    url = kind(b"redis://ada:" + SECRET.encode() + b"@localhost")
    with pytest.raises(ConfigurationError, match=rf"a {kind.__name__} is not a storage URL") as caught:
        TaskQueue(url)  # as somebody may who has it from a library
    assert SECRET not in str(caught.value)


class Talkative:
    """A third party's plugin whose storage says too much."""

    @hookimpl
    def omniq_storages(self) -> dict[str, object]:
        return {"talkative": self.make}

    def make(self, config: StorageConfig) -> Storage:
        raise ValueError(f"cannot use {config.location!r}, sorry")


def test_a_third_partys_error_is_shown_without_it() -> None:
    plugins = Plugins()
    plugins.register(Talkative(), name="talkative")
    with pytest.raises(ConfigurationError, match=r"cannot use 'talkative://ada:\*\*\*@here', sorry") as caught:
        TaskQueue(f"talkative://ada:{SECRET}@here", plugins=plugins)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_of_a_text_only_its_urls_are_changed() -> None:
    assert redact_all("no url: a@b:c, but two: redis://a:b@c and (nats://d@e), and an end") == (
        "no url: a@b:c, but two: redis://a:***@c and (nats://***@e), and an end"
    )


@pytest.mark.parametrize("ending", ["'", '"', "'.", ")", ", "])
def test_what_stands_behind_a_url_is_not_taken_for_a_part_of_it(ending: str) -> None:
    url = "redis://h/0?namespace=x"
    assert redact_all(f"'{url}{ending}") == f"'{url}{ending}"


def test_every_scheme_of_ours_is_tried_here() -> None:
    ours = {name for plugin in default_plugins().found for name in plugin.provides.get("storage", ())}
    tried = {url.partition("://")[0] for url in URLS}
    assert ours - tried <= {"memory", "file", "ws", "wss"} | {name for name in ours if "+" in name}
