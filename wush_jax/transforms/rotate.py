"""x Tᵀ per block of features, in XLA: what every kernel that transforms must agree with."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float

from wush_jax.transforms import hadamard


def rotate(
    x: Float[Array, "*tokens K"],
    transform: BFloat16[Array, "C D D"] | None,
    hadamard_block: int | None = None,
) -> Float[Array, "*tokens K"]:
    """x Tᵀ, float32: products in bfloat16 for bfloat16 x, else in float32, sums in float32.

    Args:
      x: [*tokens, K], K = C D.
      transform: T; None for the identity or, with ``hadamard_block``, for Hadamard.
      hadamard_block: D of the Hadamard transform. It multiplies by signs, and once by the float32
        nearest to D^-½.
    """
    operand = x.dtype if x.dtype == jnp.bfloat16 else jnp.float32
    if hadamard_block is not None:
        signs = jnp.asarray(hadamard.signs(hadamard_block), operand)
        y = _dot("...cd,ed->...ce", _blocks(x, hadamard_block, operand), signs)
        y = y * jnp.float32(np.float32(hadamard_block**-0.5))
    elif transform is not None:
        blocks = _blocks(x, transform.shape[-1], operand)
        y = _dot("...cd,ced->...ce", blocks, transform.astype(operand))
    else:
        y = x
    return y.reshape(x.shape).astype(jnp.float32)


def _blocks(x: Array, block: int, dtype) -> Array:
    return x.reshape(*x.shape[:-1], x.shape[-1] // block, block).astype(dtype)


def _dot(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision="highest", preferred_element_type=jnp.float32)
