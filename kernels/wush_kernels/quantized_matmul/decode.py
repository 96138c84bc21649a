"""`decode_matmul`: few tokens times 4-bit weights, by tensor cores in float16."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from wush_jax.formats import Format, get_format
from wush_jax.formats import private_layout as layout
from wush_kernels import _triton, words_ptx
from wush_kernels.quantized_matmul import decode_ptx, reduce_ptx, reference
from wush_kernels.quantized_matmul.decode_config import Config
from wush_kernels.quantized_matmul.decode_config import config as default_config

MOST_BLOCKS = 8  # of 8 tokens, in one program


def decode_matmul(
    activations: Float[Array, "M K"],
    codes: UInt8[Array, "N K_2"],
    stored: UInt8[Array, "N K_G"],
    exponents: Int[Array, "... 2"],
    global_scales: Sequence[Float[Array, "*_"]],
    *,
    format: str | Format = "mxfp4",
    codes_layout: str = "public",
    dtype=jnp.bfloat16,
    implementation: str = "triton",
    config: Config | None = None,
    compute_capability: int | None = None,
) -> Float[Array, "M N"]:
    """activations x weightsᵀ x global scales / 2^(shift + offset), reading the weights once.

    A weight is element * 2^(byte - 127 + offset) (mxfp4) or element * scale (nvfp4). It is exact in
    float16, products are exact and summed in float32. MXFP4 groups with byte - 127 + offset above
    6 saturate at 6, those below -18 lose bits.

    Args:
      activations: float8_e5m2 or float16, 2^shift times what they stand for.
      codes, stored: packed codes and E8M0 (per 32) or E4M3 (per 16) bytes, in ``codes_layout``
        ("public" or "private", see `layout`).
      exponents: int32 shift and offset. NVFP4 weights are not multiplied with 2^offset: give 0.
      global_scales: one or two float32 scalars, of any rank.
      implementation: "triton" or "xla".

    Raises:
      ValueError: shapes, dtypes or names do not fit.
      NotImplementedError: Triton is missing.
    """
    fmt = get_format(format)
    M, N, K = _check(activations, codes, stored, fmt, codes_layout)
    if implementation == "xla":
        return reference.matmul(
            activations, codes, stored, exponents, global_scales, fmt, codes_layout, dtype
        )
    _triton.require()
    from wush_kernels.quantized_matmul.decode_kernel import decode_kernel

    nvfp4, half = fmt.name == "nvfp4", activations.dtype == jnp.float16
    c = config or default_config(M, N, K)
    blocks = min(-(-M // 8), MOST_BLOCKS)
    scales = [jnp.asarray(scale, jnp.float32).reshape(1) for scale in global_scales]
    return _triton.call(
        decode_kernel,
        activations,
        codes,
        stored,
        exponents.reshape(2),
        scales[0],
        scales[-1],
        out=jax.ShapeDtypeStruct((M, N), dtype),
        grid=(-(-N // (16 * c.rows)), -(-M // (8 * blocks))),
        num_warps=c.warps,
        num_stages=1,
        fp_fusion=True,
        compute_capability=compute_capability,
        M=M,
        N=N,
        K=K,
        ROWS=c.rows,
        BLOCKS=blocks,
        WARPS=c.warps,
        BIAS=words_ptx.MXFP4_SHIFT + 29 - 127,
        FACTOR=2.0 ** -(words_ptx.NVFP4_SHIFT if nvfp4 else words_ptx.MXFP4_SHIFT),
        TWO_SCALES=len(scales) == 2,
        **_text(blocks, M, N, K, c, codes_layout == "private", nvfp4, half),
    )


@functools.lru_cache
def _text(
    blocks: int,
    M: int,
    N: int,
    K: int,
    c: Config,
    private: bool,
    nvfp4: bool,
    half: bool,
) -> dict:
    count = 4 * c.rows * blocks
    tiles = -(-K // decode_ptx.TILE)
    ragged = K % decode_ptx.TILE != 0 or tiles % c.warps != 0
    load, words = decode_ptx.load(c.rows, N, K, private, nvfp4)
    reduce, results = reduce_ptx.reduce(count, c.warps)
    step = decode_ptx.step(c.rows, blocks, M, K, private, nvfp4, half, ragged)
    return {
        "ZEROS": (*reduce_ptx.zeros(count), count),
        "LOAD": (*load, words),
        "STEP": (*step, count),
        "REDUCE": (*reduce, results),
    }


def _check(
    activations: Array, codes: Array, stored: Array, fmt: Format, codes_layout: str
) -> tuple[int, int, int]:
    if fmt.name not in ("mxfp4", "nvfp4"):
        raise ValueError(f"format is mxfp4 or nvfp4, not {fmt}")
    (M, K), N = activations.shape, codes.shape[0]
    if codes.shape != (N, K // 2) or stored.shape != (N, K // fmt.group_size) or K % 32:
        raise ValueError(
            f"activations {activations.shape}, codes {codes.shape} and scales {stored.shape} do "
            f"not fit; activations [M, K] with K a multiple of 32 take codes {(N, K // 2)} and "
            f"scales {(N, K // fmt.group_size)}"
        )
    if activations.dtype not in (jnp.float8_e5m2, jnp.float16):
        raise ValueError(f"activations are float8_e5m2 or float16, not {activations.dtype}")
    layout.check(codes_layout, N, K)
    return M, N, K
