"""The dashboard in a real browser: every page on every store, live, by keys, without JavaScript, and on a phone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.async_api import Error, Page, ViewportSize, expect

from omniq import Cron, Limit, TaskQueue, each
from omniq.dashboard import EVERYTHING
from omniq.dashboard.auth import Basic, Proxy
from omniq.dashboard.command import application
from omniq.storage import Lease
from omniq.task import Failed, Progress, TaskError
from tests.dashboard.browsing import PATIENCE, Site, World, missing, violations
from tests.dashboard.screenshots import take
from tests.dashboard.support import STORES, url_on

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(220)]

expect.set_options(timeout=PATIENCE)

EVIL = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>{{71843*93571}}\u202eevil"
PHONE: ViewportSize = {"width": 400, "height": 800}
DESKTOP: ViewportSize = {"width": 1280, "height": 720}
SEEN = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>{{71843*93571}}"


async def fill(queue: TaskQueue) -> dict[str, str]:
    """Put tasks in all states and hostile texts into all places; return the paths of pages to look at."""

    @queue.task(name=EVIL, queue="hostile")
    async def evil(*args: Any, **kwargs: Any) -> Any:
        return EVIL

    @queue.task(name="add")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    @queue.task(name="one")
    async def one(n: int) -> int:
        return n

    tagged = evil.using(tags=(EVIL,), unique=EVIL, headers={"request-id": EVIL})
    ended = await tagged.aenqueue(EVIL, {EVIL: [EVIL]}, **{"password": "hunter2", EVIL: EVIL})
    async with queue.worker(queues=["hostile"], recover_every=60):
        await ended
    running = await tagged.aenqueue(EVIL)
    storage = (await queue.connections.current()).storage
    (claimed,) = await storage.claim({"hostile": 1}, worker=EVIL, lease=600)
    await storage.set_progress({Lease(claimed.id, claimed.delivery): Progress(done=3, total=7, note=EVIL)})
    await storage.heartbeat(EVIL, [Lease(claimed.id, claimed.delivery)], 600)
    failed = await evil.using(queue="failing").aenqueue(EVIL)
    (claimed,) = await storage.claim({"failing": 1}, worker=EVIL, lease=600)
    error = TaskError(type=EVIL, message=f"{EVIL}\n{EVIL}", traceback=f"Traceback:\n  {EVIL}")
    await storage.finish([Failed(id=claimed.id, delivery=claimed.delivery, error=error)])
    await evil.using(queue="waiting", delay=timedelta(hours=3)).aenqueue(EVIL)
    waits = await evil.using(queue="waiting").aenqueue(EVIL)
    await queue.apause("waiting")
    await queue.aschedule(evil.call(EVIL), Cron("0 9 * * mon", tz="Europe/Berlin"), id=SEEN)
    if storage.limits.task_limits:
        await queue.aput_limit(Limit(name=SEEN, concurrency=1))
        await queue.aput_limit(Limit(queue="waiting", per_key=Limit(concurrency=1), weights={EVIL: 2}))
    paths = {"done": f"/task?id={ended.id}", "running": f"/task?id={running.id}", "failed": f"/task?id={failed.id}"}
    paths |= {"waiting": f"/task?id={waits.id}", "copy": f"/task/copy?id={failed.id}"}
    if storage.limits.flows:
        handle = await queue.aenqueue_flow(each(one, [1, 2, 3]).then(add))
        paths["flow"] = f"/flow?id={(await queue.arecord(handle.id)).flow}"
        paths["blocked"] = f"/task?id={handle.id}"
    if storage.limits.task_limits:
        paths |= {"limits": "/limits", "limit": "/limit?queue=waiting"}
        paths["named limit"] = f"/limit?{urlencode({'name': SEEN})}"
    for name in ("tasks", "queues", "functions", "workers", "schedules", "flows", "doctor"):
        paths[name] = f"/{name}"
    paths["overview"] = "/"
    paths["filtered"] = "/tasks?state=failed&state=running"
    paths["nothing"] = "/tasks?tag=nothing"
    paths["dry run"] = "/bulk/cancel?queue=waiting"
    return paths


@pytest.mark.parametrize("store", STORES)
@pytest.mark.timeout(460)
async def test_every_page_on_every_store(world: World, store: str, tmp_path: Path) -> None:
    """Hostile texts are texts, all of a page comes from its own server, and anyone can use it, on a phone, too."""
    with url_on(store, tmp_path) as url:
        async with TaskQueue(url) as queue, Site(world, queue) as site:
            page = await site.page(reduced_motion="reduce")  # colours change at once
            found: list[str] = []
            for name, path in (await fill(queue)).items():
                answer = await page.goto(f"{site.url}{path}")
                assert answer is not None
                assert answer.status == 200, path
                text = await page.locator("main").inner_text()
                if name not in ("doctor", "flow", "blocked", "flows", "queues", "limit", "nothing"):
                    assert SEEN in text or name == "overview", f"{name} shows texts as they are: {text}"
                assert str(71843 * 93571) not in text  # a template in a text would have been evaluated
                assert "hunter2" not in await page.content()
                assert "\u202e" not in text
                found += await missing(page) + await violations(page)
                await page.emulate_media(color_scheme="dark")
                found += await violations(page, "color-contrast")
                await page.emulate_media(color_scheme="light")
                await page.set_viewport_size(PHONE)
                width = await page.evaluate("document.scrollingElement.scrollWidth")
                assert width <= PHONE["width"], f"{path} is {width} pixels wide"
                await page.set_viewport_size(DESKTOP)
            assert found == []
            assert site.wrong == []


async def test_the_page_that_is_shown_is_in_view_in_the_navigation_of_a_phone(site: Site) -> None:
    page = await site.page("/doctor", viewport=PHONE)
    await expect(page.get_by_role("link", name="Doctor")).to_be_in_viewport(ratio=1)


async def test_an_empty_store_says_what_to_do_next(site: Site) -> None:
    page = await site.page("/")
    for path, told in (
        ("/", "No tasks yet"),
        ("/tasks", "The store holds no tasks"),
        ("/queues", "No queues yet"),
        ("/limits", "No limits yet"),
        ("/functions", "No functions are known"),
        ("/workers", "omniq worker shop.tasks:queue"),
        ("/schedules", "No schedules yet"),
        ("/flows", "No flows"),
        ("/nope", "There is no such page"),
    ):
        await page.goto(f"{site.url}{path}")
        await expect(page.locator("main")).to_contain_text(told)


async def test_a_page_is_live_and_stands_still_while_that_would_disturb(site: Site) -> None:
    @site.queue.task(name="job")
    async def job() -> None: ...

    first = await job.aenqueue()
    page = await site.page("/tasks")
    rows = page.locator("tbody tr")
    await expect(rows).to_have_count(1)
    await page.evaluate("document.querySelector('tbody tr').kept = true")
    await job.aenqueue()
    await expect(rows).to_have_count(2)
    assert await page.evaluate("document.querySelectorAll('tbody tr')[1].kept"), "a row that stays is the same one"
    await expect(page.locator(".live")).to_have_text("live")

    await page.locator(f"tbody input[value='{first.id}']").check()
    await expect(page.locator(".live")).to_have_text("paused")
    await job.aenqueue()
    await expect(rows).to_have_count(2)
    await page.locator(f"tbody input[value='{first.id}']").uncheck()
    await expect(rows).to_have_count(3)


async def test_buttons_do_what_they_say(site: Site) -> None:
    @site.queue.task(name="job")
    async def job(n: int) -> None: ...

    handle = await job.aenqueue(7)
    page = await site.page("/queues")
    await page.get_by_role("button", name="Pause default").click()
    await expect(page.locator(".said")).to_have_text("Queue default is paused.")
    await page.get_by_role("button", name="Resume default").click()
    await expect(page.locator(".said")).to_have_text("Queue default goes on.")

    await page.goto(f"{site.url}/task?id={handle.id}")
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.locator(".said")).to_contain_text("The task is cancelled")
    await page.get_by_role("button", name="Retry").click()
    await expect(page.locator(".said")).to_have_text("The task is ready again.")

    await page.get_by_role("link", name="Enqueue a copy").click()
    await page.get_by_label("Positional arguments").fill("[8")
    await page.get_by_role("button", name="Enqueue the copy").click()
    await expect(page.get_by_role("alert")).to_contain_text("this is no JSON")
    await page.get_by_label("Positional arguments").fill("[8]")
    await page.get_by_role("button", name="Enqueue the copy").click()
    await expect(page.locator(".said")).to_have_text("The copy is enqueued.")
    await expect(page.locator(".values")).to_contain_text("8")

    await page.locator("summary", has_text="Delete").click()
    await page.get_by_role("button", name="Delete").click()
    await expect(page.locator(".said")).to_have_text("The task is deleted.")
    (left,) = await site.queue.atasks()
    assert left.id == handle.id


async def test_limits_are_set_changed_and_deleted(site: Site) -> None:
    @site.queue.task(name="send", queue="mail")
    async def send() -> None: ...

    for key in ("a", "a", "b"):
        await send.using(key=key).aenqueue()
    page = await site.page("/queues")
    await page.get_by_role("link", name="Limit mail").click()
    await page.get_by_label("Tasks that run at a time", exact=True).fill("none")
    await page.get_by_role("button", name="Set the limit").click()
    await expect(page.get_by_role("alert")).to_contain_text("this is no number")
    await page.get_by_label("Tasks that run at a time", exact=True).fill("50")
    await page.get_by_label("Tasks that run at a time, of each key").fill("1")
    await page.get_by_role("button", name="Set the limit").click()
    await expect(page.locator("h1")).to_have_text("Queues")
    await expect(page.locator(".said")).to_contain_text("is set: 50 at a time, each key 1 at a time.")
    storage = (await site.queue.connections.current()).storage
    assert len(await storage.claim({"mail": 9}, worker="w", lease=600)) == 2
    row = page.locator("tr[data-key=mail]")
    await expect(row).to_contain_text("2/50")
    await expect(row).to_contain_text("1 key")

    await page.get_by_role("link", name="Limits").click()
    await page.get_by_role("link", name="Change mail").click()
    await page.get_by_label("Tasks that run at a time", exact=True).fill("60")
    await site.queue.aput_limit(Limit(queue="mail", concurrency=7))
    await page.get_by_role("button", name="Set the limit").click()
    await expect(page.get_by_role("alert")).to_contain_text("set or deleted meanwhile")
    await page.get_by_role("link", name="Show it as it is now").click()
    await expect(page.get_by_label("Tasks that run at a time", exact=True)).to_have_value("7")
    await page.get_by_role("link", name="Back").click()

    await page.get_by_role("link", name="New limit").click()
    await page.get_by_label("a name that tasks of all queues share").fill("stripe")
    await page.get_by_label("Tasks that start", exact=True).fill("100")
    await page.get_by_label("Seconds", exact=True).fill("60")
    await page.get_by_role("button", name="Set the limit").click()
    await expect(page.locator("tr[data-key='name:stripe']")).to_contain_text("100 in 60 s")
    await page.get_by_label("Delete mail").first.click()
    await page.get_by_role("button", name="Delete mail").click()
    await expect(page.locator(".said")).to_contain_text("The limit of queue mail is deleted.")
    assert [limit.id for limit in await site.queue.alimits()] == ["name:stripe"]


async def pause_everything(site: Site, **options: Any) -> Page:
    """Pause the queues on the page of a visitor, and return the page."""
    page = await site.page("/queues", **options)
    await page.get_by_role("button", name="Pause").first.click()
    await expect(page.locator("main")).to_contain_text("is paused")
    return page


async def test_a_browser_asks_for_name_and_password(world: World, queue: TaskQueue, tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    file.write_text("ada:s3cret\ngrace:pw:read\n")
    file.chmod(0o600)
    await fill(queue)
    async with Site(world, queue, application([queue], Basic(file, EVERYTHING), prefix="")) as site:
        stranger = await (await site.context()).new_page()
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):  # it asks, and nobody answers
            await stranger.goto(f"{site.url}/queues")
        page = await pause_everything(site, http_credentials={"username": "ada", "password": "s3cret"})
        await expect(page.locator("body")).to_contain_text("ada")
        reader = await site.page("/queues", http_credentials={"username": "grace", "password": "pw"})
        await expect(reader.locator("body")).to_contain_text("grace")
        await expect(reader.get_by_role("button", name="Pause")).to_have_count(0)
        assert site.wrong == []


async def test_a_proxy_tells_who_comes(world: World, queue: TaskQueue) -> None:
    await fill(queue)
    async with Site(world, queue, application([queue], Proxy("X-Forwarded-User", EVERYTHING), prefix="")) as site:
        page = await pause_everything(site, extra_http_headers={"x-forwarded-user": "ada"})
        await expect(page.locator("body")).to_contain_text("ada")
        stranger = await (await site.context()).new_page()
        answer = await stranger.goto(f"{site.url}/queues")
        assert answer is not None
        assert answer.status == 403
        assert site.wrong == []


async def test_many_tasks_at_once(site: Site) -> None:
    @site.queue.task(name="job")
    async def job(n: int) -> None: ...

    await site.queue.aenqueue_many([job.call(n) for n in range(1_203)])
    page = await site.page("/tasks?queue=default")
    for box in (0, 1, 2):
        await page.locator("tbody input").nth(box).check()
    await expect(page.locator("[data-chosen-count]")).to_have_text("3 chosen:")
    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.locator("h1")).to_have_text("Delete 3 tasks?")
    await page.get_by_role("button", name="Delete 3 tasks").click()
    await expect(page.locator("h1")).to_have_text("Delete: done")
    await page.get_by_role("link", name="Back to the tasks").click()

    await page.get_by_role("link", name="Cancel all…").click()
    await expect(page.locator("h1")).to_have_text("Cancel 1,200 tasks?")
    await job.aenqueue(1_204)
    await page.get_by_label("to confirm").fill("1,200")
    await page.get_by_role("button", name="Cancel 1,200 tasks").click()
    await expect(page.locator("h1")).to_have_text("Cancel: done")
    await expect(page.locator("[data-done]")).to_have_text("1,200")
    assert (await site.queue.acount_tasks(state="ready")).number == 1


async def test_it_can_be_used_by_keys(site: Site) -> None:
    @site.queue.task(name="job")
    async def job() -> None: ...

    handles = [await job.aenqueue() for _ in range(3)]
    page = await site.page("/")
    # Two keys belong together for a second and a half, which a busy machine may take to press them.
    await page.clock.set_fixed_time(datetime.now(UTC))
    await page.keyboard.press("g")
    await page.keyboard.press("t")
    await expect(page.locator("h1")).to_have_text("Tasks")
    await expect(page.locator(".live")).to_have_text("live")  # the script has begun: it hears keys
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await page.keyboard.press("/")
    await page.keyboard.type("default")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{site.url}/tasks?queue=default&name=&tag=&after=&before=")
    await expect(page.locator(".live")).to_have_text("live")
    await page.keyboard.press("j")
    await page.keyboard.press("j")
    await page.keyboard.press("x")
    await expect(page.locator("tbody input:checked")).to_have_value(handles[1].id)
    await page.keyboard.press("x")
    await page.locator("body").evaluate("() => document.activeElement.blur()")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{site.url}/task?id={handles[1].id}")


async def test_it_works_without_javascript(site: Site) -> None:
    @site.queue.task(name="job")
    async def job(n: int) -> None: ...

    await site.queue.aenqueue_many([job.call(n) for n in range(120)])
    page = await site.page("/tasks", java_script_enabled=False)
    await page.get_by_role("link", name="Older").click()
    await expect(page.locator("tbody tr")).to_have_count(50)
    await page.get_by_role("link", name="Older").click()
    await expect(page.locator("tbody tr")).to_have_count(20)
    await page.get_by_role("link", name="Newer").click()
    await page.get_by_role("link", name="Newer").click()
    await expect(page.get_by_role("link", name="Newer")).to_have_count(0)
    await page.get_by_role("link", name="Delete all…").click()
    await page.get_by_role("button", name="Delete 120 tasks").click()
    await expect(page.locator("h1")).to_have_text("Delete: done")
    assert (await site.queue.acount_tasks()).number == 0
    await page.goto(f"{site.url}/schedules")
    await expect(page.locator("main")).to_contain_text("No schedules yet")


@pytest.mark.long
async def test_pictures_for_the_documentation(world: World, tmp_path: Path) -> None:
    made = await take(world, tmp_path / "pictures", 3, ["phone"])
    assert {file.read_bytes()[:8] for file in made} == {b"\x89PNG\r\n\x1a\n"}
    assert {"overview-phone.png", "tasks-phone.png", "queues-phone.png"} <= {file.name for file in made}
