"""The proxy of the fault tests misbehaves as it says, and in no other way."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from omniq.testing import wait_until
from tests.servers.base import HOST, free_port
from tests.servers.proxy import Proxy


class Echo(socketserver.StreamRequestHandler):
    """Answers each line, and bids farewell once the other end has no more to say."""

    def handle(self) -> None:
        assert isinstance(self.server, EchoServer)
        with contextlib.suppress(OSError):
            for line in self.rfile:
                self.server.heard.append(line)
                self.wfile.write(b"you said " + line)
            self.wfile.write(b"farewell\n")


class EchoServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.heard: list[bytes] = []
        super().__init__((HOST, port), Echo)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


@contextlib.contextmanager
def echo_server(port: int) -> Iterator[EchoServer]:
    with EchoServer(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with echo_server(free_port()) as server:
        yield server


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[Proxy]:
    with Proxy(server.port, seed=1) as proxy:
        yield proxy


class Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), 10)
        self.lines = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.lines.close()
        self.socket.close()

    def say(self, line: bytes) -> None:
        self.socket.sendall(line + b"\n")

    def ask(self, line: bytes) -> bytes:
        self.say(line)
        return self.lines.readline()

    def has_news(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])


def test_bytes_pass_both_ways_and_the_end_of_one_way_leaves_the_other(proxy: Proxy) -> None:
    with Client(proxy.port) as client:
        assert client.ask(b"hello") == b"you said hello\n"
        client.say(b"bye")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.lines.read() == b"you said bye\nfarewell\n"
    wait_until(lambda: proxy.connections == 0, what="the connection's end")


def test_a_delayed_answer_comes_after_one_that_was_asked_for_later(proxy: Proxy, server: EchoServer) -> None:
    with Client(proxy.port) as slow, Client(server.port) as quick:
        slow.ask(b"first")
        proxy.delay(0.5, jitter=0.1)
        slow.say(b"second")
        slow.say(b"third")
        assert quick.ask(b"fourth") == b"you said fourth\n"
        assert not slow.has_news()
        assert [slow.lines.readline() for _ in range(2)] == [b"you said second\n", b"you said third\n"]


def test_a_trickle_brings_everything_a_few_bytes_at_a_time(proxy: Proxy) -> None:
    with Client(proxy.port) as client:
        proxy.trickle(size=100, pause=0.001)
        client.say(b"x" * 5000)
        parts: list[bytes] = []
        while not b"".join(parts).endswith(b"\n"):
            parts.append(client.socket.recv(10_000))
    assert b"".join(parts) == b"you said " + b"x" * 5000 + b"\n"
    assert len(parts) > 1


def test_a_black_hole_keeps_what_is_sent_until_it_closes(proxy: Proxy, server: EchoServer) -> None:
    with Client(proxy.port) as before, Client(server.port) as witness:
        before.ask(b"hello")
        proxy.blackhole()
        before.say(b"late")
        with Client(proxy.port) as during:
            during.say(b"later")
            witness.ask(b"meanwhile")
            assert server.heard == [b"hello\n", b"meanwhile\n"]
            proxy.pass_on()
            assert before.lines.readline() == b"you said late\n"
            assert during.lines.readline() == b"you said later\n"


def test_what_was_sent_into_a_black_hole_arrives_even_if_its_sender_has_given_up(
    proxy: Proxy, server: EchoServer
) -> None:
    with Client(proxy.port) as client:
        client.ask(b"hello")
        proxy.blackhole()
        client.say(b"late")
    proxy.pass_on()
    wait_until(lambda: b"late\n" in server.heard, what="the late request")


def test_every_connection_is_reset_and_each_new_one(proxy: Proxy, server: EchoServer) -> None:
    with Client(proxy.port) as client:
        client.ask(b"hello")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.lines.readline()
    with pytest.raises(ConnectionResetError), Client(proxy.port) as client:  # noqa: PT012  # connecting may do it, too
        client.say(b"lost")
        client.lines.readline()
    proxy.pass_on()
    with Client(proxy.port) as client:
        assert client.ask(b"again") == b"you said again\n"
    assert b"lost\n" not in server.heard


def test_connections_are_dropped_once(proxy: Proxy) -> None:
    with Client(proxy.port) as client:
        client.ask(b"hello")
        proxy.drop()
        with pytest.raises(ConnectionResetError):
            client.lines.readline()
    with Client(proxy.port) as client:
        assert client.ask(b"again") == b"you said again\n"


def test_a_request_is_heard_and_its_answer_is_lost(proxy: Proxy, server: EchoServer) -> None:
    with Client(proxy.port) as victim, Client(proxy.port) as other:
        victim.ask(b"hello")
        other.ask(b"hello")
        cut = proxy.cut_reply(lambda request: b"write" in request)
        assert victim.ask(b"read") == b"you said read\n"
        assert not cut.happened
        victim.say(b"write")
        with pytest.raises(ConnectionResetError):
            victim.lines.readline()
        cut.wait()
        assert server.heard[-1] == b"write\n"
        assert other.ask(b"write") == b"you said write\n"


def test_the_third_answer_is_lost_whichever_connection_it_is_for(proxy: Proxy) -> None:
    with Client(proxy.port) as first, Client(proxy.port) as second:
        cut = proxy.cut_reply(nth=3)
        assert first.ask(b"one") == b"you said one\n"
        assert second.ask(b"two") == b"you said two\n"
        assert not cut.happened
        first.say(b"three")
        with pytest.raises(ConnectionResetError):
            first.lines.readline()
        cut.wait()
        assert second.ask(b"four") == b"you said four\n"


def test_half_of_a_request_arrives_and_its_connection_ends(proxy: Proxy, server: EchoServer) -> None:
    with Client(proxy.port) as victim, Client(proxy.port) as other:
        victim.ask(b"hello")
        other.ask(b"hello")
        cut = proxy.cut_request(lambda request: b"write" in request)
        assert victim.ask(b"read") == b"you said read\n"
        victim.say(b"first half;" + b"write half;")
        with pytest.raises(ConnectionResetError):
            victim.lines.readline()
        cut.wait()
        wait_until(lambda: server.heard[-1] == b"first half;", what="half of the request")
        assert other.ask(b"write") == b"you said write\n"


def test_a_lossy_line_loses_answers_and_no_requests(proxy: Proxy, server: EchoServer) -> None:
    proxy.lossy(0.3)
    answered = 0
    for number in range(40):
        with Client(proxy.port) as client, contextlib.suppress(ConnectionResetError):
            answered += client.ask(b"%d" % number) == b"you said %d\n" % number
    assert server.heard == [b"%d\n" % number for number in range(40)]
    assert proxy.lost > 0
    # Also farewells are lost, which nobody waits for.
    assert 40 - proxy.lost <= answered < 40


def test_a_server_that_is_gone_ends_connections_and_one_that_is_back_serves_them() -> None:
    port = free_port()
    with Proxy(port) as proxy:
        with Client(proxy.port) as client, contextlib.suppress(ConnectionResetError):
            assert client.lines.readline() == b""
        with echo_server(port), Client(proxy.port) as client:
            assert client.ask(b"hello") == b"you said hello\n"
