"""Each store is exported and imported into each other: it is the same store again, and goes on as the first would."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from omniq import Every, TaskQueue, each
from omniq.storage.ids import new_id
from omniq.testing.contract.adopting import all_of
from omniq.testing.contract.steps import take
from tests.moving_support import bring, export, fill, opened, without_first
from tests.servers.nats import NatsServer
from tests.servers.postgres import QUICK, PostgresServer
from tests.servers.redis import RedisServer, binary_of

pytestmark = pytest.mark.xdist_group("moving")  # one server of each kind for all of them

STORES = ("memory", "sqlite", "files", "redis", "postgres", "nats")
DAILY = {("memory", "sqlite"), ("sqlite", "files"), ("files", "redis"), ("redis", "postgres"), ("postgres", "nats")}
DAILY |= {("nats", "memory")}
PAIRS = [
    pytest.param(source, target, marks=() if (source, target) in DAILY else pytest.mark.long)
    for source in STORES
    for target in STORES
]
MANY = 100_000


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Yield the URLs of a server of each kind."""
    with (
        PostgresServer(tmp_path_factory.mktemp("postgres"), QUICK) as postgres,
        RedisServer(tmp_path_factory.mktemp("redis"), binary=binary_of("redis")) as redis,
        NatsServer(tmp_path_factory.mktemp("nats")) as nats,
    ):
        yield {"postgres": postgres.url, "redis": redis.url, "nats": nats.url}


def url_of(store: str, servers: Mapping[str, str], folder: Path) -> str:
    """Return the URL of an empty store."""
    name = f"t{new_id().replace('-', '')[-20:]}"
    if store in servers:
        return f"{servers[store]}?namespace={name}"
    return {"memory": "memory://", "sqlite": f"sqlite:///{folder}/", "files": f"file://{folder}/"}[store] + name


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_a_store_is_the_same_in_another(
    source: str, target: str, servers: Mapping[str, str], tmp_path: Path
) -> None:
    async with opened(url_of(source, servers, tmp_path), url_of(target, servers, tmp_path)) as (old, new):
        await fill(old)
        lines = await export(old)
        for _ in range(2):
            await bring(new, lines)
            assert without_first(await export(new)) == without_first(lines)
        await new.resume("retry")
        await old.resume("retry")
        for queue in ("work", "plain", "retry", "released", "flows"):
            claimed = [[task.id for task in await take(each, 100, queue=queue)] for each in (old, new)]
            assert claimed[0] == claimed[1] != []
        assert [task.id for task in await all_of(new)] == [task.id for task in await all_of(old)]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_hundred_thousand_tasks_move_from_sqlite_to_postgres(
    servers: Mapping[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """How long that takes is recorded, not judged."""
    queue = TaskQueue(f"sqlite:///{tmp_path}/jobs.db")

    @queue.task(name="shop.work")
    def work(number: int) -> int:
        return number

    @queue.task(name="shop.total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    with queue:
        for begin in range(0, MANY, 10_000):
            queue.enqueue_many(work.call(begin + number) for number in range(10_000))
        for _ in range(20):
            queue.enqueue_flow(each(work, range(50)).then(total))
        for number in range(20):
            queue.schedule(work.call(number), Every(3600), id=f"hourly-{number}")
    url = url_of("postgres", servers, tmp_path)
    omniq = [sys.executable, "-m", "omniq"]
    began = time.monotonic()
    with (tmp_path / "jobs.jsonl").open("wb") as file:
        subprocess.run([*omniq, "export", f"sqlite:///{tmp_path}/jobs.db"], stdout=file, check=True)
    exported = time.monotonic()
    with (tmp_path / "jobs.jsonl").open("rb") as given:
        done = subprocess.run([*omniq, "import", url], stdin=given, check=True, capture_output=True)
    ended = time.monotonic()
    assert done.stdout.decode().strip() == "imported 20 flows, 101,020 tasks, 20 schedules"
    again = subprocess.run([*omniq, "export", url], check=True, capture_output=True).stdout.splitlines()
    lines = (tmp_path / "jobs.jsonl").read_bytes().splitlines()
    assert again[1:] == lines[1:]
    assert json.loads(again[-1])["end"]["task"] == MANY + 20 * 51
    record_property("export_seconds", round(exported - began, 1))
    record_property("import_seconds", round(ended - exported, 1))
    print(f"\n101,020 tasks: exported in {exported - began:.1f} s, imported in {ended - exported:.1f} s")
