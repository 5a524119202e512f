"""What a worker and an exporter answer over HTTP: metrics, probes, and numbers for autoscalers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from omniq import TaskFailed, TaskQueue
from omniq.cli.app import load_queue
from omniq.testing import wait_until
from tests.cli.program import Program, run_omniq
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer, binary_of

LABELS = ("queue", "function", "outcome", "state", "le")
ANYWHERE = ("--http", "127.0.0.1:0")


@pytest.fixture
def shop(folder: Path) -> TaskQueue:
    """Return the application, imported here as well, to enqueue."""
    return load_queue("shop:queue")


def url_of(program: Program) -> str:
    said = program.says(" answers /metrics")
    found = re.search(r"(http://\S+) answers /metrics", said)
    assert found is not None
    return found[1]


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(url: str) -> dict[tuple[str, ...], float]:
    """Return what a scraper reads: name and values of the labels → value."""
    status, text = get(f"{url}/metrics")
    assert status == 200, text
    return {
        (sample.name, *(sample.labels[label] for label in LABELS if label in sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def count(url: str, name: str, *labels: str) -> float:
    return samples(url).get((name, *labels), 0.0)


def test_a_worker_counts_how_its_tasks_came_and_ended(shop: TaskQueue, start: Callable[..., Program]) -> None:
    with shop:
        worker = start("worker", "shop:queue", *ANYWHERE)
        url = url_of(worker)
        for number in range(3):
            assert shop.functions["shop.add"].enqueue(number, 1).result(60) == number + 1
        with pytest.raises(TaskFailed):
            shop.functions["shop.burn"].enqueue("gone").result(60)
        wait_until(lambda: count(url, "omniq_tasks_ended_total", "default", "shop.burn", "failed"))

        read = samples(url)
        assert read["omniq_tasks_started_total", "default", "shop.add"] == 3
        assert read["omniq_tasks_ended_total", "default", "shop.add", "succeeded"] == 3
        assert read["omniq_tasks_ended_total", "default", "shop.add", "failed"] == 0
        assert read["omniq_tasks_ended_total", "default", "shop.burn", "failed"] == 1
        for kind in ("run", "wait"):
            assert read[f"omniq_task_{kind}_seconds_count", "default", "shop.add"] == 3
            assert read[f"omniq_task_{kind}_seconds_bucket", "default", "shop.add", "3600.0"] == 3
        assert get(f"{url}/livez") == (200, "ok\n")
        wait_until(lambda: get(f"{url}/readyz") == (200, "ok\n"))
        status, text = get(f"{url}/nowhere")
        assert (status, text) == (404, "there is nothing here; there is /metrics, /livez, /readyz\n")
        assert worker.stop(signal.SIGTERM) == 0


def test_a_worker_that_stops_is_alive_and_not_ready(shop: TaskQueue, start: Callable[..., Program]) -> None:
    with shop:
        worker = start("worker", "shop:queue", *ANYWHERE)
        url = url_of(worker)
        running = shop.functions["shop.sleep"].enqueue(600)
        wait_until(lambda: running.task().state == "running")
        wait_until(lambda: get(f"{url}/readyz")[0] == 200)
        worker.process.send_signal(signal.SIGTERM)

        wait_until(lambda: get(f"{url}/readyz") == (503, "it is stopping\n"))
        assert get(f"{url}/livez")[0] == 200
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(60) == 0


def test_in_an_outage_of_the_store_a_worker_is_alive_and_not_ready_until_it_is_over(
    folder: Path, start: Callable[..., Program]
) -> None:
    with RedisServer(folder, binary=binary_of("redis")) as server, Proxy(server.port) as proxy:
        (folder / "far.py").write_text(
            f"from omniq import TaskQueue\nqueue = TaskQueue('redis://127.0.0.1:{proxy.port}/0')\n"
        )
        worker = start("worker", "far:queue", "--lease", "3", *ANYWHERE)
        url = url_of(worker)
        wait_until(lambda: get(f"{url}/readyz") == (200, "ok\n"))

        proxy.reset()
        wait_until(lambda: get(f"{url}/readyz")[0] == 503)
        status, reason = get(f"{url}/readyz")
        assert re.fullmatch(r"no heartbeat has got through to the store for \d+ s\n", reason), (status, reason)
        assert get(f"{url}/livez") == (200, "ok\n")

        proxy.pass_on()
        wait_until(lambda: get(f"{url}/readyz") == (200, "ok\n"), timeout=60)
        worker.stop()


def test_a_parent_adds_up_its_processes_those_that_were_killed_included(
    shop: TaskQueue, start: Callable[..., Program]
) -> None:
    with shop:
        parent = start("worker", "shop:queue", "--processes", "3", *ANYWHERE)
        url = url_of(parent)
        wait_until(lambda: get(f"{url}/readyz") == (200, "ok\n"), timeout=60)
        whoami, ran = shop.functions["shop.whoami"], 0
        pids: set[int] = set()

        def all_have_worked() -> bool:
            nonlocal ran
            handles = [whoami.enqueue() for _ in range(30)]
            pids.update(handle.result(60) for handle in handles)
            ran += len(handles)
            return len(pids) == 3

        def counted() -> float:
            return count(url, "omniq_tasks_ended_total", "default", "shop.whoami", "succeeded")

        wait_until(all_have_worked, timeout=60)
        wait_until(lambda: counted() == ran)
        assert count(url, "omniq_worker_processes") == 3

        os.kill(next(iter(pids)), signal.SIGKILL)
        parent.says("was killed by SIGKILL")
        assert counted() == ran
        wait_until(lambda: count(url, "omniq_worker_processes") == 3 and get(f"{url}/readyz")[0] == 200, timeout=60)
        whoami.enqueue().result(60)
        wait_until(lambda: counted() == ran + 1)
        assert parent.stop(signal.SIGTERM) == 0


def test_an_exporter_shows_the_store_and_what_an_autoscaler_needs(
    shop: TaskQueue, start: Callable[..., Program]
) -> None:
    with shop:
        shop.functions["shop.sleep"].enqueue(0)
        shop.functions["shop.add"].using(delay=10).enqueue(1, 2)
        shop.functions["shop.add"].using(delay=10_000).enqueue(1, 2)
        shop.pause("slow")
        exporter = start("exporter", "shop:queue", *ANYWHERE)
        url = url_of(exporter)

        read = samples(url)
        assert read["omniq_store_up",] == 1
        assert read["omniq_tasks", "slow", "ready"] == 1
        assert read["omniq_tasks", "default", "scheduled"] == 2
        assert read["omniq_oldest_ready_seconds", "slow"] > 0
        assert (read["omniq_queue_paused", "slow"], read["omniq_queue_paused", "default"]) == (1, 0)
        assert read["omniq_workers",] == 0

        def scale(query: str = "") -> dict[str, Any]:
            numbers: dict[str, Any] = json.loads(get(f"{url}/scale{query}")[1])
            return numbers

        both = scale()
        assert (both["queues"], both["ready"], both["running"], both["due_soon"]) == (["default", "slow"], 1, 0, 1)
        assert (both["workers"], both["slots"], both["load"]) == (0, 0, None)
        assert scale("?queue=default")["ready"] == 0

        start_worker = start("worker", "shop:queue", "-q", "slow", "-c", "4")
        wait_until(lambda: scale("?queue=slow")["workers"] == 1)
        assert scale("?queue=slow")["load"] == 0.25
        assert scale("?queue=default")["workers"] == 0
        assert get(f"{url}/readyz")[0] == 200
        start_worker.stop()
        assert exporter.stop(signal.SIGTERM) == 0


def test_an_address_that_is_taken_or_none_is_wrong_usage(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_omniq("exporter", "shop:queue", "--http", place, cwd=folder)
        assert (done.returncode, f"cannot listen on {place}: Address already in use" in done.stderr) == (2, True)

    done = run_omniq("worker", "shop:queue", "--http", "9090", cwd=folder)
    assert done.returncode == 2
    assert "'9090' is not HOST:PORT, such as 127.0.0.1:9090 or [::1]:9090" in done.stderr
