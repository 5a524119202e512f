from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from omniq import errors
from omniq.errors import (
    ConfigurationError,
    InvalidTrigger,
    OmniQError,
    PayloadTooLarge,
    ResultTimeout,
    ScheduleNotFound,
    SerializationError,
    StorageUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    TaskTimeout,
)
from omniq.task import TaskError

CLASSES: dict[str, type[OmniQError]] = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, OmniQError) and value.__module__ == errors.__name__
}
FAILURE = TaskError(type="ValueError", message="no such page", traceback="Traceback …\nValueError: no such page\n")


def an_error(cls: type[OmniQError]) -> OmniQError:
    """Return an error of a class, made as the code makes it."""
    if issubclass(cls, TaskFailed):
        return cls("a-task", FAILURE)
    if issubclass(cls, SerializationError):
        return cls("a set has no order", path="args[0].tags")
    return cls("a-text-or-an-id")


def drawn_tree() -> dict[str, str | None]:
    """Read the tree in the module's docstring: class → the class that it stands under."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^(    (?:[│ ]   )*(?:[├└]── )?)(\w+)(?:\s{2,}|$)", line)
        if match is None:
            continue
        depth, name = len(match[1]), match[2]
        above = [entry for entry in above if entry[0] < depth]
        parents[name] = above[-1][1] if above else None
        above.append((depth, name))
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    bases = {name: cls.__bases__[0].__name__ for name, cls in CLASSES.items() if cls is not OmniQError}

    assert drawn_tree() == {"OmniQError": None, **bases}


def test_every_error_is_exported() -> None:
    assert sorted(errors.__all__) == sorted(CLASSES)


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_one_except_clause_catches_every_error(cls: type[OmniQError]) -> None:
    with pytest.raises(OmniQError):
        raise an_error(cls)


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_an_error_survives_pickle_and_copy_with_its_text_and_fields(cls: type[OmniQError]) -> None:
    original = an_error(cls)

    for twin in (pickle.loads(pickle.dumps(original)), copy.copy(original), copy.deepcopy(original)):
        assert type(twin) is cls
        assert str(twin) == str(original)
        assert twin.args == original.args
        assert vars(twin) == vars(original)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (ConfigurationError, ValueError),
        (InvalidTrigger, ValueError),
        (TaskNotFound, LookupError),
        (ScheduleNotFound, LookupError),
        (ResultTimeout, TimeoutError),
        (TaskTimeout, TimeoutError),
    ],
)
def test_callers_who_know_only_the_builtin_error_catch_ours(cls: type[OmniQError], builtin: type[Exception]) -> None:
    with pytest.raises(builtin):
        raise an_error(cls)


def test_a_failed_task_shows_the_error_and_the_workers_traceback() -> None:
    text = str(TaskFailed("a-task", FAILURE))

    assert text.startswith("ValueError: no such page (task a-task)")
    assert text.endswith("Traceback …\nValueError: no such page")


def test_a_failed_task_without_a_traceback_shows_the_error_alone() -> None:
    failure = TaskError(type="WorkerLost", message="its lease ran out")

    assert str(TaskFailed("a-task", failure)) == "WorkerLost: its lease ran out (task a-task)"


def test_the_errors_of_ids_name_the_id() -> None:
    for error in (TaskNotFound("an-id"), TaskCancelled("an-id"), ScheduleNotFound("an-id")):
        assert "an-id" in str(error)


def test_a_cancelled_task_tells_why_and_not_what_an_attempt_before_failed_of() -> None:
    superseded = TaskError(type="Superseded", message="task b (shop.index) took its place")

    assert str(TaskCancelled("a", superseded)) == "task a was cancelled, as task b (shop.index) took its place"
    assert TaskCancelled("a", superseded).error == superseded
    assert str(TaskCancelled("a", FAILURE)) == "task a was cancelled"
    assert TaskCancelled("a", FAILURE).error is None


def test_a_serialization_error_names_the_path_to_the_value() -> None:
    error = SerializationError("a set has no order", path="args[0].tags")

    assert str(error) == "args[0].tags: a set has no order"
    assert (error.path, error.message) == ("args[0].tags", "a set has no order")
    assert str(PayloadTooLarge("over the limit")) == "over the limit"


def test_a_wrapped_drivers_error_is_the_cause() -> None:
    driver = OSError("connection refused")

    with pytest.raises(StorageUnavailable) as caught:
        raise StorageUnavailable("cannot reach the store") from driver

    assert caught.value.__cause__ is driver
