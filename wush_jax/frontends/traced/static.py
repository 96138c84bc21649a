"""Leaves that are no arrays (flags, strings, functions) as parts of a tree's structure."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from wush_jax.layers.quantized_kernel import is_quantized


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A leaf that `jax.jit` treats as part of the program. Its value must be hashable."""

    value: Any


def is_array(leaf: Any) -> bool:
    """Whether a leaf is data: an array, or the shape of one."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def hidden(tree: Any) -> Any:
    """The tree with `Static` around leaves that are no data."""

    def hide(leaf: Any) -> Any:
        return leaf if is_array(leaf) or is_quantized(leaf) else Static(leaf)

    return jax.tree.map(hide, tree, is_leaf=is_quantized)


def shown(tree: Any) -> Any:
    """The inverse of `hidden`."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, Static) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Static),
    )
