"""The ways in which the command ``omniq dashboard`` finds out who sends a request. Each is an ``access``."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import secrets
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from attrs import frozen
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from omniq.cli.failures import UsageError
from omniq.dashboard.access import EVERYTHING, READ_ONLY, Permission, Visitor
from omniq.dashboard.security import set_cookie

__all__ = ["Basic", "NoAuth", "Proxy", "Token"]

_COOKIE = "omniq_session"
MOST_SESSIONS = 1000
NO_TOKEN = "Open the address that the command printed last: the token in it is good for one browser.\n"


@frozen
class NoAuth:
    """Lets in all who reach the port, which must be one that only this machine reaches."""

    name: str
    may: Collection[Permission]

    def __call__(self, request: Request) -> Visitor:
        """Return the visitor, who is always the same."""
        return Visitor(name=self.name, may=self.may)


class Token:
    """Lets in who comes with a token, which is good for one browser; a cookie takes its place.

    :param name: of those who come with one.
    :param may: their permissions.
    :param tell: called with each token: at once with the first, and with another one whenever one was used.
    :param path: below which the cookie is sent; it must be that of all dashboards that this lets in to.
    """

    def __init__(self, name: str, may: Collection[Permission], tell: Callable[[str], None], path: str = "/") -> None:
        self._visitor = Visitor(name=name, may=may)
        self._tell = tell
        self._path = path
        self._sessions: dict[str, None] = {}
        self._token = ""
        self._renew()

    def _renew(self) -> None:
        self._token = secrets.token_urlsafe(24)
        self._tell(self._token)

    def __call__(self, request: Request) -> Visitor | Response:
        """Return the visitor; or what sets the cookie and leads to the page without the token; or how to come in."""
        # Browsers send cookies to all ports of a host, on which another dashboard may listen.
        cookie = f"{_COOKIE}_{request.url.port or ''}"
        if request.cookies.get(cookie, "") in self._sessions:
            return self._visitor
        given = request.query_params.get("token", "")
        if request.method != "GET" or not hmac.compare_digest(given.encode(), self._token.encode()):
            return PlainTextResponse(NO_TOKEN, 403)
        session = secrets.token_urlsafe(32)
        self._sessions[session] = None
        if len(self._sessions) > MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._renew()
        response = RedirectResponse(request.url.path, status_code=303)
        set_cookie(request, response, cookie, session, path=self._path)
        return response


class Basic:
    """Asks for a name and a password, which stand in a file.

    :param path: of the file: a line ``NAME:PASSWORD``, or ``NAME:PASSWORD:read`` of one who may change nothing, for
        each visitor; empty lines and those that begin with ``#`` are passed over.
    :param may: the upper limit of every visitor's permissions.
    :raises UsageError: if it cannot be read, is wrong, or can be read by others than its owner.
    """

    def __init__(self, path: Path, may: Collection[Permission]) -> None:
        try:
            with path.open(encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the passwords in {path} cannot be read: {error}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(f"{path} holds passwords and can be read by others; say: chmod 600 {path}")
        self._known: Mapping[str, tuple[str, Visitor]] = dict(
            _entry(line, path, number, may)
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.startswith("#")
        )
        if not self._known:
            raise UsageError(f"{path} names no user; write lines such as ada:PASSWORD")

    def __call__(self, request: Request) -> Visitor | Response:
        """Return the visitor, or what has the browser ask for a name and a password."""
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(text.encode(), validate=True).decode() if kind.lower() == "basic" else ""
        except (binascii.Error, ValueError):
            given = ""
        name, _, password = given.partition(":")
        # A name that is not there takes as long as a wrong password.
        expected, visitor = self._known.get(name, ("", None))
        fits = hmac.compare_digest(password.encode(), expected.encode())
        if visitor is not None and fits:
            return visitor
        headers = {"WWW-Authenticate": 'Basic realm="OmniQ", charset="UTF-8"'}
        return PlainTextResponse("A name and a password are needed.\n", 401, headers)


def _entry(line: str, path: Path, number: int, most: Collection[Permission]) -> tuple[str, tuple[str, Visitor]]:
    name, _, rest = line.partition(":")
    password, _, role = rest.rpartition(":") if rest.endswith(":read") else (rest, "", "")
    if not name or not password or len(name) > 500:
        raise UsageError(f"line {number} of {path} is not NAME:PASSWORD or NAME:PASSWORD:read")
    may = set(most) & (READ_ONLY if role else EVERYTHING)
    return name, (password, Visitor(name=name, may=may))


@frozen
class Proxy:
    """Takes the name that a proxy has put into a header. Who reaches the port without it can write any name there."""

    header: str
    may: Collection[Permission]

    def __call__(self, request: Request) -> Visitor | Response:
        """Return the visitor, or what says that the header is missing, or there twice."""
        given = request.headers.getlist(self.header)
        name = given[0].strip() if len(given) == 1 else ""
        if name:
            return Visitor(name=name[:500], may=self.may)
        return PlainTextResponse(f"The proxy has not said in the header {self.header} who you are.\n", 403)
