"""``APP`` on the command line: what is found, and what is said when it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from omniq import TaskQueue, UnknownScheme
from omniq.cli import main
from omniq.cli.app import load_queue, load_queue_or_url, require_shared
from omniq.cli.failures import UsageError

pytestmark = pytest.mark.usefixtures("folder")


def complaint(app: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_queue(app)
    return str(caught.value)


def test_a_queue_is_imported_from_the_current_folder() -> None:
    assert isinstance(load_queue("shop:queue"), TaskQueue)


def test_a_queue_may_be_an_attribute_of_an_attribute(folder: Path) -> None:
    (folder / "classy.py").write_text("import shop\nclass Settings:\n    queue = shop.queue\n")
    assert load_queue("classy:Settings.queue") is load_queue("shop:queue")


def test_what_has_a_scheme_is_a_url(folder: Path) -> None:
    assert load_queue_or_url(f"sqlite:///{folder}/a.db").url == f"sqlite:///{folder}/a.db"
    assert load_queue_or_url("shop:queue") is load_queue("shop:queue")


def test_a_file_is_told_from_a_module(folder: Path) -> None:
    (folder / "jobs").touch()
    for file in ("jobs", "my.db"):
        with pytest.raises(UsageError, match=f"for a store in that file write sqlite:///{file}"):
            load_queue_or_url(file)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("sqlite:/jobs.db", "sqlite:////jobs.db"),
        ("sqlite:jobs.db", "sqlite:///jobs.db"),
        ("file:/srv/jobs", "file:///srv/jobs"),
    ],
)
def test_a_url_that_lacks_slashes_is_not_taken_for_a_module(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"neither a URL nor module:attribute; write {meant}$"):
        load_queue_or_url(text)


def test_a_module_that_is_not_there_is_named(folder: Path) -> None:
    text = complaint("shp.tasks:queue")
    assert text.startswith("there is no module 'shp'; ")
    assert str(folder) in text


def test_a_module_that_a_package_does_not_have_is_named(folder: Path) -> None:
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").touch()
    assert complaint("pack.tasks:queue").startswith("there is no module 'pack.tasks'; ")


def test_a_module_that_the_application_lacks_is_told_from_the_application(folder: Path) -> None:
    (folder / "lacks.py").write_text("\nimport not_installed\n")
    assert complaint("lacks:queue") == (
        f"importing lacks failed: ModuleNotFoundError: No module named 'not_installed' ({folder}/lacks.py, line 2)"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\n1 / 0", "ZeroDivisionError: division by zero ({folder}/broken.py, line 2)"),
        ("def f(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("raise SystemExit(3)", "SystemExit: 3 ({folder}/broken.py, line 1)"),
    ],
)
def test_a_module_that_breaks_on_import_is_shown_with_the_place(folder: Path, text: str, shown: str) -> None:
    (folder / "broken.py").write_text(text)
    assert complaint("broken:queue") == f"importing broken failed: {shown.format(folder=folder)}"


@pytest.mark.parametrize(
    ("app", "text"),
    [
        ("shop:queu", "module shop has no attribute 'queu'; did you mean queue?"),
        ("shop:jobs", "module shop has no attribute 'jobs'; the TaskQueue there is queue"),
        ("shop:colour", "shop:colour is not a TaskQueue but of type str; the TaskQueue there is queue"),
        ("shop:resize", "shop:resize is not a TaskQueue but of type TaskFunction; the TaskQueue there is queue"),
        ("shop", "'shop' names no attribute; the TaskQueue there is queue; write shop:ATTRIBUTE"),
        ("shop:", "'shop:' names no attribute; the TaskQueue there is queue; write shop:ATTRIBUTE"),
        ("json:queue", "module json has no attribute 'queue'; there is no TaskQueue in json"),
        ("shop.py", "'shop.py' is not module:attribute; try shop:queue"),
        ("./app/shop.py:jobs", "'./app/shop.py:jobs' is not module:attribute; try app.shop:jobs"),
        ("a b", "'a b' is not module:attribute, such as shop.tasks:queue"),
        (":queue", "':queue' is not module:attribute, such as shop.tasks:queue"),
        ("sqlite:///a.db", "'sqlite:///a.db' is the URL of a store; name your TaskQueue as module:attribute"),
    ],
)
def test_what_is_wrong_with_app_is_said_with_the_mend(app: str, text: str) -> None:
    assert complaint(app) == text


def test_several_queues_are_all_named(folder: Path) -> None:
    (folder / "two.py").write_text(
        "from omniq import TaskQueue\nb = TaskQueue('memory://')\na = TaskQueue('memory://')\n"
    )
    assert complaint("two:c") == "module two has no attribute 'c'; the TaskQueues there are b, a"


def test_a_store_that_is_not_installed_is_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "cloud.py").write_text("from omniq import TaskQueue\nqueue = TaskQueue('cloud://here')\n")

    with pytest.raises(UnknownScheme):
        load_queue("cloud:queue")
    assert main(["stats", "cloud:queue"]) == 2
    assert main(["stats", "cloud://user:secret@here"]) == 2

    shown = capsys.readouterr().err
    assert shown.count("omniq: error: no storage opens cloud://") == 2
    assert "secret" not in shown


def test_a_store_inside_one_process_is_of_no_use_to_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mem.py").write_text("from omniq import TaskQueue\nqueue = TaskQueue('memory://')\n")

    with pytest.raises(UsageError, match="lives inside one process"):
        require_shared(TaskQueue("memory://"))
    assert main(["stats", "mem:queue"]) == 2
    assert "sqlite:///jobs.db" in capsys.readouterr().err


def test_the_current_folder_comes_first_on_the_path(folder: Path) -> None:
    load_queue("shop:queue")
    assert sys.path[0] == str(folder)
