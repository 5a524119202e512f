"""A small HTTP server for probes and scrapers, on a thread of its own: whatever else stands still, it answers."""

from __future__ import annotations

import argparse
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, TypeAlias
from urllib.parse import parse_qs, urlsplit

from attrs import frozen

from omniq.cli.arguments import Configure, value
from omniq.cli.failures import UsageError
from omniq.storage.escaping import get_logger

__all__ = ["HttpServer", "Query", "Response", "http_option", "refused"]

_log = get_logger("omniq.worker.http")

Query: TypeAlias = Mapping[str, list[str]]
SLOWEST_CLIENT = 10.0
"""Seconds that a client may take to say what it wants, and to read the answer."""


@frozen
class Response:
    """What is answered."""

    body: str
    status: int = 200
    kind: str = "text/plain; charset=utf-8"


Route: TypeAlias = Callable[[Query], Response]


def refused(reason: str) -> Response:
    """Return the answer of a probe that is not content."""
    return Response(f"{reason}\n", 503)


class HttpServer:
    """Answers GET and HEAD at some paths.

    :param place: host and port to listen on; port 0: any that is free.
    :param routes: path → what answers, called with the query's values by name, on a thread of the server's.
    :raises UsageError: if that address cannot be listened on.
    """

    def __init__(self, place: tuple[str, int], routes: Mapping[str, Route]) -> None:
        class Handler(_Handler):
            answers = routes

        family = _Server6 if ":" in place[0] else _Server
        try:
            self._server = family(place, Handler)
        except OSError as error:
            raise UsageError(f"cannot listen on {_address(*place)}: {error.strerror or error}") from error
        self.url = f"http://{_address(*self._server.server_address[:2])}"
        threading.Thread(target=self._server.serve_forever, name="omniq-http", daemon=True).start()
        _log.info("%s answers %s", self.url, ", ".join(routes))

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        _log.debug("a client at %s went away", client_address, exc_info=True)


class _Server6(_Server):
    address_family: int = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    answers: ClassVar[Mapping[str, Route]] = {}
    timeout: ClassVar[float | None] = SLOWEST_CLIENT
    server_version = "OmniQ"
    sys_version = ""

    def do_GET(self) -> None:  # http.server's own name
        url = urlsplit(self.path)
        route = self.answers.get(url.path)
        if route is None:
            response = Response(f"there is nothing here; there is {', '.join(self.answers)}\n", 404)
        else:
            try:
                response = route(parse_qs(url.query))
            except Exception as error:  # such as a store that cannot be reached
                _log.debug("%s cannot be answered", url.path, exc_info=True)
                response = refused(f"{type(error).__name__}: {error}")
        body = response.body.encode("utf-8", "backslashreplace")
        self.send_response(response.status)
        self.send_header("Content-Type", response.kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  # http.server's own name

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's own name
        _log.debug(format, *args)


def _address(host: object, port: object) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def http_option(about: str, default: tuple[str, int] | None = None) -> Configure:
    """Return the option that says where to listen.

    :param about: its help.
    """
    return value("--http", _place, "HOST:PORT", about, default=default)


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9090 or [::1]:9090")
    return host, int(port)
