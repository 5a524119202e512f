"""Pictures of every page of the demo's shop in the dashboard: light, dark, and on a phone; see `make screenshots`."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from omniq import TaskQueue
from omniq.dashboard.demo import Shop
from omniq.task import TaskState
from tests.dashboard.browsing import Site, World

__all__ = ["take"]

DEVICES: Mapping[str, Mapping[str, object]] = {
    "light": {"viewport": {"width": 1280, "height": 800}},
    "dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 400, "height": 800}},
}


async def take(world: World, folder: Path, life: float, devices: Iterable[str] = DEVICES) -> list[Path]:
    """Take the pictures.

    :param folder: where they go; playwright makes it.
    :param life: seconds that the shop has been open before.
    :param devices: some of :data:`DEVICES`.
    :return: the files.
    """
    made: list[Path] = []
    async with TaskQueue("memory://shop") as queue:
        shop = Shop(queue)
        async with shop.life(), Site(world, queue) as site:
            waiting = asyncio.create_task(asyncio.sleep(life))  # how long the shop is shown at work
            while not waiting.done():
                await site.dashboard.looks.latest()  # as an open page does
                await asyncio.wait([waiting], timeout=1)
            for device in devices:
                page = await site.page("/", **DEVICES[device])
                for name, path in (await _paths(queue)).items():
                    await page.goto(f"{site.url}{path}")
                    made.append(folder / f"{name}-{device}.png")
                    await page.screenshot(path=made[-1], full_page=device == "phone")
        assert site.wrong == []
    return made


_PAGES = ("tasks", "queues", "limits", "functions", "workers", "schedules", "flows", "doctor")


async def _paths(queue: TaskQueue) -> dict[str, str]:
    paths = {name: f"/{name}" for name in _PAGES}
    paths |= {"overview": "/", "failed": "/tasks?state=failed", "dry-run": "/bulk/cancel?queue=newsletter"}
    for state in (TaskState.FAILED, TaskState.RUNNING, TaskState.SCHEDULED, TaskState.READY):
        for task in await queue.atasks(state=state, limit=1):
            paths[f"task-{state}"] = f"/task?id={task.id}"
            paths["copy"] = f"/task/copy?id={task.id}"
    for task in await queue.atasks(queue="reports", limit=50):
        if task.flow is not None:
            paths["flow"] = f"/flow?id={task.flow}"
            paths["task-of-a-flow"] = f"/task?id={task.id}"
            break
    return paths


def main() -> None:
    """Take them, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--life", type=float, default=90.0, help="seconds that the shop has been open (default 90)")
    options = parser.parse_args()
    logging.getLogger("omniq").setLevel(logging.CRITICAL)  # tasks fail here on purpose
    with World() as world:
        made = world.do(take(world, options.folder, options.life), seconds=options.life + 600)
    print(f"{len(made)} pictures are in {options.folder}")


if __name__ == "__main__":
    main()
