"""Every annotation can be evaluated: what cannot is not checked, without a word."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import wush_jax
import wush_kernels
from tests.support import typechecks

MODULES = sorted(
    module.name
    for package in (wush_jax, wush_kernels)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if module.name not in typechecks.UNCHECKED
)


def annotated(module):
    """The functions and classes that a module defines, methods as well."""
    for _, thing in inspect.getmembers(module):
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            yield thing
            yield from (f for _, f in inspect.getmembers(thing, inspect.isfunction))
        elif inspect.isfunction(thing):
            yield thing


@pytest.mark.parametrize("name", MODULES)
def test_can_be_evaluated(name):
    module = importlib.import_module(name)
    optional = {"Axes": Axes, "Figure": Figure}  # of matplotlib, imported where something is drawn
    for thing in annotated(module):
        inner = inspect.unwrap(thing)
        names = None if inspect.isclass(inner) else inner.__globals__ | optional
        typing.get_type_hints(inner, names)
