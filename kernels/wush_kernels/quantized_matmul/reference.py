"""The products in XLA."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from wush_jax.formats import Format, scales
from wush_jax.formats import private_layout as layout
from wush_kernels.expand import reference as expand_reference


def matmul(
    activations: Float[Array, "M K"],
    codes: UInt8[Array, "N K_2"],
    stored: UInt8[Array, "N K_G"],
    exponents: Int[Array, "... 2"],
    global_scales: Sequence[Float[Array, "*_"]],
    fmt: Format,
    codes_layout: str,
    dtype,
) -> Float[Array, "M N"]:
    """As `decode.decode_matmul`, products and sums in float32."""
    if codes_layout == "private":
        codes, stored = layout.to_public(codes, stored)
    shift, offset = exponents.reshape(2)
    weights = expand_reference.expand(codes, stored, offset, fmt, jnp.dtype(jnp.float32))
    y = jnp.einsum(
        "mk,nk->mn",
        activations.astype(jnp.float32),
        weights,
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    for scale in global_scales:
        y = y * jnp.asarray(scale, jnp.float32).reshape(())
    return (y * scales.power_of_two(-shift)).astype(dtype)
