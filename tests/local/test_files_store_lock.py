from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from omniq.storage.urls import parse_url
from omniq_local.files.settings import read_settings
from omniq_local.files.store_lock import StoreLock


def opened(folder: Path) -> StoreLock:
    settings = read_settings(parse_url(f"file://{folder}"))
    os.makedirs(settings.base, exist_ok=True)
    lock = StoreLock(settings)
    lock.open(os.open(f"{settings.base}/lock", os.O_RDWR | os.O_CREAT, 0o600))
    return lock


def test_one_who_asks_without_a_pause_does_not_keep_another_store_of_its_process_out(tmp_path: Path) -> None:
    eager, patient = opened(tmp_path), opened(tmp_path)
    is_in = threading.Event()

    def wait() -> None:
        patient.enter(time.monotonic())
        is_in.set()
        patient.leave()

    thread = threading.Thread(target=wait)
    eager.enter(time.monotonic())
    thread.start()
    while eager.waiting == 0:
        time.sleep(0.001)
    eager.leave()
    if eager.try_enter():
        was_in = is_in.is_set()
        eager.leave()
        assert was_in
    assert is_in.wait(10)
    thread.join()
    for lock in (eager, patient):
        lock.close()


def test_a_thread_that_is_in_keeps_the_other_stores_of_its_process_out(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    one.enter(time.monotonic())
    assert not other.try_enter()
    one.leave()
    assert other.try_enter()
    other.leave()
    for lock in (one, other):
        lock.close()
