"""Round to nearest: Q(T⁻ᵀ W), group by group."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import jax.scipy.linalg
from jaxtyping import Array, BFloat16, Float, Float32, Num

from wush_jax import formats
from wush_jax.config import LayerConfig
from wush_jax.formats import Format
from wush_jax.transforms.blocks import Blocks, matmul


class Solution(NamedTuple):
    """The arrays of a `QuantizedKernel`, see there."""

    codes: Num[Array, "N Kb"]
    scales: Num[Array, "N Kg"]
    global_scale: Float32[Array, "1 1"]
    transform: BFloat16[Array, "C D D"] | None


def rtn(kernel: Float[Array, "K N"], forward: Blocks, config: LayerConfig) -> Solution:
    """Quantizes a kernel in the basis of a transform.

    T is rounded to bfloat16 first, as it will be stored, and T⁻ᵀ W is solved against the rounded
    T: the pairing (x Tᵀ)(T⁻ᵀ W) = x W then holds to float32 rounding, and the only error left is
    the quantizer's. Sums are float32.

    Args:
      kernel: [K, N]; K a multiple of D and of the group size.
      forward: T, float32 [C, D, D].
      config: number format and transform name.
    """
    weights, stored = transformed_weights(kernel, forward, config.transform)
    return round_to_nearest(weights, stored, config.format)


def round_to_nearest(
    a: Float32[Array, "K N"], stored: BFloat16[Array, "C D D"] | None, fmt: Format
) -> Solution:
    """Transformed weights by the format's own rule."""
    q = formats.quantize(a.T, fmt)
    return Solution(q.codes, q.scales, q.global_scale.reshape(1, 1), stored)


def transformed_weights(
    kernel: Float[Array, "K N"], forward: Blocks, transform: str
) -> tuple[Float32[Array, "K N"], BFloat16[Array, "C D D"] | None]:
    """A = T⁻ᵀ W in float32, and T as stored (None where it needs no storage).

    T⁻ᵀ comes from an LU factorisation, of D right-hand sides rather than N: CPUs solve many
    small triangular systems slowly and multiply fast. One step of iterative refinement against W
    then takes out what an explicit inverse loses.
    """
    blocks = kernel.astype(jnp.float32).reshape(forward.shape[0], forward.shape[1], -1)
    if transform == "identity":
        return blocks.reshape(kernel.shape), None
    if transform == "hadamard":
        return matmul(forward, blocks).reshape(kernel.shape), None
    stored = forward.astype(jnp.bfloat16)
    t = stored.astype(jnp.float32)
    eye = jnp.broadcast_to(jnp.eye(t.shape[-1], dtype=jnp.float32), t.shape)
    inverse = jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(t.mT), eye)
    solved = matmul(inverse, blocks)
    solved = solved + matmul(inverse, blocks - matmul(t.mT, solved))
    return solved.reshape(kernel.shape), stored
