"""The same operations in XLA, built from `wush_jax.formats`: what the kernels must agree with."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from wush_jax import formats
from wush_jax.formats import Format, scales

E5M2_MAX = 57344.0
F16_MAX = 65504.0


def codes(
    rotated: Float[Array, "M K"],
    format: str | Format = "mxfp4",
    multiplier: float = 1.0,
    global_scale: Float[Array, "*_"] | float | None = None,
) -> tuple[UInt8[Array, "M K_2"], UInt8[Array, "M K_G"]]:
    """Packed public codes and scale bytes."""
    q = formats.quantize(_times(rotated, multiplier), format, global_scale=_scalar(global_scale))
    return q.codes, q.scales


def folded(
    rotated: Float[Array, "M K"],
    shift: Int[Array, ""] | int = 0,
    dtype=jnp.float8_e5m2,
    multiplier: float = 1.0,
    global_scale: Float[Array, "*_"] | float | None = None,
) -> Float[Array, "M K"]:
    """element * 2^(byte - 127 + shift) in ``dtype`` (E5M2 or float16).

    Exact while byte - 127 + shift is in [-15, 13]. Above, it saturates at ±57344; below, it is
    rounded to the nearest number of ``dtype``, ties to even, so it flushes to zero. NaN stays NaN.
    """
    packed, stored = codes(rotated, "mxfp4", multiplier, global_scale)
    elements = formats.codes_to_values(packed, "mxfp4").reshape(*stored.shape, 32)
    n = jnp.clip(stored.astype(jnp.int32) - 127 + shift, -40, 20)
    y = elements * jnp.where(stored == scales.E8M0_NAN, jnp.nan, scales.power_of_two(n))[..., None]
    return jnp.clip(y, -E5M2_MAX, E5M2_MAX).reshape(rotated.shape).astype(dtype)


def values(
    rotated: Float[Array, "M K"],
    format: str | Format,
    global_scale: Float[Array, "*_"] | float | None,
    shift: Int[Array, ""] | int,
    dtype,
) -> Float[Array, "M K"]:
    """element * group scale * 2^shift; float16 saturates at ±65504, NaN stays NaN."""
    y, _ = formats.quantized_values(rotated, format, global_scale=_scalar(global_scale))
    y = y * scales.power_of_two(jnp.asarray(shift, jnp.int32))
    return (jnp.clip(y, -F16_MAX, F16_MAX) if dtype == jnp.float16 else y).astype(dtype)


def rounded(
    rotated: Float[Array, "M K"],
    precision,
    shift: Int[Array, ""] | int,
    dtype,
    multiplier: float = 1.0,
) -> Float[Array, "M K"]:
    """multiplier * rotated in ``precision``, times 2^shift; finite saturate at ±65504 (float16)."""
    info = jnp.finfo(precision)
    # reduce_precision, as XLA may drop a conversion and its inverse
    y = lax.reduce_precision(_times(rotated, multiplier), info.nexp, info.nmant)
    scaled = y * scales.power_of_two(jnp.asarray(shift, jnp.int32))
    if dtype == jnp.float16:
        scaled = jnp.where(jnp.isfinite(y), jnp.clip(scaled, -F16_MAX, F16_MAX), y)
    return scaled.astype(dtype)


def pad(y: Array, rows: int) -> Array:
    """Rows of zeros below, up to ``rows``."""
    return jnp.concatenate([y, jnp.zeros((rows - len(y), y.shape[1]), y.dtype)])


def _times(rotated: Array, multiplier: float) -> Array:
    if multiplier == 1.0:
        return rotated
    return scales.times(rotated, jnp.asarray(np.float32(multiplier)))


def _scalar(global_scale: Array | float | None) -> Array | None:
    if global_scale is None:
        return None
    return jnp.asarray(global_scale, jnp.float32).reshape(())
