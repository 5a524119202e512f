"""The application: its routes with the permission that each takes, and what happens around each request."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import cached_property, partial
from importlib import resources

from attrs import frozen
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from omniq._client.audit import acting_as
from omniq._client.queue import TaskQueue
from omniq.dashboard.access import Access, Permission, visitor_of
from omniq.dashboard.bulk import VERBS, Bulk, Job
from omniq.dashboard.looks import Looks
from omniq.dashboard.security import Refused, check_host, protect, read_form
from omniq.dashboard.views import (
    bulk,
    doctor,
    flows,
    functions,
    limits,
    overview,
    queues,
    schedules,
    task,
    tasks,
    workers,
)
from omniq.dashboard.visit import View, Visit
from omniq.errors import FlowNotFound, OmniQError, ScheduleNotFound, StorageError, TaskNotFound
from omniq.storage.escaping import get_logger

__all__ = ["ROUTES", "Dashboard", "Route"]

_log = get_logger("omniq.dashboard")
_audit = get_logger("omniq.audit")
_KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@frozen
class Route:
    """One thing that can be asked for."""

    method: str
    path: str
    view: View
    needs: tuple[Permission, ...] = (Permission.VIEW,)
    """The permissions that it takes, all of them."""


def _routes() -> tuple[Route, ...]:
    view, payload = Permission.VIEW, Permission.PAYLOAD
    found = [
        Route("GET", "/", overview.show),
        Route("GET", "/tasks", tasks.show),
        Route("GET", "/task", task.show),
        Route("GET", "/task/copy", task.show_copy, (view, payload, Permission.ENQUEUE)),
        Route("POST", "/task/copy", task.copy, (view, payload, Permission.ENQUEUE)),
        Route("POST", "/task/cancel", task.cancel, (view, Permission.CANCEL)),
        Route("POST", "/task/retry", task.retry, (view, Permission.RETRY)),
        Route("POST", "/task/run-now", task.run_now, (view, Permission.RETRY)),
        Route("POST", "/task/delete", task.delete, (view, Permission.DELETE)),
        Route("GET", "/queues", queues.show),
        Route("POST", "/queues/pause", queues.pause, (view, Permission.PAUSE)),
        Route("POST", "/queues/resume", queues.resume, (view, Permission.PAUSE)),
        Route("GET", "/limits", limits.show),
        Route("GET", "/limit", limits.show_one, (view, Permission.LIMITS)),
        Route("POST", "/limit", limits.put, (view, Permission.LIMITS)),
        Route("POST", "/limits/delete", limits.delete, (view, Permission.LIMITS)),
        Route("GET", "/functions", functions.show),
        Route("GET", "/workers", workers.show),
        Route("GET", "/schedules", schedules.show),
        Route("POST", "/schedules/pause", schedules.pause, (view, Permission.SCHEDULES)),
        Route("POST", "/schedules/resume", schedules.resume, (view, Permission.SCHEDULES)),
        Route("POST", "/schedules/trigger", schedules.trigger, (view, Permission.SCHEDULES)),
        Route("POST", "/schedules/delete", schedules.delete, (view, Permission.SCHEDULES)),
        Route("GET", "/flows", flows.show),
        Route("GET", "/flow", flows.show_one),
        Route("POST", "/flow/cancel", flows.cancel, (view, Permission.CANCEL)),
        Route("POST", "/flow/retry", flows.retry, (view, Permission.RETRY)),
        Route("GET", "/doctor", doctor.show),
    ]
    for verb in VERBS.values():
        needs = view, verb.permission
        found += [
            Route("GET", f"/bulk/{verb.name}", partial(bulk.dry_run, verb), needs),
            Route("POST", f"/bulk/{verb.name}", partial(bulk.start, verb), needs),
            Route("GET", f"/bulk/{verb.name}/job", bulk.show_job, needs),
            Route("POST", f"/bulk/{verb.name}/stop", bulk.stop, needs),
        ]
    return tuple(found)


ROUTES = _routes()
"""Everything that can be asked for, but for the files of which the pages are made."""
_BY_PATH: dict[str, dict[str, Route]] = {}
for _route in ROUTES:
    _BY_PATH.setdefault(_route.path, {})[_route.method] = _route


class Dashboard:
    """A page for a queue, as an ASGI application: ``app.mount("/tasks", Dashboard(queue, access=who))``.

    Actions on many tasks go on in the background of the process that they were started in, as long as it runs.

    :param queue: whose store is shown, and whose functions are known.
    :param access: who may do what: a function that takes a request of starlette's and returns a :class:`Visitor`, None
        (the request is refused) or a response such as one that leads to a page to sign in on; or a coroutine function.
    :param title: what is shown as the name of what is looked at; None: the store's URL without a password.
    :param hosts: the names of hosts under which it is served; None: any, as the application around it checks them. IP
        addresses and ``localhost`` are always taken.
    :param others: further dashboards to lead to: titles and addresses.
    :raises TypeError: if the queue is none, ``access`` cannot be called, or ``hosts`` is a string.
    """

    def __init__(
        self,
        queue: TaskQueue,
        *,
        access: Access,
        title: str | None = None,
        hosts: Collection[str] | None = None,
        others: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(queue, TaskQueue):
            raise TypeError(f"Dashboard() takes a TaskQueue, not {queue!r}")
        if not callable(access):
            raise TypeError(f"access must be a function of a request, not {access!r}")
        if isinstance(hosts, str):
            raise TypeError(f"hosts must be a list of names, not the string {hosts!r}; write [{hosts!r}]")
        self.queue = queue
        self.access = access
        self.title = title or queue.url
        self.hosts = None if hosts is None else frozenset(map(str.lower, hosts))
        self.others = dict(others or {})
        self.looks = Looks(queue)
        self.bulk = Bulk(queue, _bulk_over)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] == "lifespan":  # where it is served alone
            await _live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return  # the browser went away in the middle of a form: there is nothing to do, and no one to answer
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        root = request.scope.get("root_path", "").rstrip("/")
        path = request.url.path.removeprefix(root)
        visit: Visit | None = None
        try:
            check_host(request, self.hosts)
            if path == "" and root:
                return protect(request, RedirectResponse(f"{root}/", status_code=307))
            if path.startswith("/static/"):
                return self._file(request, path.removeprefix("/static/"))
            visitor = await visitor_of(self.access, request)
            if isinstance(visitor, Response):
                return protect(request, visitor)
            if visitor is None or Permission.VIEW not in visitor.may:
                raise Refused(403, "You may not see this dashboard.")
            visit = Visit(self, request, visitor)
            return await self._routed(visit, path)
        except Refused as refused:
            return self._refusal(request, visit, refused.status, str(refused))
        except (TaskNotFound, FlowNotFound, ScheduleNotFound) as error:
            return self._refusal(request, visit, 404, f"{error}. Perhaps it was removed since.")
        except StorageError as error:
            _log.warning("the store cannot be read: %s", error)
            return self._refusal(request, visit, 503, f"The store cannot be read: {error}")
        except (OmniQError, ValueError) as error:
            return self._refusal(request, visit, 400, str(error))

    async def _routed(self, visit: Visit, path: str) -> Response:
        request = visit.request
        methods = _BY_PATH.get(path)
        if methods is None:
            raise Refused(404, "There is no such page.")
        method = "GET" if request.method == "HEAD" else request.method
        route = methods.get(method)
        if route is None:
            response = self._refusal(request, visit, 405, "That cannot be done here.")
            response.headers["Allow"] = ", ".join(sorted(methods))
            return response
        visit.demand(*route.needs)
        if method == "GET":
            return await route.view(visit)
        form = await read_form(request)
        try:
            with acting_as(visit.visitor.name):
                return await route.view(Visit(self, request, visit.visitor, form))
        finally:
            self.looks.forget()

    def _refusal(self, request: Request, visit: Visit | None, status: int, text: str) -> Response:
        if visit is None:
            return protect(request, PlainTextResponse(f"{text}\n", status_code=status))
        return visit.page("refused.html", status=status, title="Not done", text=text, code=status)

    # Files

    @cached_property
    def _files(self) -> Mapping[str, bytes]:
        folder = resources.files("omniq.dashboard") / "static"
        return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _KINDS}

    @cached_property
    def _version(self) -> str:
        return hashlib.sha256(b"".join(one for _, one in sorted(self._files.items()))).hexdigest()[:12]

    def asset(self, name: str) -> str:
        """Return the path of a file of which pages are made; another one for each version of them.

        :param name: such as ``dashboard.css``.
        """
        return f"/static/{name}?v={self._version}"

    def _file(self, request: Request, name: str) -> Response:
        body = self._files.get(name)
        if body is None or request.method not in ("GET", "HEAD"):
            raise Refused(404, "There is no such file.")
        kind = _KINDS[name.rpartition(".")[2]]
        is_current = request.url.query == f"v={self._version}"
        keep = "public, max-age=31536000, immutable" if is_current else "no-cache"
        return protect(request, Response(body, media_type=kind), {"Cache-Control": keep})


def _bulk_over(job: Job) -> None:
    how = f"failed ({job.error})" if job.error else "was stopped" if job.stopped else "ended"
    _audit.info(
        "%s of many tasks (%s), by %s, %s: %d done, %d skipped",
        job.verb.name,
        job.filters,
        job.actor,
        how,
        job.done,
        job.skipped,
        extra={"omniq_actor": job.actor, "omniq_action": f"bulk {job.verb.name}", "omniq_target": job.filters},
    )


async def _live(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
