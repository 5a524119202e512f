"""The conformance kit, run against the storage of this distribution."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from omniq.ids import new_id
from omniq.storage import Storage
from omniq.testing import StorageContract
from omniq.testing.contract.base import Deafen
from omniq.testing.contract.finishing import FinishContract
from omniq.testing.contract.leasing import LeaseContract
from omniq.testing.contract.modelling import ModelContract
from omniq.testing.contract.outages import OutageContract
from omniq.testing.contract.racing import RaceContract
from omniq.testing.contract.reading import ReadContract
from omniq_nats import shelves
from omniq_nats.storage import NatsStorage
from tests.servers.nats import NatsCluster, NatsServer


class TestNatsStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, nats_server: NatsServer) -> str:
        return f"{nats_server.url}?namespace=t{new_id()[-12:]}"

    @pytest.fixture
    def deafen(self) -> Deafen:
        return stop_listening


async def stop_listening(store: Storage) -> None:
    """Have the server tell a storage nothing any more."""
    assert isinstance(store, NatsStorage)
    assert store._opened is not None
    link = store._opened.link
    for listening in list(link._listenings):
        await link.unlisten(listening)


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
class TestNatsStorageWithThreeReplicas(FinishContract, LeaseContract, RaceContract, ReadContract):
    """What replicas that are a little behind, or slower answers, could change.

    All of the kit takes two minutes on a cluster; to run it, put StorageContract here.
    """

    @pytest.fixture
    def storage_url(self, nats_cluster: NatsCluster) -> str:
        return f"{nats_cluster.url}&namespace=t{new_id()[-12:]}"


class TestNatsStorageWithNearlyAllThatWaitsOnShelves(ModelContract):
    """What holds with a million waiting tasks, shown with a few."""

    @pytest.fixture
    def storage_url(self, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> str:
        for name, number in (("MOST_IN_BOOK", 2), ("KEPT_IN_BOOK", 1), ("LARGEST", 4), ("MOST_SMALL", 2)):
            monkeypatch.setattr(shelves, name, number)
        return f"{nats_server.url}?namespace=t{new_id()[-12:]}"
