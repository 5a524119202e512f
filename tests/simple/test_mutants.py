"""What the conformance kit notices: stores with one fault each, and the test of the kit that fails on it.

All are the store of the documentation's page, broken by a subclass or a patch, and run in one process of pytest.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

MUTANTS = """
    import contextlib
    import sqlite3
    from collections import Counter
    from datetime import timedelta

    import pytest

    from omniq.errors import StorageUnavailable
    from omniq.storage import Capability, SimpleStorage, SqlTx, StorageLimits, states, transitions
    from omniq.storage.simple import waiting
    from omniq.testing import StorageContract
    from omniq.testing.contract import stalling
    from omniq.testing.contract.stalling import StallContract
    from omniq_mystore.storage import MyStorage, MyTx
    from tests.simple.test_conformance import TestSqlTx as Sound, TestSqlTxThatIsLocked as Locked

    kept = []


    class Mutant(Sound):
        patience = 15.0

        @pytest.fixture(autouse=True)
        def mutation(self, monkeypatch):
            self.mutate(monkeypatch.setattr)


    class TestRawErrors(Locked):
        __test__ = True

        @pytest.fixture(autouse=True)
        def mutation(self, monkeypatch):
            monkeypatch.setattr(MyStorage, "fault", lambda self, error: None)


    class TestNotFreeInTime(Locked, StallContract):
        @pytest.fixture(autouse=True)
        def mutation(self, monkeypatch):
            monkeypatch.setattr(MyStorage, "limits", StorageLimits(stalled_client=0.1, flows=True))
            monkeypatch.setattr(stalling, "STALLS", 60)


    class TestNoSync(Mutant):
        def mutate(self, patch):
            connect = MyStorage.connect

            def careless(self):
                connection = connect(self)
                connection.execute("PRAGMA synchronous = off")
                return connection

            patch(MyStorage, "connect", careless)


    class TestSpinning(Mutant):
        def mutate(self, patch):
            patch(waiting, "LOOK_SECONDS", 0.01)


    class TestRareLooks(Mutant):
        def mutate(self, patch):
            patch(waiting, "LOOK_SECONDS", 2.5)


    class TestNoNotifications(Mutant):
        def mutate(self, patch):
            patch(MyStorage, "capabilities", MyStorage.capabilities | {Capability.NOTIFICATIONS})


    class TestNoTransactions(Mutant):
        def mutate(self, patch):
            patch(MyStorage, "capabilities", MyStorage.capabilities | {Capability.TRANSACTIONS})


    class TestFinishOneByOne(Mutant):
        def mutate(self, patch):
            finish = MyStorage.finish

            async def one_by_one(self, outcomes):
                return [(await finish(self, [outcome]))[0] for outcome in outcomes]

            patch(MyStorage, "finish", one_by_one)


    class TestHalfABatch(Mutant):
        def mutate(self, patch):
            enqueue = MyStorage.enqueue

            async def one_by_one(self, tasks):
                return [(await enqueue(self, [task]))[0] for task in tasks]

            patch(MyStorage, "enqueue", one_by_one)


    class TestHalfTheOutcomes(Mutant):
        def mutate(self, patch):
            finish = MyStorage.finish

            async def one_by_one(self, outcomes):
                answers = []
                for one in outcomes:
                    if getattr(one, "error", None):
                        one.error.message.encode()
                    answers += await finish(self, [one])
                return answers

            patch(MyStorage, "finish", one_by_one)


    class TestHalfARun(Mutant):
        def mutate(self, patch):
            async def fire(self, schedule, tasks):
                if await self.put_schedule(schedule, schedule.revision) is None:
                    return None
                return await self.enqueue(tasks)

            patch(MyStorage, "fire", fire)


    class TestUnavailableForEver(Mutant):
        def mutate(self, patch):
            def fault(self, error):
                return StorageUnavailable("try again") if isinstance(error, sqlite3.Error | ValueError) else None

            patch(MyStorage, "fault", fault)
            patch(MyStorage, "timeout", 0.1)


    class TestDeadWorkers(Mutant):
        patience = 2.0

        def mutate(self, patch):
            patch(SqlTx, "forget_workers", lambda self: None)


    class TestPayloadLeft(Mutant):
        patience = 2.0

        def mutate(self, patch):
            remove = SqlTx.remove

            def forgetful(self, ids):
                self.cursor.execute("CREATE TABLE IF NOT EXISTS payload (id)")
                self.cursor.executemany("INSERT INTO payload VALUES (?)", [[task_id] for task_id in ids])
                remove(self, ids)

            patch(SqlTx, "remove", forgetful)


    class TestConnectionsLeft(Mutant):
        patience = 2.0

        def mutate(self, patch):
            patch(MyStorage, "disconnect", lambda self, connection: kept.append(connection))


    class TestThreadsLeft(Mutant):
        patience = 2.0

        def mutate(self, patch):
            async def close(self):
                kept.append(self._io_threads)

            patch(MyStorage, "close", close)


    class TestStatsOfAll(Mutant):
        def mutate(self, patch):
            def counts(self):
                found = {}
                for task in self._tasks("1 = 1"):
                    found.setdefault(task.queue, Counter())[task.state] += 1
                return found

            patch(SqlTx, "counts", counts)


    class TestShortNames(Mutant):
        def mutate(self, patch):
            stored = transitions.stored_task

            def cut(new, now):
                return states.changed_task(stored(new, now), name=new.name[:255])

            patch(transitions, "stored_task", cut)


    class TestOldErrors(Mutant):
        def mutate(self, patch):
            answered = transitions.answered_task

            def keep(task, outcome, now):
                new = answered(task, outcome, now)
                return new if new.error else states.changed_task(new, error=task.error)

            patch(transitions, "answered_task", keep)
    """

CAUGHT_BY = {
    "TestRawErrors": "test_while_the_store_is_away_every_call_says_so_within_a_bounded_time",
    "TestNotFreeInTime": "test_a_client_that_stands_still_holds_up_no_other_for_longer_than_stated",
    "TestNoSync": "test_what_was_acknowledged_is_on_the_disk",
    "TestSpinning": "test_an_idle_wait_asks_at_most_once_a_second",
    "TestRareLooks": "test_a_waiting_worker_gets_a_task_from_another_process",
    "TestNoNotifications": "test_a_waiting_worker_gets_a_task_from_another_process",
    "TestNoTransactions": "test_a_storage_joins_only_transactions_that_it_knows",
    "TestFinishOneByOne": "test_a_batch_costs_as_many_requests_as_one_task",
    "TestHalfABatch": "test_a_batch_of_which_the_store_cannot_hold_one_is_refused_as_a_whole[surrogate-queue]",
    "TestHalfTheOutcomes": (
        "test_a_batch_of_outcomes_of_which_the_store_cannot_hold_one_is_recorded_as_a_whole_or_not_at_all"
    ),
    "TestHalfARun": "test_a_run_of_which_the_store_cannot_hold_a_task_leaves_the_schedule_as_it_is[queue]",
    "TestUnavailableForEver": "test_a_batch_of_which_the_store_cannot_hold_one_is_refused_as_a_whole[surrogate-name]",
    "TestDeadWorkers": "test_what_was_removed_leaves_nothing_behind",
    "TestPayloadLeft": "test_what_was_removed_leaves_nothing_behind",
    "TestConnectionsLeft": "test_closing_ends_threads_and_connections",
    "TestThreadsLeft": "test_closing_ends_threads_and_connections",
    "TestStatsOfAll": "test_the_counts_are_told_without_reading_every_task",
    "TestShortNames": "test_long_texts_are_kept_in_every_place[300]",
    "TestOldErrors": "test_a_retry_without_an_error_drops_the_one_before",
}


@pytest.mark.timeout(600)  # some faults show when the patience of their test has run out
def test_each_fault_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "test_mutants.py").write_text(dedent(MUTANTS))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"),
            *(f"{tmp_path}/test_mutants.py::{mutant}::{test}" for mutant, test in CAUGHT_BY.items()),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    failed = set(re.findall(r"^FAILED \S*::(Test\w+)::", done.stdout, re.MULTILINE))
    assert failed == CAUGHT_BY.keys(), done.stdout + done.stderr
