"""`expand`: 4-bit weights to E4M3, just before an FP8 matrix product; and when that is exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from wush_jax import formats, scales
from wush_kernels import _triton
from wush_kernels.expand import reference
from wush_kernels.expand.config import Config
from wush_kernels.expand.config import config as default_config

IMPLEMENTATIONS = ("triton", "xla")
LOWEST, HIGHEST = -8, 6  # exponents at which every E2M1 value is exactly an E4M3 number


def expand(
    codes: UInt8[Array, "N K/2"],
    stored: UInt8[Array, "N K/32"],
    offset: Int[Array, ""] | int,
    *,
    implementation: str = "triton",
    config: Config | None = None,
    compute_capability: int | None = None,
) -> Float[Array, "N K"]:
    """element * 2^(byte - 127 + offset) in E4M3.

    Exact where byte - 127 + offset is in [-8, 6], see `exponent_window`. Above, it saturates at
    ±448; below, it rounds to the nearest E4M3, so groups below flush. Scale byte 255 gives NaN.

    Args:
      codes: packed, low nibble = even k.
      stored: E8M0 bytes.
      offset: an integer, may be traced.

    Raises:
      ValueError: shapes do not fit.
      NotImplementedError: Triton is missing.
    """
    N, half = codes.shape
    if half % 16 or stored.shape != (N, half // 16):
        raise ValueError(f"codes {codes.shape} take scales {(N, half // 16)}, not {stored.shape}")
    if implementation == "xla":
        return reference.expand(codes, stored, offset)
    _triton.require()
    from wush_kernels.expand import triton_kernel

    c = config or default_config(N, 2 * half)
    groups = stored.size
    return _triton.call(
        triton_kernel.expand_kernel,
        codes,
        stored,
        jnp.asarray(reference.table()),
        jnp.asarray(offset, jnp.int32).reshape(1),
        groups,
        out=jax.ShapeDtypeStruct((N, 2 * half), jnp.float8_e4m3fn),
        grid=(-(-groups // c.groups),),
        num_warps=c.num_warps,
        num_stages=1,
        compute_capability=compute_capability,
        BLOCK=c.groups,
    )


def exponent_window(
    stored: UInt8[Array, "N K/32"], codes: UInt8[Array, "N K/2"]
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """(offset, fits): the offset that puts the largest group exponent at +6, and whether all fit.

    Groups of zero codes do not count. A NaN scale never fits.
    """
    magnitudes = formats.unpack(codes).reshape(*stored.shape, 32) & 7
    counts = jnp.any(magnitudes != 0, axis=-1)
    exponent = stored.astype(jnp.int32) - 127
    top = jnp.max(jnp.where(counts, exponent, -128))
    bottom = jnp.min(jnp.where(counts, exponent, 256))
    empty = ~jnp.any(counts)
    offset = jnp.where(empty, 0, HIGHEST - top)
    fits = empty | (top - bottom <= HIGHEST - LOWEST)
    return offset, fits & ~jnp.any(stored == scales.E8M0_NAN)
