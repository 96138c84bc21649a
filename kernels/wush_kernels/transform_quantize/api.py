"""`transform_quantize`: activations to MXFP4, as codes and scales or as FP8 with folded scales."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float, Int, UInt8

from wush_jax import hadamard
from wush_kernels import _triton
from wush_kernels.transform_quantize import reference
from wush_kernels.transform_quantize.config import Config
from wush_kernels.transform_quantize.config import config as default_config

IMPLEMENTATIONS = ("triton", "xla")


def transform_quantize_folded(
    x: Float[Array, "M K"],
    transform: BFloat16[Array, "C D D"] | None,
    shift: Int[Array, ""] | int = 0,
    *,
    hadamard_block: int | None = None,
    dtype=jnp.float8_e5m2,
    interleave: int = 1,
    implementation: str = "triton",
    config: Config | None = None,
    compute_capability: int | None = None,
) -> Float[Array, "M K"]:
    """element * 2^(byte - 127 + shift), rule `wush` without its constant 1/3.

    Exact for group exponents byte - 127 + shift in [-15, 13]. Above, values saturate at ±57344;
    below, they round to the nearest E5M2, ties to even, and so flush to zero. A NaN or Inf makes
    NaN of its group, and with a transform of its token's neighbouring groups too; never of another
    token's.

    Args:
      x: bf16, f16 or f32; K divisible by 32 and by D.
      transform: T, or None for identity or, with ``hadamard_block``, Hadamard.
      shift: added to every group's exponent; |shift| <= 100. May be traced.
      hadamard_block: D of the Hadamard transform.
      dtype: float8_e5m2, or float16, which holds the same values.
      interleave: P > 1 returns [P, M, K/P] with column k at [k % P, m, k // P].
      implementation: "triton" or "xla".
      config: None for the default of the shape.
      compute_capability: None asks the driver.

    Raises:
      ValueError: shapes do not fit.
      NotImplementedError: Triton is missing.
    """
    M, K, D = _check(x, transform, hadamard_block)
    if implementation == "xla":
        y = reference.folded(reference.rotate(x, transform, hadamard_block), shift, dtype)
        return y if interleave == 1 else reference.interleave(y, interleave)
    _triton.require()
    from wush_kernels.transform_quantize import triton_kernel

    c = config or default_config(M, K, D, x.dtype.itemsize)
    t, arguments = _arguments(x, transform, hadamard_block, D)
    shape = (M, K) if interleave == 1 else (interleave, M, K // interleave)
    return _triton.call(
        triton_kernel.folded_kernel,
        x,
        t,
        jnp.asarray(shift, jnp.int32).reshape(1),
        M,
        out=jax.ShapeDtypeStruct(shape, dtype),
        grid=(K // c.width, -(-M // (c.block_m * c.row_tiles))),
        num_warps=c.num_warps,
        num_stages=max(c.stages, 1),
        compute_capability=compute_capability,
        K=K,
        INTERLEAVE=interleave,
        **arguments,
        **_tile(c),
    )


def transform_quantize_codes(
    x: Float[Array, "M K"],
    transform: BFloat16[Array, "C D D"] | None,
    *,
    hadamard_block: int | None = None,
    implementation: str = "triton",
    config: Config | None = None,
    compute_capability: int | None = None,
) -> tuple[UInt8[Array, "M K/2"], UInt8[Array, "M K/32"]]:
    """Packed public codes (low nibble = even k) and E8M0 scale bytes, rule `wush`.

    Args, Raises: as `transform_quantize_folded`.
    """
    M, K, D = _check(x, transform, hadamard_block)
    if implementation == "xla":
        return reference.codes(reference.rotate(x, transform, hadamard_block))
    _triton.require()
    from wush_kernels.transform_quantize import triton_kernel

    c = config or default_config(M, K, D, x.dtype.itemsize)
    t, arguments = _arguments(x, transform, hadamard_block, D)
    return _triton.call(
        triton_kernel.codes_kernel,
        x,
        t,
        M,
        out=[
            jax.ShapeDtypeStruct((M, K // 2), jnp.uint8),
            jax.ShapeDtypeStruct((M, K // 32), jnp.uint8),
        ],
        grid=(K // c.width, -(-M // (c.block_m * c.row_tiles))),
        num_warps=c.num_warps,
        num_stages=max(c.stages, 1),
        compute_capability=compute_capability,
        K=K,
        **arguments,
        **_tile(c),
    )


def _tile(c: Config) -> dict:
    return {"W": c.width, "BLOCK_M": c.block_m, "ROW_TILES": c.row_tiles, "STAGES": c.stages}


def _arguments(x: Array, transform: Array | None, hadamard_block: int | None, D: int):
    """The T operand (a stand-in for identity) and the kernel constants that describe it."""
    multiplier, stride = 1.0, D * D
    if hadamard_block is not None:
        transform = jnp.asarray(hadamard.signs(D), jnp.bfloat16)
        multiplier, stride = float(np.float32(D**-0.5)), 0
    # bf16 T is exact in tf32; so is float16 x. float32 x is split in three.
    precision = {"bfloat16": "bf16", "float16": "tf32"}.get(x.dtype.name, "tf32x3")
    constants = {
        "D": D,
        "T_STRIDE": stride,
        "TRANSFORM": transform is not None,
        "PRECISION": precision,
        "MULTIPLIER": multiplier,
    }
    return (jnp.zeros(1, jnp.bfloat16) if transform is None else transform), constants


def _check(x: Array, transform: Array | None, hadamard_block: int | None) -> tuple[int, int, int]:
    if x.ndim != 2 or x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise ValueError(f"x is bf16, f16 or f32 [M, K], not {x.dtype} {x.shape}")
    M, K = x.shape
    D = hadamard_block or (32 if transform is None else transform.shape[-1])
    if D not in (16, 32, 64, 128):
        raise ValueError(f"transform block D is 16, 32, 64 or 128, not {D}")
    if K % max(D, 32):
        raise ValueError(f"K must be a multiple of {max(D, 32)}; x is {x.shape}")
    if transform is not None and hadamard_block is None:
        if transform.shape != (K // D, D, D) or transform.dtype != jnp.bfloat16:
            raise ValueError(
                f"transform is bfloat16 {(K // D, D, D)} for x {x.shape}, "
                f"not {transform.dtype} {transform.shape}"
            )
    return M, K, D
