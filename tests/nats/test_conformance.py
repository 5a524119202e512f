"""The conformance kit, run against the storage of this distribution."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import nats
import pytest
from nats.aio.client import Client

from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.testing import StorageContract, deviates
from omniq.testing.contract import Spoil
from omniq.testing.contract.adopting import AdoptContract
from omniq.testing.contract.base import Deafen
from omniq.testing.contract.finishing import FinishContract
from omniq.testing.contract.flows import FlowContract
from omniq.testing.contract.leasing import LeaseContract
from omniq.testing.contract.limits import LimitContract
from omniq.testing.contract.modelling import ModelContract
from omniq.testing.contract.outages import OutageContract
from omniq.testing.contract.racing import RaceContract
from omniq.testing.contract.reading import ReadContract
from omniq_nats import names, overflow, results, task_batches
from omniq_nats.storage import NatsStorage
from tests.nats.spoiling import SpoiledMessages
from tests.servers.nats import NatsCluster, NatsServer


class TestNatsStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, nats_server: NatsServer) -> str:
        return f"{nats_server.url}?namespace=t{new_id()[-12:]}"

    @pytest.fixture
    def deafen(self) -> Deafen:
        return stop_listening

    @pytest.fixture
    def count_requests(self, nats_server: NatsServer) -> Callable[[], int]:
        return lambda: nats_server.received

    @pytest.fixture
    def count_records(self, storage_url: str) -> Callable[[], int]:
        namespace = parse_url(storage_url).namespace

        async def count() -> int:
            client = await nats.connect(storage_url.partition("?")[0])
            subjects = await subjects_of(client, namespace)
            await client.close()
            # The server drops what workers told a minute or more after they did.
            return sum(number for subject, number in subjects.items() if f".{namespace}.w." not in subject)

        def count_on_a_thread() -> int:
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(asyncio.run, count()).result()

        return count_on_a_thread

    @pytest.fixture
    def spoil(self, storage_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spoil]:
        yield from spoiled_messages(storage_url, monkeypatch)

    @deviates("each task is a message or more; those of a batch are sent together and answered together")
    async def test_a_batch_costs_as_many_requests_as_one_task(
        self, count_requests: Callable[[], int] | None, store: Storage
    ) -> None:
        pass


def spoiled_messages(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpoiledMessages]:
    """Yield what damages records."""
    # What is damaged is a message, so that each task and each result has one to itself here.
    monkeypatch.setattr(task_batches, "MOST_TASKS", 1)
    monkeypatch.setattr(names, "SHEET_SPAN", 1)
    monkeypatch.setattr(results, "SHEET_SPAN", 1)
    spoiled = SpoiledMessages(url.partition("?")[0], parse_url(url).namespace)
    yield spoiled
    spoiled.close()


async def subjects_of(client: Client, namespace: str) -> dict[str, int]:
    """Return how many messages a namespace's stream holds of each subject."""
    context = client.jetstream()
    told = await context.stream_info(f"OMNIQ_{namespace}", subjects_filter=">")
    return told.state.subjects or {}


async def stop_listening(store: Storage) -> None:
    """Have the server tell a storage nothing any more."""
    assert isinstance(store, NatsStorage)
    assert store._opened is not None
    transport = store._opened.transport
    for listening in list(transport._listenings):
        await transport.unlisten(listening)


class TestNatsStorageWithoutItsServer(OutageContract):
    @pytest.fixture
    def storage_url(self, nats_server: NatsServer) -> str:
        return f"{nats_server.url}?namespace=t{new_id()[-12:]}&timeout=0.3"

    @pytest.fixture
    def break_store(self, nats_server: NatsServer) -> Callable[[], None]:
        return nats_server.kill

    @pytest.fixture
    def mend_store(self, nats_server: NatsServer) -> Callable[[], None]:
        return nats_server.start


@pytest.mark.long
class TestNatsStorageWithThreeReplicas(
    FinishContract, FlowContract, LeaseContract, LimitContract, RaceContract, ReadContract
):
    """What replicas that are a little behind, or slower answers, could change.

    All of the kit takes two minutes on a cluster; to run it, put StorageContract here.
    """

    @pytest.fixture
    def storage_url(self, nats_cluster: NatsCluster) -> str:
        return f"{nats_cluster.url}&namespace=t{new_id()[-12:]}"

    @pytest.fixture
    def count_requests(self) -> Callable[[], int] | None:
        return None

    @deviates("a server counts what the others tell it, too")
    async def test_a_claim_costs_the_same_whatever_waits_at_a_limit(
        self, store: Storage, count_requests: Callable[[], int] | None
    ) -> None:
        pass


class TestNatsStorageWithNearlyAllThatWaitsOnShelves(ModelContract):
    """What holds with a million waiting tasks, shown with a few."""

    @pytest.fixture
    def storage_url(self, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> str:
        for name, number in (("MOST_IN_BOOK", 2), ("KEPT_IN_BOOK", 1), ("LARGEST", 4), ("MOST_SMALL", 2)):
            monkeypatch.setattr(overflow, name, number)
        return f"{nats_server.url}?namespace=t{new_id()[-12:]}"


@pytest.mark.long
class TestFlowsWithNearlyAllThatWaitsOnShelves(AdoptContract, FlowContract):
    """What is released, revived or adopted waits apart from the state of its queue."""

    @pytest.fixture
    def storage_url(self, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> str:
        for name, number in (("MOST_IN_BOOK", 2), ("KEPT_IN_BOOK", 1), ("LARGEST", 4), ("MOST_SMALL", 2)):
            monkeypatch.setattr(overflow, name, number)
        return f"{nats_server.url}?namespace=t{new_id()[-12:]}"
