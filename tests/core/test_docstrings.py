"""What the reference is made of: a public function says what it takes, and what it returns."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from types import FunctionType

from omniq.storage.simple import Tx
from tests.core.test_public_api import MODULES

SAYS_WHAT_IT_RETURNS = re.compile(r":return:|\A(Return|Whether|Yield)\b")
SEES_ANOTHER = re.compile(r"\b[Ss]ee :(meth|func):")


def _public_functions() -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions and methods that programs outside this repository call, each where it is defined."""
    for name in ("", *sorted(MODULES)):
        module = importlib.import_module(f"omniq.{name}" if name else "omniq")
        for public in getattr(module, "__all__", ()):
            thing = getattr(module, public)
            if isinstance(thing, FunctionType):
                yield f"{module.__name__}.{public}", thing
            elif inspect.isclass(thing) and thing.__module__.startswith("omniq"):
                for attribute, member in vars(thing).items():
                    function = getattr(member, "__func__", member)
                    is_inherited = any(hasattr(base, attribute) for base in (*thing.__mro__[1:], *CONTRACTS))
                    if isinstance(function, FunctionType) and not attribute.startswith("_") and not is_inherited:
                        yield f"{thing.__module__}.{thing.__qualname__}.{attribute}", function


# Both are implemented by classes that are public, and described where they are declared.
CONTRACTS = (Tx,)


def _missing(function: FunctionType) -> Iterator[str]:
    """Yield what a docstring leaves out."""
    signature = inspect.signature(function)
    text = inspect.getdoc(function) or ""
    if SEES_ANOTHER.search(text):
        return
    described = set(re.findall(r":param \*{0,2}(\w+):", text))
    for name, parameter in signature.parameters.items():
        is_plain = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if is_plain and name not in ("self", "cls") and name not in described:
            yield f":param {name}:"
    returns = signature.return_annotation
    if returns not in (None, "None", "NoReturn", inspect.Signature.empty) and not SAYS_WHAT_IT_RETURNS.search(text):
        yield ":return:"


def test_a_public_function_says_what_it_takes_and_what_it_returns() -> None:
    missing = {name: what for name, function in _public_functions() if (what := list(_missing(function)))}

    assert missing == {}
