"""The example of a project of Django, docs/examples/django-shop: a real web server, a real worker, on two databases."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import frozen

from tests.docs.shops import EXAMPLES, TIME, client_of, environment, started
from tests.fork_server import run
from tests.servers.postgres import PostgresServer

pytestmark = [
    pytest.mark.xdist_group("django-shop"),  # one server for all of them
    pytest.mark.timeout(600),  # the first waits for all that they share: migrations, a web server, a worker
]

PASSWORD = "a password for the tests"  # it opens nothing else


@frozen
class Shop:
    """The shop that is open."""

    client: httpx.Client
    environ: dict[str, str]

    def manage(self, *words: str, **more: str) -> str:
        return manage(self.environ | more, *words)

    def order(self, article: str) -> dict[str, Any]:
        answer = self.client.post("/orders/", params={"article": article})
        assert answer.status_code == 202, answer.text
        taken: dict[str, Any] = answer.json()
        return taken

    def signed_in(self, name: str) -> httpx.Client:
        """Return a client that has signed in to the admin, as a browser does."""
        client = httpx.Client(base_url=self.client.base_url, timeout=TIME, follow_redirects=True)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', client.get("/admin/login/").text)
        assert token is not None
        form = {"csrfmiddlewaretoken": token[1], "username": name, "password": PASSWORD, "next": "/admin/"}
        assert client.post("/admin/login/", data=form, headers={"Referer": str(client.base_url)}).status_code == 200
        return client


def manage(environ: dict[str, str], *words: str) -> str:
    done = run(
        [sys.executable, EXAMPLES / "django-shop" / "manage.py", *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=TIME,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed: str = done.stdout
    return printed


USERS = f"""
from django.contrib.auth.models import Permission, User
for name, permissions in {{"ada": ["view", "change"], "bob": ["view"], "eve": []}}.items():
    user = User.objects.create_user(name, password={PASSWORD!r}, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=[f"{{one}}_dashboard" for one in permissions]))
"""


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    if request.param == "sqlite":
        yield from opened(folder)
    else:
        with PostgresServer(tmp_path_factory.mktemp("server")) as server:
            yield from opened(folder, SHOP_DATABASE=server.url)


def opened(folder: Path, **database: str) -> Iterator[Shop]:
    environ = environment("django-shop", SHOP_FOLDER=str(folder), **database)
    manage(environ, "migrate", "--verbosity", "0")
    manage(environ, "shell", "-c", USERS)
    words = ["uvicorn", "shop.asgi:application", "--port", "0", "--lifespan", "off"]
    with started(folder, "server", environ, words) as server, client_of(server, folder / "server.log") as client:
        yield Shop(client, environ)


def test_an_order_and_its_task_exist_both_or_neither_and_are_carried_out(shop: Shop) -> None:
    taken = shop.order("book")
    refused = shop.order("refused")
    assert shop.client.get(f"/orders/{taken['order']}/").json()["state"] == "new"
    assert shop.client.get(f"/orders/{refused['order']}/").status_code == 404

    shop.manage("omniq", "worker", "--drain")

    assert shop.client.get(f"/orders/{taken['order']}/").json() == {
        "article": "book",
        "state": "carried out",
        "receipts": 1,
    }
    listed = shop.manage("omniq", "tasks", "list")
    assert listed.count("succeeded") == 2
    assert refused["task"][-12:] not in listed


def test_the_dashboard_is_in_the_admin_for_staff_with_a_permission(shop: Shop) -> None:
    shop.order("seen in the admin")
    assert shop.client.get("/admin/omniq/dashboard/").headers["location"].startswith("/admin/login/")
    index, page = "/admin/", "/admin/omniq/dashboard/tasks"
    with closing(shop.signed_in("eve")) as eve:
        assert "/admin/omniq/dashboard/" not in eve.get(index).text
        assert eve.get(page).status_code == 403
    with closing(shop.signed_in("bob")) as bob:
        assert "/admin/omniq/dashboard/" in bob.get(index).text
        tasks = bob.get(page)
        assert tasks.status_code == 200
        assert "orders.tasks.carry_out" in tasks.text
        style = re.search(r'href="([^"]+\.css[^"]*)"', tasks.text)
        assert style is not None
        assert bob.get(style[1]).headers["content-type"].startswith("text/css")


def test_only_who_may_change_something_does(shop: Shop) -> None:
    shop.order("in a queue that can be paused")
    shop.order("of a queue that is paused")
    for name, status in (("bob", 403), ("ada", 200)):
        with closing(shop.signed_in(name)) as client:
            page = client.get("/admin/omniq/dashboard/queues").text
            form = re.search(r'<form[^>]*action="([^"]*pause[^"]*)"[^>]*>(.*?)</form>', page, re.DOTALL)
            if status == 403:
                assert form is None
                continue
            assert form is not None
            fields = dict(re.findall(r'name="(\w+)"\s+value="([^"]*)"', form[2]))
            origin = str(client.base_url).rstrip("/")
            answer = client.post(form[1], data=fields, headers={"Origin": origin, "Sec-Fetch-Site": "same-origin"})
            assert answer.status_code == status, answer.text
    assert "paused" in shop.manage("omniq", "stats")
