"""Makes the stores of the documentation known as if they were installed, to child processes, too."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from omniq import plugins

DOCS = Path(__file__).parents[2] / "docs"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function, on an event loop of its own."""
    if pyfuncitem.cls is not None or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture(scope="session", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("installed")
    page = (DOCS / "how-to" / "storage-plugin.md").read_text(encoding="utf-8")
    for name in ("plugin", "storage"):
        (block,) = re.findall(rf"```python\n# omniq_mystore/{name}.py\n(.*?)```", page, re.DOTALL)
        file = folder / "omniq_mystore" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(block, encoding="utf-8")
    for name in ("mystore", "lmdb"):
        metadata = folder / f"omniq_{name}-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: omniq-{name}\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text(f"[omniq]\n{name} = omniq_{name}.plugin\n")
    paths = [str(folder), str(DOCS / "examples" / "omniq-lmdb" / "src")]
    with pytest.MonkeyPatch.context() as patch:
        for path in paths:
            patch.syspath_prepend(path)
        patch.setenv("PYTHONPATH", os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]))
        patch.setattr(plugins, "_default", None)
        yield
    for name in [name for name in sys.modules if name.startswith(("omniq_mystore", "omniq_lmdb"))]:
        del sys.modules[name]
