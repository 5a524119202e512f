"""Who may ask for what: every route, with every role, by every method."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import RedirectResponse

from omniq import Every, TaskQueue
from omniq.dashboard import EVERYTHING, READ_ONLY, Dashboard, Permission, Visitor
from omniq.dashboard.app import ROUTES
from tests.dashboard.support import SAME_ORIGIN, client_of

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PATHS = sorted({route.path for route in ROUTES})
DECLARED = {(route.method, route.path): set(route.needs) for route in ROUTES}

ROLES: dict[str, frozenset[Permission]] = {
    "nothing": frozenset(),
    "read only": READ_ONLY,
    "everything": EVERYTHING,
    **{f"view and {one.value}": frozenset({Permission.VIEW, one}) for one in Permission},
    **{f"all but {one.value}": EVERYTHING - {one} for one in Permission},
}


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_ask_for_what_the_routes_declare_and_for_nothing_else(queue: TaskQueue, role: str) -> None:
    may = ROLES[role]
    async with client_of(queue) as known, client_of(queue, may) as client:
        fields = {"form_token": await known.token()}
        client.cookies.update(known.cookies)
        for path in PATHS:
            for method in METHODS if role == "everything" else ("GET", "POST"):
                answer = await client.request(
                    method, path, headers=SAME_ORIGIN, data=fields if method == "POST" else None
                )
                needs = DECLARED.get((method, path))
                if Permission.VIEW not in may:
                    assert answer.status_code == 403, (method, path)
                elif needs is None:
                    assert answer.status_code == 405, (method, path)
                elif needs - may:
                    assert answer.status_code == 403, (method, path)
                else:
                    # The fields that it takes are not there, or it names nothing that is there; but it was let in.
                    assert answer.status_code in (200, 400, 404), (method, path, answer.text)


async def test_what_changes_something_is_a_post(queue: TaskQueue) -> None:
    changing = EVERYTHING - READ_ONLY
    for route in ROUTES:
        if route.method == "GET" and set(route.needs) & changing:
            assert route.path in ("/task/copy", "/limit") or route.path.startswith("/bulk/"), (
                "a page of which a form is sent"
            )


async def test_it_is_closed_to_those_whom_access_does_not_name(queue: TaskQueue) -> None:
    def nobody(request: Request) -> None:
        return None

    async with client_of(queue, app=Dashboard(queue, access=nobody)) as client:
        for path in PATHS:
            answer = await client.get(path)
            assert answer.status_code == 403
            assert "OmniQ" not in answer.text


async def test_access_may_be_a_coroutine_and_may_lead_to_a_page_to_sign_in_on(queue: TaskQueue) -> None:
    async def access(request: Request) -> Visitor | RedirectResponse:
        if request.headers.get("x-user"):
            return Visitor(name="grace", may={"view"})
        return RedirectResponse("/login")

    async with client_of(queue, app=Dashboard(queue, access=access)) as client:
        assert (await client.get("/")).headers["location"] == "/login"
        shown = await client.get("/", headers={"x-user": "grace"})
        assert shown.status_code == 200
        assert "grace" in shown.text


def test_access_has_no_default(queue: TaskQueue) -> None:
    with pytest.raises(TypeError, match="access"):
        Dashboard(queue)  # type: ignore[call-arg]  # that is what is tested
    with pytest.raises(TypeError, match="takes a TaskQueue"):
        Dashboard("sqlite:///jobs.db", access=lambda request: None)  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(ValueError, match="fly"):
        Visitor(name="ada", may={"fly"})


async def test_forms_are_taken_from_its_own_pages_alone(queue: TaskQueue) -> None:
    @queue.task
    async def job() -> None: ...

    await job.aenqueue()
    async with client_of(queue) as client:
        token = await client.token()
        fields = {"queue": "default", "form_token": token}
        refused = [
            await client.post("/queues/pause", data=fields, headers={"sec-fetch-site": "cross-site"}),
            await client.post("/queues/pause", data=fields, headers={"sec-fetch-site": "same-site"}),
            await client.post("/queues/pause", data=fields, headers={"sec-fetch-site": "none"}),
            await client.post("/queues/pause", data=fields, headers={"origin": "http://evil.example"}),
            await client.post("/queues/pause", data=fields, headers={"origin": "null"}),
            await client.post("/queues/pause", data=fields),
            await client.post("/queues/pause", data={"queue": "default"}, headers=SAME_ORIGIN),
            await client.post("/queues/pause", data={**fields, "form_token": token[::-1]}, headers=SAME_ORIGIN),
        ]
        assert {answer.status_code for answer in refused} == {403}
        assert (await client.post("/queues/pause", json=fields, headers=SAME_ORIGIN)).status_code == 415
        assert not (await queue.astats())[0].paused
        taken = await client.post("/queues/pause", data=fields, headers={"origin": "http://localhost"})
        assert taken.status_code == 303
        assert (await queue.astats())[0].paused


async def test_a_form_leads_back_to_pages_of_the_dashboard_alone(queue: TaskQueue) -> None:
    @queue.task
    async def job() -> None: ...

    await job.aenqueue()
    async with client_of(queue) as client:
        for back in ("https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)"):
            answer = await client.send_form("/queues/resume", {"queue": "default", "back": back})
            assert answer.headers["location"] == "/"
            page = await client.get("/bulk/cancel", params={"back": back})
            assert back not in page.text
        for back in ("/\t/evil.example", "/\n/evil.example"):
            page = await client.get("/bulk/cancel", params={"back": back})
            # Browsers leave out tabs and line ends, and take a backslash for a slash.
            led = re.findall(r'<a class="quiet" href="([^"]*evil[^"]*)"', page.text)
            assert len(led) == 1
            assert led[0].startswith(("/%09", "/%0A"))
        answer = await client.send_form("/queues/resume", {"queue": "default", "back": "/tasks?queue=a&tag=%C3%A9"})
        assert answer.headers["location"] == "/tasks?queue=a&tag=%C3%A9"


async def test_each_answer_tells_the_browser_how_little_it_may_do(queue: TaskQueue) -> None:
    async with client_of(queue) as client:
        for path in ("/", "/tasks", "/nope", "/static/dashboard.js", "/static/nope.js"):
            answer = await client.get(path)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none';")
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            if not path.startswith("/static/"):
                assert answer.headers["cache-control"] == "no-store"
                assert not re.search(r"\sstyle=|\son[a-z]+=|<style", answer.text)


async def test_a_name_that_is_not_its_own_is_refused(queue: TaskQueue) -> None:
    def ada(request: Request) -> Visitor:
        return Visitor(name="ada")

    checked = Dashboard(queue, access=ada, hosts=["Tasks.example.org"])
    async with client_of(queue, app=checked) as client:
        for host in ("tasks.example.org", "tasks.example.org:8787", "127.0.0.1:8787", "[::1]:8787", "localhost"):
            assert (await client.get("/", headers={"host": host})).status_code == 200
        for host in (
            "evil.example",
            "127.0.0.1.evil.example",
            "",
            "localhost.evil.example",
            "tasks.example.org@evil.example",
        ):
            assert (await client.get("/", headers={"host": host})).status_code == 421
    async with client_of(queue, app=Dashboard(queue, access=ada)) as client:
        assert (await client.get("/", headers={"host": "anything.example"})).status_code == 200


async def test_every_action_is_in_the_audit_log_with_its_actor(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    @queue.task
    async def job() -> None: ...

    handle = await job.aenqueue()
    await queue.aschedule(job.call(), Every(3600), id="hourly")
    caplog.set_level("INFO", logger="omniq.audit")
    async with client_of(queue) as client:
        await client.send_form("/task/cancel", {"id": handle.id})
        await client.send_form("/queues/pause", {"queue": "default"})
        await client.send_form("/schedules/delete", {"id": "hourly"})
        await client.send_form("/task/delete", {"id": handle.id})
    told = [record.getMessage() for record in caplog.records if record.name == "omniq.audit"]
    assert told == [
        f"ada did cancel to {handle.id}: True",
        "ada did pause to default: True",
        "ada did delete_schedule to hourly: True",
        f"ada did delete to {handle.id}: True",
    ]


async def test_a_browser_that_goes_away_in_the_middle_of_a_form_is_no_error(queue: TaskQueue) -> None:
    dashboard = Dashboard(queue, access=lambda request: Visitor(name="ada", may=EVERYTHING))
    messages = [{"type": "http.request", "body": b"queue=def", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[object] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: object) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/x-www-form-urlencoded")]
    headers += [(b"sec-fetch-site", b"same-origin")]
    scope = {"type": "http", "method": "POST", "path": "/queues/pause", "query_string": b"", "headers": headers}
    await dashboard(scope, receive, send)
    assert messages == []
    assert sent == []
