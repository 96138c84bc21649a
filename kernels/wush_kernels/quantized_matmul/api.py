"""Products of quantized activations and quantized weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from wush_kernels import _triton
from wush_kernels.quantized_matmul.config import Config
from wush_kernels.quantized_matmul.config import config as default_config

# How the scalar factor of `fp8_matmul` is written, for XLA to fold it into its FP8 GEMM.
VARIANTS = (
    "plain",
    "operand_bf16",
    "operand_f32",
    "constant_f32",
    "constant_bf16",
    "split",
    "epilogue_f32",
    "epilogue_bf16",
)


def fp8_matmul(
    a: Float[Array, "M K"],
    b: Float[Array, "N K"],
    factor: Float[Array, ""] | float,
    *,
    dtype=jnp.bfloat16,
    variant: str = "operand_bf16",
    precise: bool = False,
) -> Float[Array, "M N"]:
    """a bᵀ * factor by XLA's FP8 GEMM; a E5M2, b E4M3, both K-major.

    Args:
      factor: a scalar. `"plain"` ignores it (a lower bound for timings). `"operand_bf16"` rounds it
        to bfloat16, exact for powers of two; `"split"` takes (power of two, Python float).
      dtype: of the result.
      variant: one of `VARIANTS`.
      precise: promoted accumulation (XLA's precision "highest").

    Raises:
      ValueError: no such variant.
    """
    precision = lax.Precision.HIGHEST if precise else None

    def dot(x, y, out):
        return lax.dot_general(
            x, y, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=out
        )

    if variant == "plain":
        return dot(a, b, dtype)
    if variant in ("operand_bf16", "operand_f32"):
        wide = jnp.bfloat16 if variant == "operand_bf16" else jnp.float32
        scale = jnp.asarray(factor, wide)
        one = jnp.ones((), wide)
        return dot(a.astype(wide) * scale, b.astype(wide) * one, dtype).astype(dtype)
    if variant == "constant_f32":
        return (dot(a, b, jnp.float32) * jnp.float32(float(factor))).astype(dtype)
    if variant == "constant_bf16":
        return dot(a, b, dtype) * jnp.asarray(float(factor), dtype)
    if variant == "split":
        power, constant = factor
        scale = jnp.asarray(power, jnp.bfloat16)
        one = jnp.ones((), jnp.bfloat16)
        y = dot(a.astype(jnp.bfloat16) * scale, b.astype(jnp.bfloat16) * one, jnp.float32)
        return (y * jnp.float32(constant)).astype(dtype)
    if variant == "epilogue_f32":
        return (dot(a, b, jnp.float32) * jnp.asarray(factor, jnp.float32)).astype(dtype)
    if variant == "epilogue_bf16":
        return (dot(a, b, dtype).astype(jnp.float32) * jnp.asarray(factor, jnp.float32)).astype(
            dtype
        )
    raise ValueError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS)}")


def decode_matmul(
    activations: Float[Array, "8 M K/8"],
    codes: UInt8[Array, "N K/2"],
    stored: UInt8[Array, "N K/32"],
    offset: Int[Array, ""] | int,
    factor: Float[Array, ""] | float,
    *,
    dtype=jnp.bfloat16,
    config: Config | None = None,
    compute_capability: int | None = None,
) -> Float[Array, "M N"]:
    """activations x (element * 2^(byte - 127 + offset))ᵀ * factor, reading 4-bit weights once.

    Exact products, float32 sums, for group exponents byte - 127 + offset in [-18, 6]; groups below
    round toward zero, above saturate at the weight exponent 6.

    Args:
      activations: float16, interleaved by 8 (`transform_quantize_folded(..., interleave=8)`).
      factor: a float32 scalar.

    Raises:
      ValueError: shapes do not fit.
      NotImplementedError: Triton is missing.
    """
    parts, M, eighth = activations.shape
    N, half = codes.shape
    K = 2 * half
    if parts != 8 or 8 * eighth != K or stored.shape != (N, K // 32) or K % 32:
        raise ValueError(
            f"activations {activations.shape}, codes {codes.shape} and scales {stored.shape} "
            f"do not fit; for codes [N, K/2] give [8, M, K/8] and [N, K/32]"
        )
    if activations.dtype != jnp.float16:
        raise ValueError(f"activations are float16, not {activations.dtype}")
    _triton.require()
    from wush_kernels.quantized_matmul import triton_kernel

    c = config or default_config(M, N, K)
    scale = jnp.asarray(factor, jnp.float32) * 32.0  # the kernel's weights carry 2^-5
    out = jax.ShapeDtypeStruct((c.split, M, N), dtype if c.split == 1 else jnp.float32)
    y = _triton.call(
        triton_kernel.decode_kernel,
        activations,
        codes,
        stored,
        jnp.asarray(offset, jnp.int32).reshape(1),
        scale.reshape(1),
        M,
        out=out,
        grid=(-(-N // c.block_n), c.split, -(-M // c.block_m)),
        num_warps=c.num_warps,
        num_stages=c.stages,
        fp_fusion=True,
        compute_capability=compute_capability,
        N=N,
        K=K,
        BLOCK_M=c.block_m,
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        SPLIT=c.split,
        STAGES=c.stages,
        SWAP=c.swap,
    )
    if c.split == 1:
        return y[0]
    return (jnp.sum(y, axis=0) * scale).astype(dtype)
