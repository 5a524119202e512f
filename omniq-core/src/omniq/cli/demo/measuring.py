"""The demo's work: how large the modules of Python's standard library are, and which functions are the longest."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

__all__ = [
    "Function",
    "Measures",
    "differences",
    "library_folder",
    "longest_functions",
    "measure",
    "module_name",
    "standard_library",
]

LEFT_OUT = frozenset({"site-packages", "dist-packages"})
"""Folders inside the standard library's that are not of it."""
TOP = 10
"""How many of the longest functions are looked for."""
TESTS = "test"
"""Python's own tests: as many files again, and some of them are made to break parsers."""


@frozen(kw_only=True)
class Function:
    """A function or method."""

    name: str
    """With the classes and functions around it: ``Parser.parse_args``."""
    lines: int


@frozen(kw_only=True)
class Measures:
    """What was found out about one module."""

    lines: int
    functions: int = 0
    classes: int = 0
    longest: tuple[Function, ...] = ()
    """The ten longest functions, the longest first."""
    error: str | None = None
    """Why it cannot be parsed; None if it can."""


def library_folder() -> Path:
    """Return the folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def standard_library(limit: int | None = None) -> list[Path]:
    """Return the files of every module of the standard library, without Python's own tests.

    :param limit: only so many, from all over it.
    """
    root = library_folder()
    files = sorted(file for file in root.rglob("*.py") if _belongs(file.relative_to(root)))
    if limit is None or limit >= len(files):
        return files
    return [files[index * len(files) // limit] for index in range(limit)]


def _belongs(file: Path) -> bool:
    return file.parts[0] != TESTS and not LEFT_OUT.intersection(file.parts)


def module_name(file: Path) -> str:
    """Return the dotted name of a module of the standard library."""
    parts = file.relative_to(library_folder()).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def measure(source: bytes) -> Measures:
    """Measure a module.

    :param source: its text, as it is in the file.
    """
    lines = len(source.splitlines())
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        # A few files of the standard library are wrong on purpose.
        return Measures(lines=lines, error=f"{type(error).__name__}: {error}")
    found = list(_definitions(tree))
    functions = sorted(
        (function for function in found if function is not None), key=lambda function: (-function.lines, function.name)
    )
    return Measures(
        lines=lines,
        functions=len(functions),
        classes=len(found) - len(functions),
        longest=tuple(functions[:TOP]),
    )


def _definitions(tree: ast.AST) -> Iterator[Function | None]:
    """Yield every function, and None for every class."""
    left: list[tuple[str, ast.AST]] = [("", tree)]
    while left:
        prefix, node = left.pop()
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                left.append((prefix, child))
                continue
            name = f"{prefix}{child.name}"
            left.append((f"{name}.", child))
            if isinstance(child, ast.ClassDef):
                yield None
            else:
                yield Function(name=name, lines=(child.end_lineno or child.lineno) - child.lineno + 1)


def differences(expected: Mapping[Path, Measures], found: Mapping[Path, Measures | None]) -> list[str]:
    """Compare the workers' results with those of a plain loop.

    :return: one sentence for each file whose result is missing or another.
    """
    told: list[str] = []
    for file, measures in expected.items():
        result = found.get(file)
        if result is None:
            told.append(f"{file}: no result")
        elif result != measures:
            told.append(f"{file}: {result} instead of {measures}")
    told += [f"{file}: a result of no task that was enqueued" for file in found if file not in expected]
    return told


def longest_functions(results: Mapping[Path, Measures | None]) -> list[tuple[Path, Function]]:
    """Return the ten longest functions of all modules, the longest first."""
    longest = [
        (file, function) for file, measures in results.items() if measures is not None for function in measures.longest
    ]
    return sorted(longest, key=lambda entry: (-entry[1].lines, entry[0], entry[1].name))[:TOP]


# Old modules have escapes in their texts that newer Pythons frown upon; that is not what is measured here.
warnings.filterwarnings("ignore", category=SyntaxWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning, module="<unknown>")
