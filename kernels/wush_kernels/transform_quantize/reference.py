"""The same operations in XLA, built from `wush_jax.formats`: what the kernels must agree with."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from wush_jax import formats, hadamard, scales

E5M2_MAX = 57344.0


def rotate(
    x: Float[Array, "M K"],
    transform: Float[Array, "C D D"] | None,
    hadamard_block: int | None = None,
) -> Float[Array, "M K"]:
    """x Tᵀ per block, accumulated in float32; products in bf16 for bf16 x, else in float32."""
    operand = x.dtype if x.dtype == jnp.bfloat16 else jnp.float32
    if hadamard_block is not None:
        t = jnp.asarray(hadamard.signs(hadamard_block), operand)
        y = _dot("mcd,ed->mce", x.reshape(x.shape[0], -1, hadamard_block).astype(operand), t)
        y = y * jnp.float32(hadamard_block**-0.5)
    elif transform is not None:
        blocks = x.reshape(x.shape[0], -1, transform.shape[-1]).astype(operand)
        y = _dot("mcd,ced->mce", blocks, transform.astype(operand))
    else:
        y = x
    return y.reshape(x.shape).astype(jnp.float32)


def codes(rotated: Float[Array, "M K"]) -> tuple[UInt8[Array, "M K/2"], UInt8[Array, "M K/32"]]:
    """Packed public codes and E8M0 bytes."""
    q = formats.quantize(rotated, "mxfp4")
    return q.codes, q.scales


def folded(
    rotated: Float[Array, "M K"], shift: Int[Array, ""] | int = 0, dtype=jnp.float8_e5m2
) -> Float[Array, "M K"]:
    """element * 2^(byte - 127 + shift) in ``dtype`` (E5M2 or float16).

    Exact while byte - 127 + shift is in [-15, 13]. Above, it saturates at ±57344; below, it is
    rounded to the nearest number of ``dtype``, ties to even, so it flushes to zero. NaN stays NaN.
    """
    packed, stored = codes(rotated)
    values = formats.codes_to_values(packed, "mxfp4").reshape(*stored.shape, 32)
    n = jnp.clip(stored.astype(jnp.int32) - 127 + shift, -40, 20)
    y = values * jnp.where(stored == scales.E8M0_NAN, jnp.nan, scales.power_of_two(n))[..., None]
    y = jnp.clip(y, -E5M2_MAX, E5M2_MAX).reshape(rotated.shape)
    return y.astype(dtype)


def interleave(y: Array, parts: int) -> Array:
    """[M, K] -> [parts, M, K / parts]: column k goes to [k % parts, m, k // parts]."""
    return jnp.moveaxis(y.reshape(y.shape[0], -1, parts), 2, 0)


def _dot(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision="highest", preferred_element_type=jnp.float32)
