"""A whole quantized layer on the GPU, y = Q(x Tᵀ) Q(T⁻ᵀ W), in two steps: `encode`, `matmul`.

    tokens      activations          weights                       product
    up to 64    E5M2 or float16      4 bits, decoded to float16    `decode_matmul`
    more, fp8   E5M2                 expanded to E4M3              `fp8_matmul` or Mosaic GPU
    more, bf16  bfloat16             expanded to bfloat16          `bf16_matmul`
    any, native codes and scales     4 bits                        `block_scaled_matmul`

The first row reads 4-bit weights once and is bound by memory. The next two expand the weights
before each product: 24 us beside 300 us for 4096 x 14336 x 4096 in FP8 on an H200.

Few tokens take two kernels, not one. A program of their product owns 16 or 32 output features; to
transform the tokens itself it would read all of T, 2 D bytes for each of K features, beside the 8.5
or 17 bytes of weights that it has there. Transforming them once takes 3 us in all.

``name`` is one in `ops.dispatch.IMPLEMENTATIONS`; ``backend`` is "triton", "xla" (references
of the same number formats), or "auto": Triton where the program is compiled for CUDA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from wush_kernels import _triton
from wush_kernels.transform_quantize import (
    transform_quantize_codes,
    transform_quantize_folded,
    transform_quantize_values,
)

from wush_jax import formats
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops.implementations import gpu_products as products
from wush_jax.ops.implementations.batching import fold_rows

MOST_FEW = 64  # tokens up to which weights are decoded inside the product


def encode(
    x: Float[Array, "M K"], kernel: QuantizedKernel, name: str, *, backend: str = "auto"
) -> Any:
    """Q(x Tᵀ) in the type that `matmul` reads, see above.

    Args:
      x: bfloat16, float16 or float32. NaN or Inf reaches its own row only.
      kernel: one that `wush_jax.ops.dispatch.choose` gives to ``name``.
    """
    encode_rows = functools.partial(_encode, name=name, few=x.shape[0] <= MOST_FEW)
    return fold_rows(functools.partial(_on_gpu, encode_rows, backend))(x, kernel)


def matmul(
    rows: Any, kernel: QuantizedKernel, dtype: jnp.dtype, name: str, *, backend: str = "auto"
) -> Float[Array, "M N"]:
    """Encoded rows times a kernel, float32 sums, global scales applied."""
    first = jax.tree.leaves(rows)[0]
    if name == "block_scaled":
        product = products.block_scaled
    elif first.dtype == jnp.float16 or (
        first.dtype == jnp.float8_e5m2 and first.shape[0] <= MOST_FEW
    ):
        product = products.few
    elif name.startswith("fp8"):
        product = functools.partial(products.fp8, name=name)
    else:
        product = products.bf16
    run = functools.partial(_on_gpu, functools.partial(product, dtype=dtype), backend)
    return fold_rows(run)(rows, kernel)


def _encode(x: Array, kernel: QuantizedKernel, backend: str, *, name: str, few: bool) -> Any:
    fmt, act = kernel.format, kernel.act_format
    scale = None if act is None else formats.activation_scale(act, fmt)
    scale = kernel.act_global_scale if scale is None else scale  # data's own, or None
    hadamard = kernel.transform_name == "hadamard"
    options: dict[str, Any] = {
        "global_scale": scale,
        "hadamard_block": kernel.block if hadamard else None,
        "implementation": backend,
    }
    if name == "block_scaled":
        assert act is not None
        return transform_quantize_codes(x, kernel.transform, format=act, **options)
    shift = products.exponents(kernel)  # of which the first number counts
    if act is not None and act.name == "mxfp4":
        return transform_quantize_folded(x, kernel.transform, shift, **options)
    if act is None and not few:  # takes the weights' factor along, so that the product has none
        options["multiplier"] = fmt.global_scale or 1.0
    return transform_quantize_values(
        x,
        kernel.transform,
        format=act,
        shift=shift if few else 0,
        dtype=jnp.float16 if few else jnp.bfloat16,
        **options,
    )


def _on_gpu(run: Callable, backend: str, rows: Any, kernel: QuantizedKernel) -> Any:
    """``run(rows, kernel, backend)``, "auto" resolved."""
    if backend != "auto":
        return run(rows, kernel, backend)
    if _triton.reason_unavailable() is not None or jax.default_backend() != "gpu":
        return run(rows, kernel, "xla")
    return jax.lax.platform_dependent(
        rows,
        kernel,
        cuda=lambda rows, kernel: run(rows, kernel, "triton"),
        default=lambda rows, kernel: run(rows, kernel, "xla"),
    )
