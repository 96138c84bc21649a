"""`expand`: 4-bit weights to FP8 or bfloat16, just before a matrix product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from wush_jax.formats import Format, get_format
from wush_jax.formats import private_layout as layout
from wush_kernels import _triton, words_ptx
from wush_kernels.expand import expand_ptx, reference
from wush_kernels.expand.config import Config
from wush_kernels.expand.config import config as default_config

IMPLEMENTATIONS = ("triton", "xla")


def expand(
    codes: UInt8[Array, "N K_2"],
    stored: UInt8[Array, "N K_G"],
    exponents: Int[Array, "... 2"],
    *,
    format: str | Format = "mxfp4",
    codes_layout: str = "public",
    dtype=jnp.float8_e4m3fn,
    implementation: str = "triton",
    config: Config | None = None,
    compute_capability: int | None = None,
) -> Float[Array, "N K"]:
    """element * 2^(byte - 127 + offset) in FP8, element * scale in bfloat16.

    Exact in E4M3 where byte - 127 + offset lies in [-8, 6], in E5M2 in [-15, 6], in bfloat16 in
    [-18, 6] (on its way there; MXFP4 alone). Groups above saturate at exponent 6, those below round
    to the nearest number of the type, and so flush to zero. NVFP4 goes to bfloat16 only.

    Args:
      codes, stored: packed codes and E8M0 or E4M3 bytes, in ``codes_layout`` ("public",
        "private").
      exponents: int32, two numbers; the second is the offset (mxfp4).
      dtype: float8_e4m3fn, float8_e5m2 or bfloat16.

    Raises:
      ValueError: shapes, dtypes or names do not fit.
      NotImplementedError: Triton is missing.
    """
    fmt = get_format(format)
    N, K, G = codes.shape[0], 2 * codes.shape[1], fmt.group_size
    name = jnp.dtype(dtype).name
    if K % 32 or stored.shape != (N, K // G):
        raise ValueError(f"codes {codes.shape} take scales {(N, K // G)}, not {stored.shape}")
    if fmt.name not in ("mxfp4", "nvfp4") or name not in expand_ptx.WORDS:
        raise ValueError(f"expands mxfp4 and nvfp4 to {', '.join(expand_ptx.WORDS)}, not {name}")
    if fmt.name == "nvfp4" and name != "bfloat16":
        raise ValueError(f"nvfp4 is exact in bfloat16, not in {name}")
    layout.check(codes_layout, N, K)
    private = codes_layout == "private"
    if implementation == "xla":
        if private:
            codes, stored = layout.to_public(codes, stored)
        return reference.expand(codes, stored, exponents.reshape(-1)[1], fmt, jnp.dtype(dtype))
    _triton.require()
    from wush_kernels.expand.triton_kernel import expand_kernel

    c = config or default_config(N, K)
    words = expand_ptx.WORDS[name]
    pieces = N * K // (8 * words)
    return _triton.call(
        expand_kernel,
        codes,
        stored,
        exponents.reshape(2),
        out=jax.ShapeDtypeStruct((N, K), dtype),
        grid=(-(-pieces // (c.warps * 32 * c.pieces)),),
        num_warps=c.warps,
        num_stages=1,
        compute_capability=compute_capability,
        N=N,
        K=K,
        G=G,
        PRIVATE=private,
        WORDS=words,
        PIECES=c.pieces,
        WARPS=c.warps,
        TEXT=expand_ptx.expand(name, private, fmt.name == "nvfp4"),
        BIAS=words_ptx.MXFP4_SHIFT + 29 - 127,
        SHIFT=words_ptx.NVFP4_SHIFT if fmt.name == "nvfp4" else words_ptx.MXFP4_SHIFT,
    )
