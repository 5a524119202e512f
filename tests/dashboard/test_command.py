"""``omniq dashboard``: who is let in, where it listens, and what it says when something is missing."""

from __future__ import annotations

import base64
import html
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from omniq import TaskQueue
from omniq.cli import main
from omniq.cli.failures import UsageError
from omniq.dashboard import EVERYTHING, READ_ONLY, Dashboard, Visitor
from omniq.dashboard.auth import Basic, Proxy, Token
from omniq.dashboard.command import application
from tests.dashboard.support import SAME_ORIGIN, client_of

_ADDRESS = re.compile(r'(href|src|action|formaction)="([^"#]+)"')


def _headers(name: str, password: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


async def test_a_token_is_good_for_one_browser_and_then_there_is_another(queue: TaskQueue) -> None:
    told: list[str] = []
    access = Token("ada", EVERYTHING, told.append)
    app = application([queue], access, prefix="")
    async with client_of(queue, app=app) as first, client_of(queue, app=app) as second:
        refused = await first.get("/")
        assert refused.status_code == 403
        assert "the address that the command printed last" in refused.text
        assert refused.headers["cache-control"] == "no-store"
        assert (await first.get("/", params={"token": ""})).status_code == 403
        entered = await first.get("/", params={"token": told[0]})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        assert "httponly" in entered.headers["set-cookie"].lower()
        assert (await first.get("/")).status_code == 200
        assert (await first.send_form("/queues/pause", {"queue": "a"})).status_code == 303
        assert (await second.get("/", params={"token": told[0]})).status_code == 403
        assert len(told) == 2
        await second.get("/", params={"token": told[1]})
        assert (await second.get("/")).status_code == 200


async def test_names_and_passwords_in_a_file(queue: TaskQueue, tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    file.write_text("# visitors\nada:s3cret:with:colons\n\ngrace:pw:read\n")
    with pytest.raises(UsageError, match="chmod 600"):
        Basic(file, EVERYTHING)
    file.chmod(0o600)
    app = application([queue], Basic(file, EVERYTHING), prefix="")
    async with client_of(queue, app=app) as client:
        asked = await client.get("/")
        assert asked.status_code == 401
        assert asked.headers["www-authenticate"].startswith("Basic ")
        for name, password in (("ada", "wrong"), ("ada", ""), ("nobody", ""), ("", ""), ("grace", "pw:read")):
            assert (await client.get("/", headers=_headers(name, password))).status_code == 401
        assert "ada" in (await client.get("/", headers=_headers("ada", "s3cret:with:colons"))).text
        form = {"queue": "default", "form_token": client.cookies["omniq_form"]}
        refused = await client.post("/queues/pause", data=form, headers={**SAME_ORIGIN, **_headers("grace", "pw")})
        assert refused.status_code == 403
        assert "grace" in refused.text
    for text, match in (("", "names no user"), ("ada\n", "line 1"), (":pw\n", "line 1"), ("a:b\nada:\n", "line 2")):
        file.write_text(text)
        with pytest.raises(UsageError, match=match):
            Basic(file, EVERYTHING)
    with pytest.raises(UsageError, match="cannot be read"):
        Basic(tmp_path / "nothing", EVERYTHING)


async def test_read_only_holds_for_everybody(queue: TaskQueue, tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    file.write_text("ada:pw\n")
    file.chmod(0o600)
    app = application([queue], Basic(file, READ_ONLY), prefix="")
    async with client_of(queue, app=app) as client:
        await client.get("/queues", headers=_headers("ada", "pw"))
        form = {"queue": "default", "form_token": client.cookies["omniq_form"]}
        answer = await client.post("/queues/pause", data=form, headers={**SAME_ORIGIN, **_headers("ada", "pw")})
        assert answer.status_code == 403


async def test_a_name_that_a_proxy_tells(queue: TaskQueue) -> None:
    app = application([queue], Proxy("X-Forwarded-User", EVERYTHING), prefix="")
    async with client_of(queue, app=app) as client:
        refused = await client.get("/")
        assert refused.status_code == 403
        assert "X-Forwarded-User" in refused.text
        assert (await client.get("/", headers={"x-forwarded-user": " "})).status_code == 403
        twice = httpx.Headers([("x-forwarded-user", "ada"), ("x-forwarded-user", "root")])
        assert (await client.get("/", headers=twice)).status_code == 403
        assert "ada" in (await client.get("/", headers={"x-forwarded-user": "ada"})).text


@pytest.mark.parametrize("prefix", ["", "/tasks", "/a/b"])
async def test_every_address_on_a_page_is_below_the_prefix(queue: TaskQueue, prefix: str) -> None:
    @queue.task
    async def job() -> None: ...

    await job.aenqueue()
    app = application([queue], lambda request: Visitor(name="ada", may=EVERYTHING), prefix=prefix)
    async with client_of(queue, app=app) as client:
        seen: set[str] = set()
        left = [f"{prefix}/"]
        while left:
            page = await client.get(left.pop())
            assert page.status_code == 200, page.url
            for kind, text in _ADDRESS.findall(page.text):
                address = html.unescape(text)
                assert address.startswith(f"{prefix}/"), address
                # One of each page: filters make many more.
                path = address.partition("?")[0]
                if kind != "action" and "/static/" not in path and "/bulk/" not in path and path not in seen:
                    left.append(address)
                seen.add(path)
        assert {f"{prefix}{path}" for path in ("/", "/tasks", "/task", "/doctor", "/queues/pause")} <= seen


async def test_a_token_lets_in_to_all_queues_that_are_shown(queue: TaskQueue) -> None:
    told: list[str] = []
    async with TaskQueue("memory://other") as other:
        for prefix in ("", "/tasks"):
            told.clear()
            app = application([queue, other], Token("ada", EVERYTHING, told.append, f"{prefix}/"), prefix=prefix)
            async with client_of(queue, app=app) as client:
                entered = await client.get(f"{prefix}/", params={"token": told[0]}, follow_redirects=True)
                assert (entered.status_code, entered.url.path) == (200, f"{prefix}/1/")
                assert (await client.get(f"{prefix}/2/")).status_code == 200


async def test_two_dashboards_on_one_machine_do_not_put_each_other_out(queue: TaskQueue) -> None:
    told: list[str] = []
    apps = [application([queue], Token("ada", EVERYTHING, told.append), prefix="") for _ in range(2)]
    first, second = (
        client_of(queue, app=app, base=f"http://127.0.0.1:{port}") for app, port in zip(apps, (8787, 8788), strict=True)
    )
    async with first, second:
        tokens = tuple(told)
        assert (await first.get("/", params={"token": tokens[0]})).status_code == 303
        second.cookies.update(first.cookies)  # as of one browser
        assert (await second.get("/", params={"token": tokens[1]})).status_code == 303
        first.cookies.update(second.cookies)
        assert [(await client.get("/")).status_code for client in (first, second)] == [200, 200]


async def test_several_queues_lead_to_each_other(queue: TaskQueue) -> None:
    async with TaskQueue("memory://other") as other:
        app = application([queue, other], lambda request: Visitor(name="ada"), prefix="/tasks")
        async with client_of(queue, app=app) as client:
            assert (await client.get("/tasks/")).headers["location"] == "/tasks/1/"
            assert 'href="/tasks/2/"' in (await client.get("/tasks/1/")).text
            assert "memory://other" in (await client.get("/tasks/2/")).text


async def test_it_can_be_mounted_in_an_application_that_checks_for_itself(queue: TaskQueue) -> None:
    from fastapi import FastAPI

    def staff(request: Request) -> Visitor | None:
        return Visitor(name=request.headers["x-user"], may=EVERYTHING) if "x-user" in request.headers else None

    app = FastAPI()
    app.mount("/admin/tasks", Dashboard(queue, access=staff))
    async with client_of(queue, app=app) as client:
        assert (await client.get("/admin/tasks/queues")).status_code == 403
        page = await client.get("/admin/tasks/queues", headers={"x-user": "ada"})
        assert 'href="/admin/tasks/schedules"' in page.text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sqlite:///x.db", "--auth", "none", "--http", "0.0.0.0:0"], "lets in all who reach 0.0.0.0"),
        (["sqlite:///x.db", "--auth", "oauth"], "'oauth' is none of token, basic:FILE, proxy:HEADER, none"),
        (["sqlite:///x.db", "--prefix", "tasks"], "'tasks' is no path such as /tasks"),
        (["memory://"], "lives inside one process"),
        ([], "APP|URL"),
    ],
)
def test_wrong_usage(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [one.replace("x.db", f"{tmp_path}/x.db") for one in arguments]
    assert main(["dashboard", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_what_is_missing_is_named() -> None:
    code = "import sys; sys.modules['starlette'] = None; sys.modules['jinja2'] = None\n"
    command = f"{code}from omniq.cli import main; sys.exit(main(['dashboard', 'sqlite:///x.db']))"
    ended = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "pip install 'omniq-core[dashboard]'" in ended.stderr
    assert "Traceback" not in ended.stderr
    command = f"{code}from omniq.dashboard import Dashboard"
    ended = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr.rstrip().endswith("pip install 'omniq-core[dashboard]'")
