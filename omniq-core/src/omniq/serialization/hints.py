"""Annotations as types: of a function's parameters, of a class's fields, with type variables put in place.

Every annotation is resolved by itself: one that names what is imported for type checkers only counts as ``Any`` and
takes none of its neighbours with it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from omniq.serialization import ArgumentTypes
from omniq.storage.escaping import get_logger

__all__ = ["bare_hint", "field_hints", "hint_name", "resolve_types", "special_name", "union_members"]

_log = get_logger(__name__)
_EMPTY = inspect.Parameter.empty
_QUALIFIERS = frozenset({"Final", "Required", "NotRequired", "ReadOnly"})


def resolve_types(function: Callable[..., Any], *, without: frozenset[str] = frozenset()) -> tuple[ArgumentTypes, Any]:
    """Return the types of a function's parameters and of what it returns.

    :param function: a plain or coroutine function, a method, a partial, or any other callable. One whose signature
        Python cannot tell takes anything.
    :param without: names of parameters that no argument is given for; their annotations are not looked at.
    :returns: the types of the arguments, and the return annotation (of a coroutine function: what awaiting it gives).
        ``Any`` stands for an annotation that is missing or cannot be resolved.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError, NameError):
        return ArgumentTypes(), Any
    target = _underlying(function)
    names = getattr(target, "__globals__", None) or vars(sys.modules.get(getattr(target, "__module__", ""), typing))
    local = {**_closure(target), **_type_parameters(target)}

    def resolve(annotation: Any) -> Any:
        return Any if annotation is _EMPTY else _resolve(annotation, names, local, function)

    positional: list[Any] = []
    keyword: dict[str, Any] = {}
    var_positional: Any = Any
    var_keyword: Any = Any
    for name, parameter in signature.parameters.items():
        hint = Any if name in without else resolve(parameter.annotation)
        match parameter.kind:
            case parameter.VAR_POSITIONAL:
                var_positional = Any if _is_unpacked(hint) else hint
            case parameter.VAR_KEYWORD if _is_unpacked(hint):
                keyword |= field_hints(get_args(hint)[0])
            case parameter.VAR_KEYWORD:
                var_keyword = hint
            case _:
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    positional.append(hint)
                if parameter.kind is not parameter.POSITIONAL_ONLY:
                    keyword[name] = hint
    arguments = ArgumentTypes(
        positional=tuple(positional), var_positional=var_positional, keyword=keyword, var_keyword=var_keyword
    )
    return arguments, resolve(signature.return_annotation)


def _underlying(function: Any) -> Any:
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    if not hasattr(function, "__code__") and not hasattr(function, "__func__"):
        function = inspect.unwrap(inspect.getattr_static(type(function), "__call__", function))
    return getattr(function, "__func__", function)


def _closure(function: Any) -> dict[str, Any]:
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not cells:
        return {}
    found: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _type_parameters(owner: Any) -> dict[str, Any]:
    return {parameter.__name__: parameter for parameter in getattr(owner, "__type_params__", ())}


def _is_unpacked(hint: Any) -> bool:
    return get_origin(hint) is typing.Unpack


def _resolve(annotation: Any, names: Mapping[str, Any], local: Mapping[str, Any], owner: object) -> Any:
    # A class may carry every form of annotation, Final too.
    carrier = type("Carrier", (), {"__annotations__": {"it": annotation}})
    try:
        return typing.get_type_hints(carrier, dict(names), dict(local), include_extras=True)["it"]
    except Exception as error:
        # An annotation may be any expression, so resolving it may raise anything.
        _log.debug("annotation %r of %r counts as Any: %s: %s", annotation, owner, type(error).__name__, error)
        return Any


def field_hints(hint: Any) -> dict[str, Any]:
    """Return the types of the annotated fields of a class, its bases' included.

    :param hint: a class, or a generic class with its arguments, such as ``Page[Item]``.
    :returns: the types by name. A type variable that has no argument stands for itself.
    """
    cls = get_origin(hint) or hint
    bindings = _bindings(hint)
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        annotations = inspect.get_annotations(base)
        if not annotations:
            continue
        names = vars(sys.modules.get(base.__module__, typing))
        local = {base.__name__: base, "Self": cls, **_type_parameters(base)}
        bound = bindings.get(base, {})
        for name, annotation in annotations.items():
            hints[name] = _substitute(_resolve(annotation, names, local, base), bound)
    return hints


def _bindings(hint: Any) -> dict[type, dict[Any, Any]]:
    # A type variable means something else in each class that uses it, hence one mapping a class.
    found: dict[type, dict[Any, Any]] = {}

    def visit(alias: Any, outer: Mapping[Any, Any]) -> None:
        cls = get_origin(alias) or alias
        if not isinstance(cls, type) or cls in found:
            return
        arguments = [_substitute(argument, outer) for argument in get_args(alias)]
        found[cls] = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
        for base in getattr(cls, "__orig_bases__", ()) if "__orig_bases__" in vars(cls) else cls.__bases__:
            visit(base, found[cls])

    visit(hint, {})
    return found


def _substitute(hint: Any, bound: Mapping[Any, Any]) -> Any:
    if not bound:
        return hint
    if isinstance(hint, TypeVar):
        return bound.get(hint, hint)
    free = getattr(hint, "__parameters__", ())
    if not free or isinstance(hint, type):
        return hint
    try:
        return hint[tuple(bound.get(variable, variable) for variable in free)]
    except TypeError:
        return Any


def bare_hint(hint: Any) -> Any:
    """Return what an annotation comes down to: without metadata and qualifiers, aliases and new types resolved.

    A type variable comes down to its bound, its constraints or ``Any``.
    """
    while True:
        origin = get_origin(hint)
        if origin is Annotated:
            hint = hint.__origin__
        elif special_name(origin) in _QUALIFIERS:
            hint = get_args(hint)[0]
        elif special_name(hint) in _QUALIFIERS:
            return Any
        elif special_name(hint) == "LiteralString":
            return str
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif isinstance(hint, TypeVar):
            hint = _variable_type(hint)
        elif type(origin or hint).__name__ == "TypeAliasType":
            hint = _alias_value(hint)
        else:
            return hint


def _variable_type(variable: TypeVar) -> Any:
    names = vars(sys.modules.get(variable.__module__, typing))
    constraints = tuple(_resolve(one, names, {}, variable) for one in variable.__constraints__)
    if constraints:
        return Union[constraints]  # noqa: UP007  # a union of a tuple of types
    return Any if variable.__bound__ is None else _resolve(variable.__bound__, names, {}, variable)


def special_name(form: Any) -> str:
    """Return the name of one of typing's forms, whichever library it comes from; empty for anything else."""
    if getattr(form, "__module__", "") not in {"typing", "typing_extensions"}:
        return ""
    return str(getattr(form, "_name", None) or getattr(form, "__name__", ""))


def _alias_value(hint: Any) -> Any:
    alias = get_origin(hint) or hint
    value = alias.__value__
    return _substitute(value, dict(zip(alias.__type_params__, get_args(hint), strict=False)))


def union_members(hint: Any) -> list[Any] | None:
    """Return the members of a union, those of unions inside it too; None if the annotation is no union."""
    hint = bare_hint(hint)
    if get_origin(hint) not in {Union, types.UnionType}:
        return None
    members: list[Any] = []
    for argument in get_args(hint):
        for member in union_members(argument) or [bare_hint(argument)]:
            if member not in members:
                members.append(member)
    return members


def hint_name(hint: Any, *, full: bool = False) -> str:
    """Write an annotation as its author did, such as ``dict[str, Item] | None``.

    :param full: whether to write classes with their modules.
    """
    if hint is None or hint is type(None):
        return "None"
    if hint is ...:
        return "..."
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin in {Union, types.UnionType}:
        return " | ".join(hint_name(argument, full=full) for argument in arguments)
    base = origin or hint
    if isinstance(base, type):
        name = base.__qualname__ if full else base.__qualname__.rpartition("<locals>.")[2]
        if full and base.__module__ != "builtins":
            name = f"{base.__module__}.{name}"
    else:
        name = str(base).removeprefix("typing.")
    if arguments:
        name += f"[{', '.join(hint_name(argument, full=full) for argument in arguments)}]"
    return name
