"""What the commands show of signed and of forged tasks: decoded if the signature fits, else as it is stored."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omniq import TaskQueue
from omniq.cli import main
from tests.core.running import working
from tests.security.conftest import KEY

SHOP = f"""
from pathlib import Path
from omniq import Every, TaskQueue

queue = TaskQueue("sqlite:///jobs.db", signing_key={KEY!r})


@queue.task(name="suffix")
def suffix(path: Path) -> Path:
    return path.with_suffix(".png")
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskQueue]:
    """An application in the current folder, whose queue signs."""
    (tmp_path / "signing_shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import signing_shop  # type: ignore[import-not-found]  # it was written above

    yield signing_shop.queue
    signing_shop.queue.close()
    del sys.modules["signing_shop"]


def shown(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    assert main([*command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_signed_task_and_its_result_are_shown_decoded_and_without_the_key_as_stored(
    shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    with working(shop):
        handle = shop.functions["suffix"].enqueue(Path("a.jpg"))
        handle.result(timeout=20)

    task = shown(capsys, "tasks", "show", "signing_shop:queue", handle.id)
    assert (task["args"], task["result"], task["decoded"]) == (["a.jpg"], "a.png", True)
    task = shown(capsys, "tasks", "show", "sqlite:///jobs.db", handle.id)
    assert task["args"] == [{"$": "path", "v": "a.jpg"}]
    assert (task["result"], task["decoded"]) == ({"$": "path", "v": "a.png"}, False)


def test_a_forged_task_is_shown_as_it_is_stored_and_why_it_was_rejected(
    shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    forger = TaskQueue("sqlite:///jobs.db")
    handle = forger.task(name="suffix")(print).enqueue("of the attacker")
    forger.close()
    with working(shop):
        assert not shop.functions["suffix"].enqueue(Path("x")).result(timeout=20).exists()

    task = shown(capsys, "tasks", "show", "signing_shop:queue", handle.id)
    assert (task["args"], task["decoded"], task["state"]) == (["of the attacker"], False, "failed")
    assert task["error"]["type"] == "PayloadRejected"
    assert main(["tasks", "show", "signing_shop:queue", handle.id]) == 0
    assert "(as stored)" in capsys.readouterr().out


@pytest.mark.parametrize("payload", [b"[" * 100_000, b"\x80\x04.", b"", b"[[" + b"9" * 10_000 + b"],{}]"])
def test_whatever_is_stored_can_be_shown(shop: TaskQueue, payload: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    from omniq.storage.ids import new_id
    from omniq.task import NewTask
    from tests.bodies import body_of

    order = NewTask(id=new_id(), queue="default", name="suffix", body=body_of(payload))

    async def store() -> None:
        await (await shop.connections.current()).storage.enqueue([order])

    shop.run(store())
    assert shown(capsys, "tasks", "show", "signing_shop:queue", order.id)["args"] is None
    assert main(["tasks", "show", "sqlite:///jobs.db", order.id]) == 0
    assert "cannot be read here" in capsys.readouterr().out


def test_a_signed_schedule_is_shown_decoded_and_an_unsigned_one_as_stored(
    shop: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    from omniq import Every

    shop.schedule(shop.functions["suffix"].call(Path("a.jpg")), Every(60), id="signed")
    forger = TaskQueue("sqlite:///jobs.db")
    forger.schedule(forger.task(name="suffix")(print).call("of the attacker"), Every(60), id="unsigned")
    forger.close()

    found = {one["id"]: one for one in shown(capsys, "schedules", "list", "signing_shop:queue")}
    assert {name: (one["args"], one["decoded"]) for name, one in found.items()} == {
        "signed": (["a.jpg"], True),
        "unsigned": (["of the attacker"], False),
    }
