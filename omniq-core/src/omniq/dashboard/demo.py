"""``omniq demo --dashboard``: an invented shop with work of all kinds, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

from omniq._client.queue import TaskQueue
from omniq._tasks.context import current_task
from omniq._tasks.functions import TaskCall
from omniq._tasks.groups import each
from omniq.cli.terminal import Screen
from omniq.dashboard.access import EVERYTHING
from omniq.dashboard.command import listener_at, require_extra, serve, shown_address, with_token
from omniq.limit import Limit, Rate
from omniq.retry import Exponential
from omniq.storage.ids import new_id
from omniq.triggers import Cron, Every

__all__ = ["Shop", "run"]

KEPT = timedelta(minutes=30)
EVERY = 0.35
"""Seconds between two customers, about."""
FLOW_EVERY = 40
"""Customers between two flows."""


class Shop:
    """The tasks of the shop, on a queue.

    :param queue: any.
    """

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self.holds_limits = False
        retry = Exponential(delay=2, factor=3, max_delay=120)
        task = queue.task

        @task(name="send_receipt", queue="mail", result_ttl=KEPT, retry=retry)
        async def send_receipt(order: int, to: str, smtp_password: str = "hunter2") -> str:
            await asyncio.sleep(random.uniform(0.05, 0.6))
            if random.random() < 0.06:
                raise ConnectionError("mail.example.org refused the connection")
            return f"250 queued as {order:x}"

        @task(name="make_thumbnail", queue="images", result_ttl=KEPT)
        async def make_thumbnail(image: str, width: int = 320) -> dict[str, object]:
            await asyncio.sleep(random.uniform(0.2, 2.5))
            return {"image": image, "width": width, "bytes": random.randrange(4_000, 90_000)}

        @task(name="charge_card", queue="billing", max_retries=2, retry=retry, result_ttl=KEPT)
        async def charge_card(order: int, amount: str, card: dict[str, str]) -> str:
            await asyncio.sleep(random.uniform(0.1, 1.2))
            if random.random() < 0.3:
                raise TimeoutError(f"the bank did not answer for order {order}")
            return f"paid {amount}"

        @task(name="import_catalogue", queue="imports", max_retries=0, result_ttl=KEPT)
        async def import_catalogue(supplier: str, rows: int) -> int:
            for row in range(0, rows, 50):
                current_task().progress(row, rows, f"row {row:,} of {supplier}")
                await asyncio.sleep(0.4)
            if supplier == "Brass & Sons":
                raise ValueError("row 851: 'price' is not a number: '12,5O'")
            return rows

        @task(name="export_books", queue="exports")
        async def export_books(month: str) -> None:
            """Has no worker: a queue that needs attention."""

        @task(name="send_newsletter", queue="newsletter")
        async def send_newsletter(issue: int, to: str) -> None:
            """Waits in a queue that is paused."""

        @task(name="count_sales", queue="reports", result_ttl=KEPT, max_retries=0)
        async def count_sales(region: str) -> int:
            await asyncio.sleep(random.uniform(0.5, 6))
            if random.random() < 0.04:
                raise LookupError(f"no figures from {region}")
            return random.randrange(100, 9_000)

        @task(name="add_up", queue="reports", result_ttl=KEPT)
        async def add_up(counts: list[int]) -> int:
            await asyncio.sleep(1.5)
            return sum(counts)

        @task(name="draw_charts", queue="reports", result_ttl=KEPT)
        async def draw_charts(total: int) -> str:
            await asyncio.sleep(2.5)
            return f"charts-{total}.svg"

        @task(name="mail_report", queue="mail", result_ttl=KEPT)
        async def mail_report(total: int, charts: str) -> str:
            await asyncio.sleep(0.4)
            return f"sent {charts} ({total:,})"

        @task(name="sweep_baskets", queue="default", result_ttl=KEPT)
        async def sweep_baskets() -> int:
            await asyncio.sleep(0.2)
            return random.randrange(40)

        self.send_receipt = send_receipt
        self.make_thumbnail = make_thumbnail
        self.charge_card = charge_card
        self.import_catalogue = import_catalogue
        self.export_books = export_books
        self.send_newsletter = send_newsletter
        self.sweep_baskets = sweep_baskets

        def report() -> TaskCall[str]:
            regions = ("north", "east", "south", "west", "online", "abroad")
            total = each(count_sales, regions).then(add_up)
            return mail_report.call(total.output, draw_charts.call(total.output).output)

        self.report: Callable[[], TaskCall[str]] = report

    async def open(self) -> None:
        """Store the schedules and limits, and what waits from the beginning."""
        queue = self.queue
        self.holds_limits = (await queue.connections.current()).storage.limits.task_limits
        if self.holds_limits:
            await queue.aput_limit(Limit(queue="images", concurrency=4, per_key=Limit(concurrency=1)))
            await queue.aput_limit(Limit(name="bank", rate=Rate(5)))
        await queue.aschedule(self.sweep_baskets.call(), Every(15), id="sweep-baskets")
        await queue.aschedule(self.export_books.call("last"), Cron("0 6 1 * *", tz="Europe/Berlin"), id="export-books")
        weekly = Cron("0 9 * * mon", tz="Europe/Berlin")
        await queue.aschedule(self.send_newsletter.call(43, "everybody"), weekly, id="newsletter")
        await queue.apause_schedule("newsletter")
        await queue.apause("newsletter")
        await queue.aenqueue_many([self.send_newsletter.call(42, f"reader{n}@example.org") for n in range(240)])
        await queue.aenqueue_many([self.export_books.call(month) for month in ("2030-01", "2030-02", "2030-03")])
        suppliers = ("Tin Works", "Brass & Sons", "Glass House")
        await queue.aenqueue_many([self.import_catalogue.call(name, 6000) for name in suppliers])

    async def customers(self) -> None:
        """Enqueue what customers order, one after the other, without end."""
        order = 4000
        while True:
            order += 1
            name = random.choice(("ada", "grace", "edsger", "barbara", "donald", "frances"))
            limit, key = ("bank", name) if self.holds_limits else (None, None)
            card = {"number": "4111 1111 1111 1111", "cvc": "123", "holder": name.title()}
            await self.charge_card.using(tags=(name,), priority=5, limit=limit).aenqueue(
                order, f"{order % 90 + 9}.90 EUR", card=card
            )
            await self.send_receipt.using(headers={"request-id": new_id()}).aenqueue(order, f"{name}@example.org")
            if order % 3 == 0:
                thumbnail = self.make_thumbnail.using(key=key)
                await thumbnail.aenqueue(f"orders/{order}.png", width=random.choice((160, 320, 640)))
            if order % 25 == 0:
                delayed = self.send_receipt.using(delay=timedelta(minutes=random.randrange(5, 90)))
                await delayed.aenqueue(order, f"{name}@example.org")
            if order % FLOW_EVERY == 1 and (await self.queue.connections.current()).storage.limits.flows:
                await self.queue.aenqueue_flow(self.report())
            if order % 300 == 0:
                await self.import_catalogue.aenqueue(random.choice(("Tin Works", "Brass & Sons")), 6000)
            await asyncio.sleep(random.expovariate(1 / EVERY))

    @contextlib.asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """Have the shop open, with two workers, for as long as the block takes."""
        await self.open()
        quick = self.queue.worker(queues=["billing", "mail", "default"], concurrency=20, labels={"zone": "a"}, grace=1)
        slow = self.queue.worker(queues={"images": 3, "reports": 2, "imports": 1}, concurrency=8, grace=1)
        async with quick, slow, asyncio.TaskGroup() as group:
            coming = group.create_task(self.customers())
            yield
            coming.cancel()


def run(options: argparse.Namespace) -> int:
    """Serve the dashboard of the shop until Ctrl-C."""
    require_extra()
    screen = Screen()
    queue = TaskQueue(options.url or "memory://shop")
    shop = Shop(queue)
    logging.getLogger("omniq").setLevel(logging.CRITICAL)  # tasks fail here on purpose
    with contextlib.closing(listener_at(options.http)) as listener:
        access = with_token(f"http://{shown_address(listener)}/", EVERYTHING, screen)
        screen.say("an invented shop is open until you press Ctrl-C")
        serve([queue], listener, access, around=shop.life)
    return 0
