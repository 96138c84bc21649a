"""Reading docstrings, and what the code under them takes and raises."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

SHAPE = re.compile(r"\[[^\]]*\]")
REFERENCE = re.compile(r"`(?:wush_jax\.)?(\w+)`")
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\s*$")


def doc_of(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__ or "")


def section(doc: str, *names: str) -> str:
    """The text of a section, or of several; empty if there is none."""
    found, inside = [], False
    for line in doc.splitlines():
        heading = _SECTION.match(line)
        inside = heading[1] in names if heading else inside and (not line or line[0] == " ")
        found += [line] if inside and not heading else []
    return textwrap.dedent("\n".join(found))


def entries(doc: str) -> dict[str, str]:
    """Parameter or field -> its entry; several may share one: "a, b: text"."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section(doc, "Args", "Attributes").splitlines():
        start = re.match(r"([\w*, ]+): ?(.*)", line)
        if start is not None and not line.startswith(" "):
            names = [name.strip(" *") for name in start[1].split(",")]
            found |= dict.fromkeys(names, start[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def arrays(documented: Any) -> list[str]:
    """Parameters or fields whose annotation holds an array, or a function to one; no random key."""
    if inspect.isclass(documented):
        hints = typing.get_type_hints(documented)
    else:
        given = {n: hint for n, hint in documented.__annotations__.items() if n != "return"}
        taken = types.SimpleNamespace(__annotations__=given)
        hints = typing.get_type_hints(taken, inspect.unwrap(documented).__globals__)
    return [name for name in inspect.signature(documented).parameters if _holds(hints.get(name))]


def _holds(hint: Any) -> bool:
    if hint in (PRNGKeyArray, PRNGKeyArray | None) or isinstance(hint, list):  # of arguments
        return False
    if isinstance(hint, type) and not typing.get_args(hint):
        return hasattr(hint, "array_type") or issubclass(hint, (jax.Array, np.ndarray))
    return any(_holds(argument) for argument in typing.get_args(hint))


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself."""
    for name, value in vars(cls).items():
        if not name.startswith("_"):
            value = value.fget if isinstance(value, property) else value
            value = value.__func__ if isinstance(value, classmethod) else value
            if inspect.isfunction(value):
                yield f"{cls.__name__}.{name}", value


def raised(value: Any, skip: str = "", seen: set[Any] | None = None) -> dict[str, str]:
    """Exception -> a function that raises it, of all that ``value`` reaches within `wush_jax`.

    Followed are calls of functions and classes by name, not those of methods.

    Args:
      skip: a module whose functions are not followed.
    """
    seen = set() if seen is None else seen
    found: dict[str, str] = {}
    for function in _bodies(value, skip, seen):
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found[ast.unparse(node.exc.func)] = function.__qualname__
                found.pop("AssertionError", None)  # a fault of ours
            elif isinstance(node, ast.Call):
                scope = function.__globals__ | _imported(function)
                found = raised(_resolved(node.func, scope), skip, seen) | found
    return found


def _bodies(value: Any, skip: str, seen: set[Any]) -> list[Any]:
    value = inspect.unwrap(value) if callable(value) else value
    value = getattr(value, "func", value)  # of a partial function
    if not (inspect.isfunction(value) or inspect.isclass(value)) or value in seen:
        return []
    if not value.__module__.startswith("wush_jax") or value.__module__ == skip:
        return []
    seen.add(value)
    if inspect.isfunction(value):
        return [value]
    starts = [vars(value)[name] for name in ("__init__", "__post_init__") if name in vars(value)]
    return [f for f in starts if f.__code__.co_filename == inspect.getfile(value)]


def _imported(function: Any) -> dict[str, Any]:
    """Names that a function imports when it runs."""
    scope: dict[str, Any] = {}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wush_jax"):
            exec(ast.unparse(node), scope)
    return scope


def _resolved(node: ast.AST, scope: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return scope.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolved(node.value, scope)
        return getattr(owner, node.attr, None) if isinstance(owner, types.ModuleType) else None
    return None
