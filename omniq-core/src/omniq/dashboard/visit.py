"""One request of one visitor: what it asks for, and how it is answered."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from omniq._client.queue import TaskQueue
from omniq.dashboard.access import Permission, Visitor
from omniq.dashboard.rendering import address, render
from omniq.dashboard.security import FORM_FIELD, Refused, form_token, protect, set_cookie
from omniq.storage import Storage
from omniq.storage.escaping import get_logger, shown

if TYPE_CHECKING:
    from omniq.dashboard.app import Dashboard

__all__ = ["View", "Visit"]

_SAID = "omniq_said"
_audit = get_logger("omniq.audit")


class Visit:
    """A request that was let in.

    :param dashboard: the application.
    :param request: the request.
    :param visitor: who sent it.
    :param form: the fields of a form, if it was one.
    """

    def __init__(
        self, dashboard: Dashboard, request: Request, visitor: Visitor, form: Mapping[str, list[str]] | None = None
    ) -> None:
        self.dashboard = dashboard
        self.request = request
        self.visitor = visitor
        self.root: str = request.scope.get("root_path", "").rstrip("/")
        text = request.url.query
        self.query: Mapping[str, list[str]] = parse_qs(text, errors="replace", max_num_fields=1000)
        self._fields = self.query if form is None else form

    @property
    def queue(self) -> TaskQueue:
        """The queue that is shown."""
        return self.dashboard.queue

    async def storage(self) -> Storage:
        """Return the store of the queue, on this event loop."""
        return (await self.queue.connections.current()).storage

    def may(self, permission: Permission | str) -> bool:
        """Return whether the visitor may do something."""
        return permission in self.visitor.may

    def demand(self, *permissions: Permission) -> None:
        """Refuse what the visitor may not do.

        :raises Refused: names what is missing.
        """
        missing = [one.value for one in permissions if one not in self.visitor.may]
        if missing:
            raise Refused(403, f"You ({shown(self.visitor.name)}) have no permission for that: {', '.join(missing)}.")

    # What was asked for

    def all(self, name: str) -> list[str]:
        """Return all values of a field."""
        return [one for one in self._fields.get(name, ()) if one]

    def one(self, name: str) -> str:
        """Return the first value of a field; empty if there is none."""
        return next(iter(self.all(name)), "")

    def needed(self, name: str) -> str:
        """Return the first value of a field.

        :raises Refused: if there is none.
        """
        value = self.one(name)
        if not value:
            raise Refused(400, f"The address or form lacks {name}.")
        return value

    def back(self, otherwise: str) -> str:
        """Return the page within this dashboard that a form or an address names as the one to go back to.

        It is quoted: browsers pass over tabs and line ends in an address, and take a backslash for a slash, so that
        one of those could make what follows the name of another host.

        :param otherwise: what is returned if it names none.
        """
        back = self.one("back")
        return _quoted(back) if back.startswith("/") and back[1:2] not in ("/", "\\") else otherwise

    # How it is answered

    def to(self, path: str, **query: Any) -> str:
        """Return the address of a page."""
        return address(self.root, path, **query)

    def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Return a page."""
        request = self.request
        # What was done is for the page that is opened next, not for one that is being kept live meanwhile.
        said = "" if "x-omniq-live" in request.headers else _decoded(request.cookies.get(_SAID, ""))
        path = request.url.path.removeprefix(self.root) or "/"
        here = f"{path}{'?' if request.url.query else ''}{request.url.query}"
        html = render(
            template,
            {
                "to": self.to,
                "may": self.may,
                "visitor": self.visitor,
                "place": self.dashboard.title,
                "others": self.dashboard.others,
                "path": path,
                "here": here,
                "form_field": FORM_FIELD,
                "form_token": form_token(request),
                "said": said,
                "asset": self.dashboard.asset,
                **values,
            },
        )
        body = html.encode("utf-8", "backslashreplace")
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Vary": "Cookie"}
        if status == 200 and not said and request.headers.get("if-none-match") == tag:
            return protect(request, Response(status_code=304), headers)
        response = protect(request, HTMLResponse(body, status_code=status), headers)
        if said:
            response.delete_cookie(_SAID, path=request.scope.get("root_path", "") or "/")
        return response

    def done(self, text: str, back: str = "") -> Response:
        """Lead back to the page that a form was on, and say there what was done.

        :param text: a sentence.
        :param back: another page, within the dashboard; empty: the one that the form names.
        """
        back = back or self.back("/")
        # A browser shows the page that it is led to by GET.
        response = RedirectResponse(f"{self.root}{_quoted(back)}", status_code=303)
        if text:
            said = base64.urlsafe_b64encode(text[:600].encode()).decode()
            set_cookie(self.request, response, _SAID, said, seconds=60)
        return protect(self.request, response)

    async def act(
        self, action: str, do: Callable[[str], Awaitable[bool]], field: str, done: str, not_done: str, back: str = ""
    ) -> Response:
        """Do something to what a form names, note it, and say what became of it.

        :param action: what the audit log calls it.
        :param do: takes the name, and returns whether anything has changed.
        :param field: the field of the form that has the name, in place of which ``{}`` stands in the sentences.
        :param back: where to lead to if it was done; empty: to the page that the form names.
        """
        name = self.needed(field)
        changed = await do(name)
        self.audit(action, name, changed)
        return self.done((done if changed else not_done).format(name), back if changed else "")

    def audit(self, action: str, target: str, done: object) -> None:
        """Note an action in the log ``omniq.audit``."""
        client = self.request.client
        _audit.info(
            "%s did %s to %s: %s",
            self.visitor.name,
            action,
            target,
            done,
            extra={
                "omniq_actor": self.visitor.name,
                "omniq_action": action,
                "omniq_target": target,
                "omniq_client": None if client is None else client.host,
            },
        )


View: TypeAlias = Callable[[Visit], Awaitable[Response]]
"""Answers a request."""


def _quoted(path: str) -> str:
    return quote(path, safe="/?&=%+:,-._~")


def _decoded(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text.encode()).decode()
    except (binascii.Error, ValueError):
        return ""
