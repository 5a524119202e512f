"""Tasks are read in the order of their line without having the servers count all that are stored behind them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest

from omniq.task import Succeeded
from omniq_nats.entries import Entry, entry_of
from omniq_nats.names import Names
from omniq_nats.task_batches import encode_batch, pages_of
from omniq_nats.task_lookup import TaskLookup
from omniq_nats.transport import Stored, Transport, Write
from tests.nats.support import fresh, make, opened, task
from tests.servers.nats import NatsServer
from tests.servers.proxy import Proxy, _Pass


class Requests(_Pass):
    """Passes everything on, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked = b""

    async def carry(self, link: object, data: bytes, *, answer: bool) -> None:
        self.asked += b"" if answer else data
        await super().carry(link, data, answer=answer)  # type: ignore[arg-type]  # as a mode is given it


class Interrupted(_Pass):
    """Passes the first few of eight questions on, and the others when they are answered and something else is done.

    :param first: how many.
    :param meanwhile: what is done.
    """

    def __init__(self, first: int, meanwhile: Callable[[], Awaitable[object]]) -> None:
        self._first, self._meanwhile = first, meanwhile
        self._is_answered: asyncio.Event | None = None

    async def carry(self, link: object, data: bytes, *, answer: bool) -> None:
        questions = [] if answer else list(re.finditer(rb'PUB \S+ \S+ \d+\r\n{"seq":\d+,"next_by_subj"', data))
        if len(questions) == 8 and self._is_answered is None:
            self._is_answered = asyncio.Event()
            place = questions[self._first].start()
            await super().carry(link, data[:place], answer=False)  # type: ignore[arg-type]  # as a mode is given it
            await self._is_answered.wait()
            await self._meanwhile()
            data = data[place:]
        await super().carry(link, data, answer=answer)  # type: ignore[arg-type]  # as a mode is given it
        if answer and self._is_answered is not None and b"NATS/1.0 404" in data:
            self._is_answered.set()


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
                found = await transport.next_ones(subject, range(start, start + width))
                found = list({one.seq: one for one in found}.values())
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


async def test_however_many_tasks_were_read_the_latest_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq_nats.task_lookup.MOST_BYTES", 100_000)
    lookup = TaskLookup(Transport(make("nats://127.0.0.1:1")._settings))  # it is not connected
    latest: list[Entry] = []
    for seq in range(1, 3001):
        (page,) = pages_of([(0, task(), None, None)])
        subject = Names("t").batch("work", f"p0-s-{page.tasks[0][0].id}")
        batch = lookup.read(Stored(subject, seq, encode_batch(page, at=1, behind=0, nonce="n")))
        latest = [*latest[-29:], entry_of(batch, 0)]
    assert set(await lookup.of_slots("work", latest)) == set(range(2971, 3001))


async def test_tasks_that_are_stored_while_a_line_is_read_to_its_end_are_not_passed_over(
    nats_server: NatsServer,
) -> None:
    url = fresh(nats_server.url)
    loop = asyncio.get_running_loop()
    with Proxy(nats_server.port) as proxy:
        async with opened(url) as producer, opened(url.replace(f":{nats_server.port}", f":{proxy.port}")) as storage:
            ids = [(await producer.enqueue([task()]))[0].id for _ in range(10)]

            async def enqueue_two() -> None:
                ids.extend([(await producer.enqueue([task()]))[0].id for _ in range(2)])

            # Seven are read, then of eight sequences that are asked from three have a task and the fourth has none yet.
            proxy.mode = interrupted = Interrupted(
                4, lambda: asyncio.wrap_future(asyncio.run_coroutine_threadsafe(enqueue_two(), loop))
            )
            claimed: list[str] = []
            while some := await storage.claim({"work": 10}, worker="w", lease=60):
                claimed += [one.id for one in some]
            assert interrupted._is_answered is not None
            assert claimed == ids
            assert len(ids) == 12


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
