"""`expand` in XLA."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from wush_jax import formats
from wush_jax.formats import Format, scales

LIMITS = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
HIGHEST, LOWEST = 6, -23


def expand(
    codes: UInt8[Array, "N K_2"],
    stored: UInt8[Array, "N K_G"],
    offset: Int[Array, ""] | int,
    fmt: Format,
    dtype: jnp.dtype,
) -> Float[Array, "N K"]:
    """As `api.expand`, from the public layout."""
    values = formats.codes_to_values(codes, fmt).reshape(*stored.shape, fmt.group_size)
    if fmt.name == "mxfp4":
        n = stored.astype(jnp.int32) - 127 + offset
        kept = jnp.clip(n, LOWEST, HIGHEST)
        if jnp.dtype(dtype).name not in LIMITS:
            kept = kept - offset
        factor = jnp.where(n < LOWEST, 0, scales.power_of_two(kept))
    else:
        factor = scales.e4m3_decode(stored)
    y = (values * factor[..., None]).reshape(codes.shape[0], -1)
    limit = LIMITS.get(jnp.dtype(dtype).name)
    return (y if limit is None else jnp.clip(y, -limit, limit)).astype(dtype)
