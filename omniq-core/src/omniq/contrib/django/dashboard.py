"""The dashboard in Django's admin, for staff with a permission, under WSGI and ASGI alike."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from omniq.contrib import _needs
from omniq.contrib.django.backend import queue_of

with _needs("django"):
    from django.contrib import admin  # type: ignore[import-untyped]  # it brings no types
    from django.http import HttpRequest, HttpResponse  # type: ignore[import-untyped]  # the same
    from django.urls import path  # type: ignore[import-untyped]  # the same
with _needs("dashboard"):
    from starlette.requests import Request

    from omniq.dashboard import EVERYTHING, READ_ONLY, Dashboard, Visitor

__all__ = ["DashboardAdmin"]

_VISITOR = "omniq.visitor"


class DashboardAdmin(admin.ModelAdmin):  # type: ignore[misc]  # Django brings no types
    """Shows the dashboard of the backend ``default`` where the admin would list objects.

    It is registered with the admin site that comes with Django; register it with those of your own.
    """

    def get_urls(self) -> list[Any]:
        """Return the addresses of one page, beneath which the dashboard has its own."""

        def show(request: HttpRequest, rest: str) -> HttpResponse:
            may = READ_ONLY if self.has_view_permission(request) else frozenset()
            if self.has_change_permission(request):
                may = EVERYTHING
            return _answer(request, rest, Visitor(name=request.user.get_username(), may=may))

        # It checks where a form comes from by itself, with a token of its own.
        show.csrf_exempt = True  # type: ignore[attr-defined]  # so Django has it
        view = self.admin_site.admin_view(show)
        # The admin's index leads to the first, by this name.
        return [
            path("", view, {"rest": ""}, name="omniq_dashboard_changelist"),
            path("<path:rest>", view),
        ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: there is nothing to add."""
        return False


@lru_cache(maxsize=1)
def _dashboard() -> Dashboard:
    def access(request: Request) -> Visitor:
        visitor: Visitor = request.scope[_VISITOR]
        return visitor

    return Dashboard(queue_of("default"), access=access)


def _answer(request: HttpRequest, rest: str, visitor: Visitor) -> HttpResponse:
    """Have the dashboard answer a request of Django's.

    On the loop on which the queue's own calls run, as what it does in the background goes on after the request.

    :param rest: what of the path is the dashboard's.
    :param visitor: who asks.
    """
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": request.META.get("QUERY_STRING", "").encode("latin-1"),
        "root_path": request.path.removesuffix(rest).rstrip("/"),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in request.headers.items()],
        "client": (request.META.get("REMOTE_ADDR", ""), 0),
        _VISITOR: visitor,
    }
    body = request.body
    response = HttpResponse()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            response.status_code = message["status"]
            for name, value in message["headers"]:
                if name == b"set-cookie":
                    response.cookies.load(value.decode("latin-1"))
                else:
                    response[name.decode("latin-1")] = value.decode("latin-1")
        else:
            response.write(message.get("body", b""))

    dashboard = _dashboard()
    dashboard.queue.run(dashboard(scope, receive, send))
    return response
