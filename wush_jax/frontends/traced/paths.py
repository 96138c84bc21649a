"""Leaves of any pytree by path: mappings, modules that are pytrees, lists, tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from wush_jax.layers.quantized_kernel import is_quantized
from wush_jax.layers.trees import path_of


def leaves(tree: Any) -> dict[str, Any]:
    """Path ("layers/0/w") -> leaf, in the tree's order; a `QuantizedKernel` is one."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_quantized)
    return {path_of(keys): leaf for keys, leaf in found}


def replaced(tree: Any, new: Callable[[str, Any], Any]) -> Any:
    """The tree with ``new(path, leaf)`` for every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: new(path_of(keys), leaf), tree, is_leaf=is_quantized
    )
