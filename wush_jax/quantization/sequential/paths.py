"""A params tree cut into blocks: which kernels and rules belong to which, and sub-trees by path."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from wush_jax.config import Config
from wush_jax.layers import trees
from wush_jax.layers.quantized_kernel import QuantizedKernel


def check(params: Mapping, blocks: Collection[str]) -> None:
    """Raises ValueError for a block that the params do not hold, or that lies inside another."""
    if not blocks:
        raise ValueError("blocks is empty: it maps module paths to Flax modules, as they run")
    modules = dict(trees.walk(params))
    for path in blocks:
        if not path or path not in modules:
            nearest = next((p for p in _parents(path) if p in modules), "")
            some = ", ".join(trees.join(nearest, name) for name in list(modules[nearest])[:6])
            raise ValueError(f"{path!r}: the params hold no module of this path; they hold {some}")
        outer = next((p for p in _parents(path) if p in blocks), None)
        if outer is not None:
            raise ValueError(f"{path}: this block lies inside the block {outer}; name one of them")


def skipped(kernels: Collection[str], blocks: Collection[str], config: Config) -> dict[str, str]:
    """Module path -> the rule that keeps it in floating point, in the blocks and outside.

    Args:
      kernels: module paths of all kernels in the params.
      blocks: module paths.
      config: with its rules.

    Raises:
      ValueError: a kernel in no block that no rule skips, or nothing to quantize.
    """
    matched = {path: config.rule(path) for path in kernels}
    skips = {path: f"rule {rule.pattern!r}" for path, rule in matched.items() if rule and rule.skip}
    for path in kernels:
        if path not in skips and not any(inside(path, block) for block in blocks):
            some = ", ".join(list(blocks)[:6]) + (", ..." if len(blocks) > 6 else "")
            raise ValueError(
                f"{path}: this kernel lies in none of the blocks ({some}); add the block that "
                f"holds it, or skip it with Rule({path!r}, skip=True)"
            )
    if len(skips) == len(matched):
        found = ", ".join(skips) or "none"
        raise ValueError(f"no linear layer to quantize was found (kept in float: {found})")
    return skips


def relevant(config: Config, kernels: Collection[str], path: str) -> Config:
    """``config`` with only the rules that are the first to match a layer of the block at ``path``.

    The layers fall under the same rules as before, and no rule is reported as unused that is meant
    for another block.

    Args:
      kernels: names of all layers.
    """
    used = {config.rule(name) for name in kernels if inside(name, path)}
    return dataclasses.replace(config, rules=tuple(r for r in config.rules if r in used))


def unused_rules(kernels: Collection[str], config: Config) -> tuple[str, ...]:
    """Patterns of the user's rules that are the first match of no kernel at all."""
    used = {config.rule(path) for path in kernels}
    return tuple(rule.pattern for rule in config.rules if rule not in used)


def with_kernels(
    params: Mapping, kernels: Mapping[str, QuantizedKernel], path: str
) -> dict[str, Any]:
    """A block's own params with quantized kernels (by full path), named relative to the block.

    Blocks that are alike then have trees that are alike, and share one compiled function.
    """
    local = {}
    for name, kernel in kernels.items():
        shared = None if kernel.shared_input is None else _relative(kernel.shared_input, path)
        local[_relative(name, path)] = dataclasses.replace(kernel, shared_input=shared)
    return trees.replace_kernels(params, local)


def inside(path: str, block: str) -> bool:
    """Whether a module path is the block's or lies below it."""
    return path == block or path.startswith(f"{block}/")


def at(tree: Mapping, path: str) -> Mapping:
    """The sub-tree of a module path; empty where the tree has nothing there."""
    return functools.reduce(lambda node, name: node.get(name, {}), path.split("/"), tree)


def nest(tree: Any, path: str) -> dict[str, Any]:
    """The inverse of `at`: a tree with nothing but ``tree`` at ``path``."""
    return functools.reduce(lambda node, name: {name: node}, reversed(path.split("/")), tree)


def _relative(path: str, block: str) -> str:
    return path.removeprefix(block).removeprefix("/")


def _parents(path: str) -> Iterator[str]:
    """ "a/b/c" -> "a/b", "a", ""."""
    while path:
        path = path.rpartition("/")[0]
        yield path
