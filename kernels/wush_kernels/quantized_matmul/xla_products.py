"""`fp8_matmul` and `bf16_matmul`: XLA's own matrix products, with a power of two folded in.

XLA folds a constant factor into its matrix product's alpha only where the factor has the result's
type; a power of two is exact in every one of them. A factor of any other kind costs a pass over the
result (70 us beside 280 us for 4096 x 14336 x 4096 on an H200).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def fp8_matmul(
    a: Float[Array, "M K"],
    b: Float[Array, "N K"],
    factor: float = 1.0,
    *,
    dtype=jnp.bfloat16,
    precise: bool = False,
) -> Float[Array, "M N"]:
    """factor * a bᵀ by XLA's FP8 matrix product, float32 sums.

    Args:
      a: float8_e5m2.
      b: float8_e4m3fn: XLA has no FP8 product of two E5M2 matrices.
      factor: a power of two.
      dtype: of the result.
      precise: promoted accumulation (XLA's precision "highest"): relative error some 1e-4 instead
        of 1e-3, 12 % slower.

    Raises:
      ValueError: factor is not a power of two.
    """
    rows = a.shape[0]
    if rows % 16:  # the hardware's unit
        a = jnp.pad(a, ((0, -rows % 16), (0, 0)))
    wide = jnp.dtype(dtype).itemsize < 4 and dtype != jnp.float16
    out = dtype if wide else jnp.float32  # float16 could overflow before the factor
    precision = lax.Precision.HIGHEST if precise else None
    return _times(_dot(a, b, out, precision)[:rows], factor).astype(dtype)


def bf16_matmul(
    a: Float[Array, "M K"], b: Float[Array, "N K"], factor: float = 1.0, *, dtype=jnp.bfloat16
) -> Float[Array, "M N"]:
    """factor * a bᵀ of bfloat16 matrices, float32 sums; ``factor`` a power of two.

    Raises:
      ValueError: factor is not a power of two.
    """
    out = dtype if dtype == jnp.bfloat16 else jnp.float32
    return _times(_dot(a, b, out, None), factor).astype(dtype)


def _dot(a: Array, b: Array, dtype, precision) -> Array:
    dimensions = (((1,), (1,)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=dtype)


def _times(y: Array, factor: float) -> Array:
    if math.frexp(factor)[0] != 0.5:
        raise ValueError(f"factor is a power of two, not {factor}")
    return y if factor == 1.0 else y * jnp.asarray(factor, y.dtype)
