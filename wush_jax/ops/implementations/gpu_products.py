"""The products of a quantized layer on the GPU: rows [M, K] times a kernel, [M, N] in ``dtype``."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from wush_jax import formats
from wush_jax.formats import scales
from wush_jax.formats.exactness import SUM
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_kernels.expand import expand
from wush_kernels.quantized_matmul import bf16_matmul, decode_matmul, fp8_matmul

FEW = "4-bit weights decoded to float16 inside the product"


def few(
    rows: Float[Array, "M K"], kernel: QuantizedKernel, backend: str, *, dtype: jnp.dtype
) -> Float[Array, "M N"]:
    """Weights decoded inside the product; exact to float32 sums."""
    return decode_matmul(
        rows,
        kernel.codes,
        kernel.scales,
        exponents(kernel),
        _global_scales(kernel),
        format=kernel.format,
        codes_layout=kernel.layout,
        dtype=dtype,
        implementation=backend,
    )


def fp8(
    rows: Float[Array, "M K"], kernel: QuantizedKernel, backend: str, *, dtype: jnp.dtype, name: str
) -> Float[Array, "M N"]:
    """E5M2 rows times weights expanded to E4M3. Their common factor is the same for all layers."""
    factor = _constant(kernel)
    assert factor is not None
    factor *= 2.0**-SUM
    if name == "fp8_mosaic" and backend == "triton":
        from wush_kernels.quantized_matmul.mosaic_gpu import MIXED_FP8, mosaic_matmul

        weights = _expand(kernel, jnp.float8_e4m3fn if MIXED_FP8 else jnp.float8_e5m2, backend)
        out = jnp.float32 if dtype == jnp.float16 else dtype
        return mosaic_matmul(rows, weights, factor, dtype=out).astype(dtype)
    weights = _expand(kernel, jnp.float8_e4m3fn, backend)
    return fp8_matmul(rows, weights, factor, dtype=dtype, precise=name == "fp8_precise")


def bf16(
    rows: Float[Array, "M K"], kernel: QuantizedKernel, backend: str, *, dtype: jnp.dtype
) -> Float[Array, "M N"]:
    """bfloat16 rows times weights expanded to bfloat16, exactly.

    Rows are E5M2 where the weights alone do not fit FP8. There, and by rule `nvidia`, the factor is
    known only at run time and costs a pass over the result.
    """
    weights = _expand(kernel, jnp.bfloat16, backend)
    factor = _constant(kernel)
    if kernel.act_format is None and kernel.format.global_scale is not None:
        factor = 1.0  # `encode` has taken it along
    if factor is not None and rows.dtype == jnp.bfloat16:
        return bf16_matmul(rows, weights, factor, dtype=dtype)
    y = bf16_matmul(rows.astype(jnp.bfloat16), weights, dtype=jnp.float32)
    for global_scale in _global_scales(kernel):
        y = y * global_scale.reshape(())
    if rows.dtype == jnp.float8_e5m2:
        y = y * scales.power_of_two(-exponents(kernel)[0])
    return y.astype(dtype)


def block_scaled(
    rows: tuple[Array, Array], kernel: QuantizedKernel, backend: str, *, dtype: jnp.dtype
) -> Float[Array, "M N"]:
    """Codes and scales of both sides on native FP4 units."""
    from wush_kernels.quantized_matmul.block_scaled import block_scaled_matmul

    first, second = _global_scales(kernel)
    return block_scaled_matmul(
        *rows,
        kernel.codes,
        kernel.scales,
        (first * second).reshape(1),
        format=kernel.format,
        dtype=dtype,
        implementation=backend,
    )


def exponents(kernel: QuantizedKernel) -> Int[Array, " 2"]:
    """Shift of the activations and offset of the weights."""
    assert kernel.exponents is not None
    return kernel.exponents.reshape(2)


def _expand(kernel: QuantizedKernel, dtype, backend: str) -> Array:
    if kernel.expanded is not None and dtype == jnp.float8_e4m3fn:
        return kernel.expanded
    return expand(
        kernel.codes,
        kernel.scales,
        exponents(kernel),
        format=kernel.format,
        codes_layout=kernel.layout,
        dtype=dtype,
        implementation=backend,
    )


def _global_scales(kernel: QuantizedKernel) -> list[Array]:
    second = [] if kernel.act_global_scale is None else [kernel.act_global_scale]
    return [kernel.global_scale, *second]


def _constant(kernel: QuantizedKernel) -> float | None:
    """The product of the two global scales, a power of two; None if it is not known here."""
    if kernel.act_format is None:
        return None
    factors = (
        kernel.format.global_scale,
        formats.activation_scale(kernel.act_format, kernel.format),
    )
    if factors[0] is None or factors[1] is None:
        return None
    return float(np.float32(factors[0]) * np.float32(factors[1]))
