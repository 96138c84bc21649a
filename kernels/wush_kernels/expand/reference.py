"""`expand` in XLA, and the E4M3 bytes of every element at every exponent."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from wush_jax import elements, formats, scales

E4M3_MAX = 448.0


def expand(
    codes: UInt8[Array, "N K/2"], stored: UInt8[Array, "N K/32"], offset: Int[Array, ""] | int
) -> Float[Array, "N K"]:
    """element * 2^(byte - 127 + offset) in E4M3: exact for exponents in [-8, 6].

    Above, saturates at ±448; below, rounds to the nearest E4M3, so flushes. Byte 255 gives NaN.
    """
    values = formats.codes_to_values(codes, "mxfp4").reshape(*stored.shape, 32)
    n = jnp.clip(stored.astype(jnp.int32) - 127 + offset, -31, 31)
    y = jnp.clip(values * scales.power_of_two(n)[..., None], -E4M3_MAX, E4M3_MAX)
    y = jnp.where((stored == scales.E8M0_NAN)[..., None], jnp.nan, y)
    return y.reshape(codes.shape[0], -1).astype(jnp.float8_e4m3fn)


def table() -> np.ndarray:
    """uint32 [64, 2]: row E + 31 holds the E4M3 bytes of the magnitudes at 2^E; row 63 is NaN."""
    exponents = np.arange(-31, 32)
    values = np.asarray(elements.E2M1_MAGNITUDES)[None, :] * 2.0 ** exponents[:, None]
    bits = np.minimum(values, E4M3_MAX).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    nan = np.full((1, 8), scales.E4M3_NAN, np.uint8)
    return np.ascontiguousarray(np.concatenate([bits.view(np.uint8), nan])).view("<u4")
