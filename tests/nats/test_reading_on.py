"""Tasks are read in the order of their line without having the servers count all that are stored behind them."""

from __future__ import annotations

from omniq.task import Succeeded
from omniq_nats.transport import Write
from tests.nats.support import fresh, opened, task
from tests.servers.nats import NatsServer
from tests.servers.proxy import Proxy, _Pass


class Requests(_Pass):
    """Passes everything on, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked = b""

    async def carry(self, link: object, data: bytes, *, answer: bool) -> None:
        self.asked += b"" if answer else data
        await super().carry(link, data, answer=answer)  # type: ignore[arg-type]  # as a mode is given it


async def test_the_next_messages_are_found_without_a_gap_whatever_is_between_them(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        assert storage._opened is not None
        transport, names = storage._opened.transport, storage._opened.state_store.names
        # Others between some of them, and gaps where messages were removed.
        for number in range(40):
            kind = "x" if number % 7 in (2, 3) or number > 30 else "y"
            await transport.store(Write(names.blob(kind, str(number)), b"%d" % number))
        first = (await transport.last([names.blob("y", "0")]))[0].seq
        await transport.remove([first + 5, first + 8, first + 9])
        subject = names.blobs("x")
        for start in range(max(1, first - 2), first + 43):
            expected, _ = await transport.scan(subject, start)
            for width in (1, 2, 5, 64):
                found = await transport.next_ones(subject, start, width)
                assert found == expected[: len(found)], (start, width)
                assert len(found) >= min(1, len(expected))
                reached = [one for one in expected if one.seq < start + width]
                assert len(found) >= len(reached), (start, width)


async def test_claims_of_single_tasks_do_not_have_the_server_count_what_is_stored(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    with Proxy(nats_server.port) as proxy:
        async with opened(url) as producer:
            ids = [(await producer.enqueue([task()]))[0].id for _ in range(30)]
        async with opened(url.replace(f":{nats_server.port}", f":{proxy.port}")) as storage:
            proxy.mode = requests = Requests()
            claimed = []
            while some := await storage.claim({"work": 4}, worker="w", lease=60):
                await storage.finish([Succeeded(id=one.id, delivery=one.delivery, result=b"1") for one in some])
                claimed += [one.id for one in some]
            assert claimed == ids
            assert b"next_by_subj" in requests.asked
            # A server that is asked for several counts all that match, ended ones, too.
            assert b'"batch"' not in requests.asked


async def test_results_of_tasks_enqueued_one_by_one_take_few_messages(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    with Proxy(nats_server.port) as proxy:
        async with opened(url) as producer:
            for _ in range(256):
                await producer.enqueue([task()])
        async with opened(url.replace(f":{nats_server.port}", f":{proxy.port}")) as storage:
            assert storage._opened is not None
            page = f"HPUB {storage._opened.state_store.names.root}.e.".encode()
            proxy.mode = requests = Requests()
            for _ in range(4):
                some = await storage.claim({"work": 64}, worker="w", lease=60)
                await storage.finish([Succeeded(id=one.id, delivery=one.delivery, result=b"1") for one in some])
        # A message costs the server about as much as a task: of 64 that end together the results take two at most.
        assert 2 <= requests.asked.count(page) <= 8
