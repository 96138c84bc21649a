"""Q(x Tᵀ) on the GPU: rows [M, K] of x in the type that each product reads.

``backend`` is "triton", or "xla" for references of the same number formats.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from wush_jax import formats
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops.implementations.gpu_products import exponents
from wush_kernels.transform_quantize import (
    transform_quantize_codes,
    transform_quantize_folded,
    transform_quantize_values,
)


def folded(x: Float[Array, "M K"], kernel: QuantizedKernel, backend: str) -> Float[Array, "M K"]:
    """MXFP4 as E5M2, 2^shift times what it stands for."""
    shift = exponents(kernel)  # of which the first number counts
    return transform_quantize_folded(x, kernel.transform, shift, **_options(kernel, backend))


def few_values(
    x: Float[Array, "M K"], kernel: QuantizedKernel, backend: str
) -> Float[Array, "M K"]:
    """NVFP4 values, or x Tᵀ of weight-only layers, as float16, 2^shift times what it stands for."""
    return transform_quantize_values(
        x,
        kernel.transform,
        format=kernel.act_format,
        shift=exponents(kernel),
        dtype=jnp.float16,
        **_options(kernel, backend),
    )


def many_values(
    x: Float[Array, "M K"], kernel: QuantizedKernel, backend: str
) -> Float[Array, "M K"]:
    """NVFP4 values as bfloat16, or x Tᵀ of weight-only layers times the weights' global scale."""
    options = _options(kernel, backend)
    if kernel.act_format is None:  # takes the weights' factor along, so that the product has none
        options["multiplier"] = kernel.format.global_scale or 1.0
    return transform_quantize_values(
        x, kernel.transform, format=kernel.act_format, dtype=jnp.bfloat16, **options
    )


def codes(
    x: Float[Array, "M K"], kernel: QuantizedKernel, backend: str
) -> tuple[UInt8[Array, "M Kp"], UInt8[Array, "M Kg"]]:
    """Packed codes and scale bytes."""
    assert kernel.act_format is not None
    options = _options(kernel, backend)
    return transform_quantize_codes(x, kernel.transform, format=kernel.act_format, **options)


def _options(kernel: QuantizedKernel, backend: str) -> dict[str, Any]:
    fmt, act = kernel.format, kernel.act_format
    constant = None if act is None else formats.activation_scale(act, fmt)
    return {
        "global_scale": kernel.act_global_scale if constant is None else constant,
        "hadamard_block": kernel.hadamard_block,
        "implementation": backend,
    }
