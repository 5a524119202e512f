"""The conformance kit as third parties meet it: what it refuses, what it says, and what it needs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest

from omniq.storage import Capability, Storage
from omniq.testing import StorageContract, await_until, deviates, needs, wait_until
from omniq.testing.contract import Contract

STANDARD = "test_a_task_is_claimed_once"


def run_pytest(folder: Path, text: str, *options: str) -> str:
    """Run a test file as somebody does who has only installed the kit, and give what was printed."""
    (folder / "test_third_party.py").write_text(dedent(text))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *options, "test_third_party.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def run_python(text: str) -> str:
    done = subprocess.run([sys.executable, "-c", dedent(text)], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


# Deviations


def test_a_standard_test_cannot_be_replaced_without_a_reason() -> None:
    with pytest.raises(TypeError, match=f"TestLax replaces {STANDARD}.* without a reason"):
        type("TestLax", (StorageContract,), {STANDARD: lambda self: None})


def test_a_standard_test_cannot_be_switched_off() -> None:
    with pytest.raises(TypeError, match=STANDARD):
        type("TestLax", (StorageContract,), {STANDARD: None})


def test_a_standard_test_cannot_be_replaced_by_a_class_beside_it() -> None:
    lax = type("Lax", (), {STANDARD: lambda self: None})
    with pytest.raises(TypeError, match=STANDARD):
        type("TestLax", (lax, StorageContract), {})


def test_a_standard_test_can_be_replaced_with_a_reason() -> None:
    @deviates("this store claims every task twice, by design")
    async def twice(self: Contract, store: Storage) -> None:
        """Pass."""

    kind = type("TestTwice", (StorageContract,), {STANDARD: twice})
    below = type("TestBelow", (kind,), {})
    assert getattr(below, STANDARD).deviates == "this store claims every task twice, by design"


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_deviation_needs_a_reason(reason: str) -> None:
    with pytest.raises(ValueError, match="say why"):
        deviates(reason)


def test_no_test_of_the_kit_hides_another() -> None:
    names = Counter(name for area in StorageContract.__bases__ for name in vars(area) if not name.startswith("__"))
    assert [name for name, times in names.items() if times > 1] == []


# What a storage is not asked


class TestNeeds(Contract):
    @pytest.fixture
    def storage_url(self) -> str:
        return "memory://"

    @needs(Capability.SHARED_BETWEEN_MACHINES)
    async def test_what_it_cannot_promise_is_not_asked_of_it(self, store: Storage) -> None:
        raise AssertionError("asked all the same")

    def test_that_is_recorded(self, request: pytest.FixtureRequest) -> None:
        self.test_what_it_cannot_promise_is_not_asked_of_it(None)  # type: ignore[unused-coroutine, arg-type]  # it has become a function
        ((name, reason),) = request.node.user_properties
        assert (name, reason) == (
            "omniq: not asked of this storage",
            "this storage is not shared between machines",
        )

    @needs(Capability.NOTIFICATIONS)
    async def test_what_it_can_promise_is_asked(self, store: Storage) -> None:
        with pytest.raises(AssertionError):
            assert await store.stats() != []


# As third parties see it


def test_a_failure_tells_what_differed(tmp_path: Path) -> None:
    text = """
        import pytest
        from omniq.testing import StorageContract
        from omniq_local.memory.storage import MemoryStorage

        class TestBroken(StorageContract):
            @pytest.fixture
            def storage_url(self, monkeypatch):
                async def lose(self, queue):
                    return 41
                monkeypatch.setattr(MemoryStorage, "purge", lose)
                return "memory://broken"
        """
    output = run_pytest(tmp_path, text, "-k", "test_purging_a_queue_removes_all_but_what_runs")
    assert "assert 41 == 5" in output
    assert "1 failed" in output


def test_a_test_that_waits_for_ever_ends(tmp_path: Path) -> None:
    text = """
        import asyncio, pytest
        from omniq.testing import StorageContract

        class TestPatience(StorageContract):
            patience = 0.2

            @pytest.fixture
            def storage_url(self):
                return "memory://patience"

            async def test_of_my_own(self, store):
                await asyncio.Event().wait()
        """
    output = run_pytest(tmp_path, text, "-k", "test_of_my_own")
    assert "not done after 0.2 s" in output


def test_a_class_without_its_fixture_is_told_which(tmp_path: Path) -> None:
    text = """
        from omniq.testing import StorageContract

        class TestForgetful(StorageContract):
            pass
        """
    assert "fixture 'storage_url' not found" in run_pytest(tmp_path, text, "-k", STANDARD)


def test_the_model_does_as_many_sequences_as_its_fixture_returns(tmp_path: Path) -> None:
    printed = run_pytest(
        tmp_path,
        """
        import pytest
        from omniq.testing.contract import machine
        from omniq.testing.contract.modelling import ModelContract

        begun = []

        class TestMine(ModelContract):
            @pytest.fixture
            def storage_url(self, monkeypatch):
                init = machine.StorageMachine.__init__
                monkeypatch.setattr(
                    machine.StorageMachine, "__init__", lambda *args: (begun.append(1), init(*args))[1]
                )
                return "memory://mine"

            @pytest.fixture
            def model_examples(self):
                return 3

        def test_number():
            print(f"{len(begun)} sequences")
        """,
        "-s",
    )
    assert "2 passed" in printed
    assert "3 sequences" in printed, printed


def test_importing_the_helpers_loads_neither_pytest_nor_hypothesis() -> None:
    text = """
        import sys
        import omniq.testing
        print(sorted({"pytest", "hypothesis", "_pytest"} & set(sys.modules)))
        """
    assert run_python(text) == "[]\n"


@pytest.mark.parametrize("missing", ["pytest", "hypothesis"])
def test_where_the_kit_cannot_be_loaded_it_says_what_to_install(missing: str) -> None:
    text = f"""
        import sys

        class Absent:
            def find_spec(self, name, *rest):
                if name == {missing!r}:
                    raise ModuleNotFoundError(name, name=name)

        sys.meta_path.insert(0, Absent())
        from omniq.testing import wait_until
        wait_until(lambda: True)
        try:
            from omniq.testing import StorageContract
        except ImportError as error:
            print(error)
        """
    assert f"needs {missing}: pip install 'omniq-core[testing]'" in run_python(text)


# Waiting


def test_waiting_gives_what_the_predicate_gave() -> None:
    looks = iter([0, "", None, "there"])
    assert wait_until(lambda: next(looks)) == "there"


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(AssertionError, match=r"waited 0\.01 s in vain for the end of the world"):
        wait_until(lambda: False, 0.01, "the end of the world")


class TestAwaiting(Contract):
    @pytest.fixture
    def storage_url(self) -> str:
        return "memory://"

    async def test_a_coroutine_function_can_be_waited_for_too(self) -> None:
        looks = iter([False, False, True])

        async def look() -> bool:
            return next(looks)

        assert await await_until(look) is True
        with pytest.raises(AssertionError, match="in vain for nothing at all"):
            await await_until(lambda: None, 0.01, "nothing at all")
