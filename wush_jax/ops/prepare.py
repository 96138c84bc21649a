"""Putting quantized params into the layout that this device's kernels read fastest, and back."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax

from wush_jax.layers.quantized_kernel import is_quantized
from wush_jax.ops import device, dispatch
from wush_jax.ops.implementations.table import IMPLEMENTATIONS

Tree = TypeVar("Tree")


def prepare(qparams: Tree, *, keep_fp8: bool = False) -> Tree:
    """Quantized params for serving: weights in the order in which the GPU kernels read them.

    Bit-exactly reversible (`unprepare`), of the same shapes, dtypes and size; every function of
    `wush_jax` takes either. Kernels that no fast implementation reads, or whose N is not a multiple
    of 16 or K not of 128, come back as they are, and so does everything on other devices.

    Args:
      qparams: quantized params, or any other tree with `QuantizedKernel`s in it.
      keep_fp8: also keep the FP8 weights that products of many tokens read, where there are such:
        8 more bits a weight, and no expansion before each product, which is what counts most at
        some hundred tokens.
    """
    here = device.default_device()

    def one(leaf):
        if not is_quantized(leaf):
            return leaf
        chosen = IMPLEMENTATIONS[dispatch.choose(leaf, here).implementation]
        return chosen.prepared(leaf, keep_fp8=keep_fp8)

    return jax.tree.map(one, qparams, is_leaf=is_quantized)


def unprepare(qparams: Tree) -> Tree:
    """The inverse of `prepare`: the public layout, in which params are best stored."""

    def one(leaf):
        return dataclasses.replace(leaf.public(), expanded=None) if is_quantized(leaf) else leaf

    return jax.tree.map(one, qparams, is_leaf=is_quantized)
