"""Slices of a kernel, and back: one `QuantizedKernel` from the solutions of its slices.

A layer may be a stack of layers, with batch axes (experts) of its own. Each slice over
[*stack, *batch] is a matrix [K, N] that is solved by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wush_jax.config import LayerConfig
from wush_jax.fitting.solve import Solved
from wush_jax.layers import stacking
from wush_jax.layers.contraction import kernel_to_matrix
from wush_jax.layers.layer import Layer
from wush_jax.layers.quantized_kernel import QuantizedKernel


def slices(
    weight: Float[Array | np.ndarray, "*_"], layer: Layer
) -> Callable[[tuple[int, ...]], Float[Array, "K N"]]:
    """Index over [*stack, *batch] -> that slice of a weight as a matrix [K, N]."""
    weight = stacking.to_front(weight, layer.stack_axes)
    stack_ndim = weight.ndim - len(layer.kernel_shape)

    def at(index: tuple[int, ...]) -> Array:
        matrix = kernel_to_matrix(weight[index[:stack_ndim]], layer.contraction.roles)
        return matrix[index[stack_ndim:]]

    return at


def gather(
    solved: Sequence[Solved], exponents: Sequence[tuple[int, int]], lead: tuple[int, ...]
) -> Any:
    """Solutions, activations' scales and exponents of all slices, as arrays [*stack, *batch, ...].

    Args:
      solved: in the order of ``itertools.product`` over ``lead``.
      exponents: shift and offset of each.
    """

    def join(*leaves: Array) -> Array:
        return jnp.stack(leaves).reshape(*lead, *leaves[0].shape) if lead else leaves[0]

    solution, act_global = jax.tree.map(join, *[(s.solution, s.act_global_scale) for s in solved])
    return solution, act_global, join(*[jnp.asarray([pair], jnp.int32) for pair in exponents])


def assemble(
    arrays: Any,
    exact_in: str,
    layer: Layer,
    config: LayerConfig,
    shared_input: str | None,
    dtype: str,
) -> QuantizedKernel:
    """A layer's `QuantizedKernel`, stacked axes put in their places.

    Args:
      arrays: from `gather`, or of these shapes.
      exact_in: see `QuantizedKernel`.
      shared_input: name of the layer whose transform it shares, or None.
      dtype: of the float kernel.
    """
    solution, act_global_scale, exponents = arrays
    codes, scales, global_scale, transform, act, held = jax.tree.map(
        lambda leaf: stacking.from_front(leaf, layer.stack_axes),
        (*solution, act_global_scale, None if exact_in == "float32" else exponents),
    )
    return QuantizedKernel(
        codes,
        scales,
        global_scale,
        act,
        transform,
        exponents=held,
        exact_in=exact_in,
        format=config.format,
        act_format=config.act_format,
        transform_name=config.transform,
        block=config.block,
        kernel_shape=tuple(layer.kernel_shape),
        roles=layer.contraction.roles,
        dtype=dtype,
        stack_axes=layer.stack_axes,
        shared_input=shared_input,
    )
