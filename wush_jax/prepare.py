"""Putting quantized params into the layout that this device's kernels read fastest, and back."""

from __future__ import annotations

from typing import TypeVar

import jax

from wush_jax import dispatch, layout
from wush_jax.kernel import QuantizedKernel, is_quantized

Tree = TypeVar("Tree")


def prepare(qparams: Tree) -> Tree:
    """Quantized params for serving: weights in the order in which the GPU kernels read them.

    Bit-exactly reversible (`unprepare`), of the same shapes, dtypes and size; every function of
    `wush_jax` takes either. Kernels that no fast implementation reads, or whose N is not a multiple
    of 16 or K not of 128, come back as they are, and so does everything on other devices.

    Args:
      qparams: quantized params, or any other tree with `QuantizedKernel`s in it.
    """
    here = dispatch.default_device()
    private = jax.jit(QuantizedKernel.private)

    def one(leaf):
        if not is_quantized(leaf) or not layout.fits(leaf.outputs, leaf.padded_features):
            return leaf
        chosen = dispatch.choose(leaf, here).implementation
        return private(leaf) if chosen in dispatch.READ_PRIVATE else leaf

    return jax.tree.map(one, qparams, is_leaf=is_quantized)


def unprepare(qparams: Tree) -> Tree:
    """The inverse of `prepare`: the public layout, in which params are best stored."""
    return jax.tree.map(
        lambda leaf: leaf.public() if is_quantized(leaf) else leaf, qparams, is_leaf=is_quantized
    )
