"""The products in XLA."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from wush_jax import formats, scales


def matmul(
    activations: Float[Array, "M K"],
    codes: UInt8[Array, "N K/2"],
    stored: UInt8[Array, "N K/32"],
    offset: Int[Array, ""] | int,
    factor: Float[Array, ""],
    dtype=jnp.bfloat16,
) -> Float[Array, "M N"]:
    """activations x (element * 2^(byte - 127 + offset))ᵀ * factor, products and sums in float32."""
    values = formats.codes_to_values(codes, "mxfp4").reshape(*stored.shape, 32)
    n = jnp.clip(stored.astype(jnp.int32) - 127 + offset, -60, 60)
    weights = (values * scales.power_of_two(n)[..., None]).reshape(codes.shape[0], -1)
    y = jnp.einsum(
        "mk,nk->mn",
        activations.astype(jnp.float32),
        weights,
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    return (y * factor).astype(dtype)
