"""``omniq dashboard``: the dashboard in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import re
import signal
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from omniq._client.queue import TaskQueue
from omniq.cli.app import load_queue_or_url, require_shared, user_name
from omniq.cli.arguments import configuring, flag, known_app_name, value
from omniq.cli.failures import OperationFailed, UsageError
from omniq.cli.http import http_option
from omniq.cli.logs import logging_to_stderr
from omniq.cli.terminal import Screen
from omniq.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from omniq.dashboard.access import Access, Permission

__all__ = ["application", "configure", "listener_at", "require_extra", "run", "serve", "shown_address", "with_token"]

DEFAULT = ("127.0.0.1", 8787)
MISSING = "the dashboard needs the extra: pip install 'omniq-core[dashboard]'"
_AUTH = re.compile(r"token|none|basic:.+|proxy:[A-Za-z0-9-]+")


def _add_apps(parser: argparse.ArgumentParser) -> None:
    if known_app_name() is not None:
        parser.set_defaults(apps=[known_app_name()])
    else:
        parser.add_argument(
            "apps", nargs="+", metavar="APP|URL", help="TaskQueues as module:attribute, or URLs of stores"
        )


def _prefix(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no path such as /tasks")
    return text.rstrip("/")


def _auth(text: str) -> str:
    if not _AUTH.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of token, basic:FILE, proxy:HEADER, none")
    return text


configure = configuring(
    "Show what a store holds and does, in a browser. Without further options only this machine reaches it,\n"
    "by the address that it prints, which is good for one browser; then it prints another one.",
    "omniq dashboard sqlite:///jobs.db\n"
    "omniq dashboard shop.tasks:queue --http 0.0.0.0:8787 --host tasks.example.org --auth basic:passwords\n"
    "omniq dashboard shop.tasks:queue --prefix /tasks --auth proxy:X-Forwarded-User",
    _add_apps,
    http_option("where to listen (default 127.0.0.1:8787)", DEFAULT),
    value("--prefix", _prefix, "PATH", "the path that it is served under", default=""),
    flag("--read-only", "refuse every change"),
    value(
        "--auth",
        _auth,
        "HOW",
        "who may use it: token (the default): who has the address that is printed; basic:FILE: the names and "
        "passwords in a file; proxy:HEADER: whom a proxy names in this header; none: all users of this machine",
        default="token",
    ),
    value(
        "--host",
        str,
        "NAME",
        "a name under which it is reached, besides localhost and IP addresses; can be repeated",
        action="append",
        default=[],
    ),
)


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    require_extra()
    screen = Screen()
    with logging_to_stderr(logging.DEBUG if options.verbose else logging.INFO), contextlib.ExitStack() as stack:
        queues = [stack.enter_context(_checked(app)) for app in options.apps]
        listener = listener_at(options.http)
        stack.callback(listener.close)
        url = f"http://{shown_address(listener)}{options.prefix}/"
        access = _access(options.auth, options.http[0], url, screen, read_only=options.read_only)
        serve(queues, listener, access, prefix=options.prefix, hosts=options.host)
    return 0


def require_extra() -> None:
    """Refuse to go on without what the dashboard is made with.

    :raises ConfigurationError: says what to install.
    """
    try:
        import jinja2  # noqa: F401  # it is looked whether they are there
        import starlette  # noqa: F401  # likewise
        import uvicorn  # noqa: F401  # likewise
    except ImportError as error:
        raise ConfigurationError(f"{MISSING} ({error.name} is missing)") from error


def _checked(app: str) -> TaskQueue:
    queue = load_queue_or_url(app)
    require_shared(queue)
    return queue


def listener_at(place: tuple[str, int]) -> socket.socket:
    """Return a socket that listens.

    :raises OperationFailed: if it cannot.
    """
    host, port = place
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(info[4][:2], family=info[0], backlog=128)
    except OSError as error:
        raise OperationFailed(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def shown_address(listener: socket.socket) -> str:
    """Return the host and port of a socket, as they stand in an address to open."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _access(auth: str, host: str, url: str, screen: Screen, *, read_only: bool) -> Access:
    from omniq.dashboard.access import EVERYTHING, READ_ONLY
    from omniq.dashboard.auth import Basic, NoAuth, Proxy

    may = READ_ONLY if read_only else EVERYTHING
    kind, _, rest = auth.partition(":")
    match kind:
        case "basic":
            access: Access = Basic(Path(rest), may)
        case "proxy":
            access = Proxy(rest, may)
        case "none":
            if not _is_loopback(host):
                raise UsageError(f"--auth none lets in all who reach {host}; listen on 127.0.0.1 for it")
            access = NoAuth(user_name(), may)
        case _:
            return with_token(url, may, screen)
    screen.say(f"dashboard: {url}")
    return access


def with_token(url: str, may: Collection[Permission], screen: Screen) -> Access:
    """Return what lets in who comes with a token, and say each of them as an address to open."""
    from omniq.dashboard.auth import Token

    told = False

    def tell(token: str) -> None:
        nonlocal told
        screen.say(f"{'for another browser' if told else 'dashboard'}: {url}?token={token}")
        told = True

    return Token(user_name(), may, tell, urlsplit(url).path)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def application(queues: Sequence[TaskQueue], access: Access, *, prefix: str, hosts: Collection[str] = ()) -> ASGIApp:
    """Return the application that shows some queues: one below the prefix, of several the nth below ``/n``.

    :param queues: what is shown, at least one.
    :param access: who may do what, for all of them.
    :param prefix: the path that it is served under, without a slash at its end; empty: the root.
    :param hosts: the names of hosts that are taken besides ``localhost`` and IP addresses.
    """
    from starlette.applications import Starlette
    from starlette.responses import RedirectResponse
    from starlette.routing import Mount, Route

    from omniq.dashboard.app import Dashboard

    paths = [prefix] if len(queues) == 1 else [f"{prefix}/{number}" for number, _ in enumerate(queues, 1)]
    others = {} if len(queues) == 1 else {_title(one): f"{path}/" for one, path in zip(queues, paths, strict=True)}
    routes = [
        Mount(path, app=Dashboard(one, access=access, title=_title(one), hosts=hosts, others=others))
        for path, one in zip(paths, queues, strict=True)
    ]

    def first(request: object) -> RedirectResponse:
        query = getattr(request, "url").query  # noqa: B009  # whatever it is, starlette's request has one
        return RedirectResponse(f"{paths[0]}/{'?' if query else ''}{query}")

    if paths[0]:
        return Starlette(
            routes=[Route("/", first), *([Route(f"{prefix}/", first)] if prefix and len(queues) > 1 else []), *routes]
        )
    return Starlette(routes=routes)


def _title(queue: TaskQueue) -> str:
    return queue.url if queue.namespace in ("", "omniq") else f"{queue.namespace} · {queue.url}"


def serve(
    queues: Sequence[TaskQueue],
    listener: socket.socket,
    access: Access,
    *,
    prefix: str = "",
    hosts: Collection[str] = (),
    around: Callable[[], AbstractAsyncContextManager[None]] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; of ``queues``, ``access``, ``prefix`` and ``hosts`` see :func:`application`.

    :param listener: the socket to listen on; the host of its :func:`shown_address` is always taken.
    :param around: entered on the event loop before the first request is taken, and left after the last one.
    """
    import uvicorn

    # The address that is printed must work: on 0.0.0.0 it has the name of this machine.
    printed = urlsplit(f"//{shown_address(listener)}").hostname or ""
    app = application(queues, access, prefix=prefix, hosts=[*hosts, printed])
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        timeout_graceful_shutdown=3,
    )

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # uvicorn would end the process by the signal that it was told to stop with

    server = Server(config)

    def stop(*_: object) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for queue in queues:
                await stack.enter_async_context(queue)
            if around is not None:
                await stack.enter_async_context(around())
            await server.serve(sockets=[listener])

    asyncio.run(main())
