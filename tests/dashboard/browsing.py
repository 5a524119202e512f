"""Chromium, and dashboards that it looks at: on one event loop, in a thread of its own, for all tests."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from importlib import resources
from typing import Any, Self, TypeVar

import pytest
import uvicorn
from playwright.async_api import Browser, BrowserContext, Page, Route, async_playwright

from omniq import TaskQueue
from omniq.dashboard import EVERYTHING, Dashboard, Visitor
from omniq.dashboard.command import listener_at, shown_address
from tests.servers.base import HOST, find_binary

__all__ = ["Site", "World", "chromium", "missing", "violations"]

T = TypeVar("T")

PATIENCE = 90_000
"""Milliseconds that a page may take on a busy machine."""


def chromium() -> str:
    """Return the path of the browser. Without one a test is skipped, and fails in CI."""
    found = find_binary(["chromium", "chromium-browser", "google-chrome"])
    if found is not None:
        return str(found)
    missing = "there is no chromium on the path; on Debian: apt-get install chromium"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)  # on a laptop without the browser


class World:
    """The event loop and its browser."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="browsing", daemon=True)
        self._stack = AsyncExitStack()
        self._browser: Browser | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._stack.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def do(self, work: Awaitable[T], seconds: float = 450) -> T:
        """Do something on the loop, and wait for it."""

        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(timeout=seconds)

    async def browser(self) -> Browser:
        """Return the browser, which is started once."""
        if self._browser is None:
            playwright = await self._stack.enter_async_context(async_playwright())
            # Tests may run as root, and in containers with a small /dev/shm. Without a GPU one is imitated, which costs
            # more than to draw without.
            options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
            self._browser = await playwright.chromium.launch(executable_path=chromium(), args=options)
            self._stack.push_async_callback(self._browser.close)
        return self._browser


class Site:
    """A dashboard that is served, and what its pages must not do.

    :param world: where.
    :param queue: whose.
    :param app: what is served instead of a dashboard that lets everybody do everything.
    """

    def __init__(self, world: World, queue: TaskQueue, app: Any = None) -> None:
        self.queue = queue
        self.dashboard = Dashboard(queue, access=lambda request: Visitor(name="ada", may=EVERYTHING), hosts=())
        self._app = app or self.dashboard
        self.wrong: list[str] = []
        """What pages did that they must not: dialogs, errors, requests to elsewhere, violations of the policy."""
        self._world = world
        self._stack = AsyncExitStack()
        self.url = ""

    async def __aenter__(self) -> Self:
        listener = listener_at((HOST, 0))
        options: Any = {"log_config": None, "lifespan": "off", "ws": "none", "http": "h11"}
        server = uvicorn.Server(uvicorn.Config(self._app, **options))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            assert not serving.done(), "the server did not start"
            await asyncio.sleep(0.01)  # nothing tells of it

        async def stop() -> None:
            server.should_exit = True
            await serving

        self._stack.push_async_callback(stop)
        self.url = f"http://{shown_address(listener)}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def context(self, **options: Any) -> BrowserContext:
        """Return a browser of its own, which reaches nothing but this site."""
        context = await (await self._world.browser()).new_context(**options)
        context.set_default_timeout(PATIENCE)
        self._stack.push_async_callback(context.close)

        async def guard(route: Route) -> None:
            if route.request.url.startswith((self.url, "data:")):
                await route.continue_()
            else:
                self.wrong.append(f"a request to {route.request.url}")
                await route.abort()

        await context.route("**/*", guard)
        context.on("page", self._watch)
        return context

    async def page(self, path: str = "/", **options: Any) -> Page:
        """Return a page that was opened."""
        page = await (await self.context(**options)).new_page()
        await page.goto(f"{self.url}{path}")
        return page

    def _watch(self, page: Page) -> None:
        async def dismissed(dialog: Any) -> None:
            self.wrong.append(f"a dialog on {page.url}: {dialog.message}")
            await dialog.dismiss()

        def logged(message: Any) -> None:
            if message.type == "error" and "the server responded with a status of" not in message.text:
                self.wrong.append(f"on {page.url}: {message.text}")

        page.on("dialog", dismissed)
        page.on("console", logged)
        page.on("pageerror", lambda error: self.wrong.append(f"an error on {page.url}: {error}"))


_MISSING = """() => {
  const came = new Set(performance.getEntriesByType("resource").filter((one) => one.responseStatus === 200)
    .map((one) => one.name));
  const asked = [...document.querySelectorAll("script[src], link[href], img[src]")].map((one) => one.src || one.href);
  const sheets = [...document.styleSheets].filter((one) => one.cssRules.length === 0).map((one) => one.href);
  const pictures = [...document.images].filter((one) => one.naturalWidth === 0).map((one) => one.src);
  return [...asked.filter((one) => !came.has(one)), ...sheets, ...pictures];
}"""


async def missing(page: Page) -> list[str]:
    """Return what a page is made of and did not come."""
    await page.wait_for_load_state("load")
    return [f"{page.url}: {one}" for one in await page.evaluate(_MISSING)]


_AXE = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


async def violations(page: Page, *rules: str) -> list[str]:
    """Return what axe-core finds on a page.

    :param rules: only these; none: all that stand for WCAG 2.2 AA, and good practice.
    """
    if await page.evaluate("typeof axe === 'undefined'"):
        await page.evaluate(_AXE)
    options = {"runOnly": list(rules) or _RULES, "resultTypes": ["violations"], "preload": False}
    found = await page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{page.url}: {one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes'][:3]]}"
        for one in found["violations"]
    ]
