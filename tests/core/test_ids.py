from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from types import SimpleNamespace

import pytest

from omniq.storage import ids
from omniq.storage.ids import new_id

COUNT = 5_000


def some_ids(count: int = COUNT) -> list[str]:
    return [new_id() for _ in range(count)]


def test_an_id_is_the_text_of_a_uuid_of_version_7() -> None:
    for text in some_ids(1000):
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert parsed.version == 7
        assert parsed.variant == uuid.RFC_4122


def test_an_id_tells_when_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    milliseconds = uuid.UUID(new_id()).int >> 80
    after = time.time_ns() // 1_000_000

    # Earlier tests may have driven the counter a little ahead of the clock.
    assert before <= milliseconds <= after + 100


def test_ids_sort_by_the_order_in_which_they_were_made() -> None:
    made = some_ids()

    assert made == sorted(made)
    assert len(set(made)) == COUNT


def test_ids_go_on_rising_while_the_clock_stands_still_or_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    earliest = new_id()
    start = time.time_ns()
    readings = iter([start] * 5_000 + [start - 3_600 * 10**9] * 5_000)
    monkeypatch.setattr("omniq.storage.ids.time", SimpleNamespace(time_ns=lambda: next(readings)))

    made = [earliest, *some_ids(10_000)]

    assert all(earlier < later for earlier, later in pairwise(made))
    assert {uuid.UUID(text).version for text in made} == {7}


def test_ids_of_many_threads_are_unique_and_rise_in_each() -> None:
    together = threading.Barrier(4)

    def make() -> list[str]:
        together.wait(timeout=30)
        return some_ids()

    with ThreadPoolExecutor(4) as pool:
        made = [future.result() for future in [pool.submit(make) for _ in range(4)]]

    assert all(one == sorted(one) for one in made)
    # The time in them tells them apart, not only the random part.
    assert len({uuid.UUID(text).int >> 64 for one in made for text in one}) == 4 * COUNT


def test_ids_of_forked_processes_are_unique() -> None:
    some_ids(10)
    with get_context("fork").Pool(2) as pool:
        made = [*pool.map(some_ids, [COUNT, COUNT]), some_ids()]

    assert len({text for one in made for text in one}) == 3 * COUNT


def test_a_forked_process_draws_random_parts_of_its_own() -> None:
    new_id()
    with get_context("fork").Pool(1) as pool:
        (theirs,) = pool.map(some_ids, [100])
    ours = some_ids(100)

    assert not {text[-12:] for text in theirs} & {text[-12:] for text in ours}


def test_a_child_forked_while_another_thread_makes_an_id_can_make_its_own() -> None:
    reader, writer = os.pipe()
    with ids._lock:
        child = os.fork()
        if child == 0:
            # The child must end here, whatever happens, and by itself if it waits for a lock that nobody will free.
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(30)
                os.write(writer, new_id().encode())
            finally:
                os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)

    assert uuid.UUID(text).version == 7
