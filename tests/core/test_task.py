from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from omniq.task import (
    Cancelled,
    Failed,
    NewTask,
    Outcome,
    Progress,
    Released,
    Retry,
    Succeeded,
    Task,
    TaskError,
    TaskState,
)

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
FAILURE = TaskError(type="ValueError", message="no such page")
VALUES: list[Any] = [
    NewTask(id="a", queue="default", name="shop.fetch", body=b"{}"),
    Task(id="a", queue="default", name="shop.fetch", body=b"{}", created_at=NOW, run_at=NOW),
    FAILURE,
    Progress(done=1, total=2, note="half"),
    Succeeded(id="a", delivery=1, result=b"1"),
    Failed(id="a", delivery=1, error=FAILURE),
    Retry(id="a", delivery=1, delay=2.0, error=FAILURE),
    Released(id="a", delivery=1),
    Cancelled(id="a", delivery=1),
]


class Decoder:
    """Decodes without a codec: what a queue gives to its tasks, by hand."""

    def arguments(self, task: Task) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (task.payload.decode(), 2), {"width": 3}

    def retry_policy(self, task: Task) -> Any:
        return f"policy of {task.retry_spec}"

    def result(self, task: Task) -> Any:
        return task.result_payload


def a_task(**fields: Any) -> Task:
    return Task(id="a", queue="default", name="shop.fetch", body=b"a-body", created_at=NOW, run_at=NOW, **fields)


def test_a_state_is_its_own_text() -> None:
    state = TaskState.FAILED

    # The comparison that users write.
    assert state == "failed"
    assert f"{state}" == "failed"
    assert hash(state) == hash("failed")


def test_exactly_succeeded_failed_and_cancelled_are_final() -> None:
    assert {state for state in TaskState if state.is_final} == {"succeeded", "failed", "cancelled"}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_frozen_and_survive_pickle(value: Any) -> None:
    field = attrs.fields(type(value))[0].name

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, field, None)
    assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_made_by_keyword_only(value: Any) -> None:
    make: Callable[..., Any] = type(value)

    with pytest.raises(TypeError, match="positional"):
        make(*attrs.astuple(value, recurse=False))


@pytest.mark.parametrize("value", VALUES[:2], ids=repr)
def test_classes_derived_from_a_value_of_many_fields_are_frozen_too(value: Any) -> None:
    cls: Any = type(value)

    class Derived(cls):  # type: ignore[misc]  # any of them
        pass

    @attrs.frozen(kw_only=True)
    class Wider(cls):  # type: ignore[misc]  # likewise
        more: int = 3

    fields = attrs.asdict(value, recurse=False)
    fields = {one.alias: fields[one.name] for one in attrs.fields(cls)}
    for made, kind in ((Derived(**fields), Derived), (Wider(**fields), Wider), (cls(**fields), cls)):
        assert type(made) is kind
        assert made.body == value.body
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            made.id = "b"
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            del made.id
    assert Wider(**fields, more=4).more == 4


@pytest.mark.parametrize("value", VALUES[:2], ids=repr)
def test_values_of_many_fields_say_what_they_are_made_of(value: Any) -> None:
    cls = type(value)
    parameters = inspect.signature(cls).parameters

    assert list(parameters) == [one.alias for one in attrs.fields(cls)]
    assert parameters["id"].annotation == "str"
    assert attrs.evolve(value, id="b") != value
    assert attrs.evolve(attrs.evolve(value, id="b"), id="a") == value
    with pytest.raises(TypeError, match="missing"):
        cls(id="a")


def test_every_way_to_end_is_an_outcome_of_one_delivery() -> None:
    outcomes = [value for value in VALUES if isinstance(value, Outcome)]

    assert {type(outcome) for outcome in outcomes} == {Succeeded, Failed, Retry, Released, Cancelled}
    assert {(outcome.id, outcome.delivery) for outcome in outcomes} == {("a", 1)}


def test_body_arguments_and_result_stay_out_of_the_text_of_a_task() -> None:
    text = repr(a_task(payload=b"a-payload", result_payload=b"a-secret-result"))

    assert "a-body" not in text
    assert "a-payload" not in text
    assert "secret" not in text


def test_a_task_read_through_a_queue_decodes_on_demand() -> None:
    task = a_task(decoder=Decoder(), payload=b"a-payload", retry_spec="x", result_payload=b"7")

    assert task.args == ("a-payload", 2)
    assert task.kwargs == {"width": 3}
    assert task.retry == "policy of x"
    assert task.result == b"7"


@pytest.mark.parametrize("name", ["args", "kwargs", "retry", "result"])
def test_a_task_straight_from_a_storage_says_how_to_read_it(name: str) -> None:
    with pytest.raises(RuntimeError, match="through a TaskQueue"):
        getattr(a_task(), name)


def test_the_decoder_plays_no_part_in_equality() -> None:
    assert a_task(decoder=Decoder()) == a_task()
