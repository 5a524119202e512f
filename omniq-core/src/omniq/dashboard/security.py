"""What keeps all but its visitors from using the dashboard: checks of each request, headers of each answer."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Collection, Mapping
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["FORM_FIELD", "Refused", "check_host", "form_token", "protect", "read_form"]

FORM_FIELD = "form_token"
LARGEST_FORM = 2 << 20
"""Bytes; arguments of tasks are at most 1 MiB unless ``max_payload`` says otherwise."""
_COOKIE = "omniq_form"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: browsers would then send "Origin: null" with forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Refused(Exception):
    """A request is not answered."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def check_host(request: Request, hosts: Collection[str] | None) -> None:
    """Refuse a request that was sent to another host: by a page of an attacker whose name leads here.

    An IP address and ``localhost`` are always taken: an attacker's page has a name.

    :param hosts: the names that are taken besides, without a port; None: any, as the application around it checks them.
    :raises Refused: if the host is none of them.
    """
    if hosts is None:
        return
    given = request.headers.get("host", "")
    try:
        host = (urlsplit(f"//{given}").hostname or "").removesuffix(".")
        if host == "localhost" or host in hosts:
            return
        ipaddress.ip_address(host)
    except ValueError:
        raise Refused(421, "This dashboard is not served under that name; see the option --host.") from None


async def read_form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form that was sent from a page of this dashboard.

    :raises Refused: if it was not, or is too large.
    """
    _check_origin(request)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_FORM:
            raise Refused(413, "The form is too large.")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "Only forms are taken.")
    fields = parse_qs(body.decode("ascii", "replace"), keep_blank_values=True, encoding="utf-8", max_num_fields=5000)
    expected, given = request.cookies.get(_COOKIE, ""), fields.pop(FORM_FIELD, [""])[0]
    if not expected or not hmac.compare_digest(expected.encode(), given.encode()):
        raise Refused(403, "The form is too old. Go back, reload the page, and try again.")
    return fields


def _check_origin(request: Request) -> None:
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        same = site == "same-origin"
    else:  # an old browser, or one that does not trust plain http on another machine
        same = origin is not None and urlsplit(origin).netloc == request.headers.get("host")
    if not same:
        raise Refused(403, "Only a page of this dashboard can do that.")


def form_token(request: Request) -> str:
    """Return what proves that a form is of a page that this browser was given; kept in a cookie."""
    found = request.cookies.get(_COOKIE, "")
    token: str = request.scope.setdefault("omniq_form", found if len(found) == 43 else secrets.token_urlsafe(32))
    return token


def protect(request: Request, response: Response, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer with what tells browsers how little it may do."""
    for name, value in {"Cache-Control": "no-store", **_HEADERS, **(headers or {})}.items():
        response.headers[name] = value
    token = request.scope.get("omniq_form")
    if token is not None and token != request.cookies.get(_COOKIE):
        set_cookie(request, response, _COOKIE, token)
    return response


def set_cookie(
    request: Request,
    response: Response,
    name: str,
    value: str,
    *,
    seconds: int | None = None,
    path: str | None = None,
) -> None:
    """Set a cookie that no script reads and no other site sends along with a form.

    :param seconds: for which the browser keeps it; None: until it is closed.
    :param path: below which it is sent; None: where the dashboard is mounted.
    """
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=path or request.scope.get("root_path", "") or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
