"""`wush_linear`: a whole quantized layer on the GPU, y = Q(x Tᵀ) Q(T⁻ᵀ W)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from wush_jax.formats import get_format
from wush_jax.kernel import QuantizedKernel
from wush_kernels.expand import expand, exponent_window
from wush_kernels.quantized_matmul import decode_matmul, fp8_matmul
from wush_kernels.quantized_matmul.config import MOST_TOKENS
from wush_kernels.transform_quantize import transform_quantize_folded


def wush_linear(
    x: Float[Array, "M K"],
    kernel: QuantizedKernel,
    *,
    dtype=jnp.bfloat16,
    shift: Int[Array, ""] | int = 0,
    offset: Int[Array, ""] | int | None = None,
    expanded: Float[Array, "N K"] | None = None,
    variant: str = "operand_bf16",
    precise: bool = False,
    compute_capability: int | None = None,
) -> Float[Array, "M N"]:
    """The layer without bias: few tokens read 4-bit weights, many expand them to FP8 first.

    The following must hold, and `exponent_window` checks the second:

    * the activations' group exponents plus ``shift`` are in [-15, 13]; above saturates, below
      flushes;
    * the weights' group exponents plus ``offset`` are in [-8, 6].

    Args:
      x: bf16, f16 or f32.
      kernel: one layer's, MXFP4 rule `wush` weights and activations, transform stored or Hadamard
        or identity.
      shift: static exponent of the activations, from calibration.
      offset: of `exponent_window`; None computes it from the kernel on every call.
      expanded: the E4M3 weights, if kept; None expands them on every call.
      variant: of `fp8_matmul`.
      precise: promoted accumulation in the FP8 product.

    Raises:
      NotImplementedError: another format, padding, stacked or batched kernels, or no Triton.
    """
    mxfp4 = get_format("mxfp4")
    if kernel.format != mxfp4 or kernel.act_format != mxfp4:
        raise NotImplementedError(
            f"takes {mxfp4} weights and activations, not {kernel.format} and {kernel.act_format}"
        )
    if kernel.codes.ndim != 2 or kernel.padded_features != kernel.features:
        raise NotImplementedError("takes one layer's kernel without batch axes or padded features")
    if kernel.transform is None and kernel.transform_name not in ("identity", "hadamard"):
        raise NotImplementedError(f"transform {kernel.transform_name!r} is not stored")
    if offset is None:
        offset, _ = exponent_window(kernel.scales, kernel.codes)
    block = kernel.block if kernel.transform_name == "hadamard" else None
    # Element values, their shift and offset are powers of two; the rest is the formats' constants.
    constant = (kernel.global_scale * kernel.act_global_scale).reshape(())
    power = _power_of_two(-(jnp.asarray(shift, jnp.int32) + jnp.asarray(offset, jnp.int32)))
    small = x.shape[0] <= MOST_TOKENS
    rows = transform_quantize_folded(
        x,
        kernel.transform if block is None else None,
        shift,
        hadamard_block=block,
        dtype=jnp.float16 if small else jnp.float8_e5m2,
        interleave=8 if small else 1,
        compute_capability=compute_capability,
    )
    if small:
        return decode_matmul(
            rows,
            kernel.codes,
            kernel.scales,
            offset,
            power * constant,
            dtype=dtype,
            compute_capability=compute_capability,
        )
    if expanded is None:
        expanded = expand(
            kernel.codes, kernel.scales, offset, compute_capability=compute_capability
        )
    if variant in ("split", "constant_f32", "constant_bf16"):
        third = (get_format(kernel.format).global_scale or 1.0) ** 2
        factor = (power, third) if variant == "split" else third
        y = fp8_matmul(rows, expanded, factor, dtype=dtype, variant=variant, precise=precise)
        return y if variant == "split" else y * power.astype(dtype)
    if variant == "operand_bf16":
        # One scalar product of two bfloat16 numbers would round; fold the constant exactly enough
        # by scaling each operand with its own: see `two_factors`.
        first, second = two_factors(constant)
        return _operand_product(rows, expanded, power * first, second, dtype, precise)
    return fp8_matmul(
        rows, expanded, power * constant, dtype=dtype, variant=variant, precise=precise
    )


def two_factors(constant: Float[Array, ""]) -> tuple[Array, Array]:
    """Two bfloat16 numbers (as float32) whose product is ``constant`` to about 2^-15.

    One of the 128 significands is tried for the first, the second is rounded, and the best kept.
    """
    first = 1.0 + jnp.arange(128, dtype=jnp.float32) / 128.0
    second = jax.lax.reduce_precision(constant / first, 8, 7)
    best = jnp.argmin(jnp.abs(first * second - constant))
    return first[best], second[best]


def _operand_product(a, b, a_scale, b_scale, dtype, precise):
    """XLA folds both bfloat16 scales into its FP8 GEMM, and writes ``dtype`` directly."""
    wide = jnp.bfloat16
    return jax.lax.dot_general(
        a.astype(wide) * a_scale.astype(wide),
        b.astype(wide) * b_scale.astype(wide),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if precise else None,
        preferred_element_type=dtype,
    )


def _power_of_two(n: Int[Array, ""]) -> Float[Array, ""]:
    bits = (jnp.clip(n, -126, 127) + 127) << 23
    return jax.lax.bitcast_convert_type(bits.astype(jnp.int32), jnp.float32)
