"""Triton kernels: x Tᵀ per block, then quantization of each group, in one pass over x.

Glossary: a program owns W columns (whole groups of G, whole blocks of D) and walks down ROW_TILES
tiles of BLOCK_M rows, so that the W x W tile of T is read once. x has M rows, the output ``rows``;
rows from M on are written as zeros. RATIO: see `groups.load_ratio`.

The following hold:

* The arithmetic after x Tᵀ is that of `wush_jax.formats.quantize`, bit for bit.
* NaN or Inf in a row reaches that row's W columns only.
"""

import triton
import triton.language as tl

from wush_kernels.transform_quantize import e2m1, groups
from wush_kernels.transform_quantize.rotate import rotate, transform_tile

_E5M2_MAX = tl.constexpr(57344.0)
_F16_MAX = tl.constexpr(65504.0)


@triton.jit
def _saturate(y, limit: tl.constexpr):
    return tl.minimum(tl.maximum(y, -limit, tl.PropagateNan.ALL), limit, tl.PropagateNan.ALL)


@triton.jit
def values_kernel(
    x_ptr,
    t_ptr,
    g_ptr,
    shift_ptr,
    M,
    rows,
    out_ptr,
    K: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROW_TILES: tl.constexpr,
    T_STRIDE: tl.constexpr,
    TRANSFORM: tl.constexpr,
    PRECISION: tl.constexpr,
    NORM: tl.constexpr,
    FORMAT: tl.constexpr,
    RATIO: tl.constexpr,
    BASE: tl.constexpr,
):
    """out[m, k] = element * group scale * 2^shift; FORMAT "mxfp4" (rule `wush` without its 1/3,
    saturating at the largest E5M2), "nvfp4", or "none": RATIO * x Tᵀ in x's precision, times
    2^shift."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    first = tl.program_id(0) * W
    columns = first + tl.arange(0, W)
    shift = tl.load(shift_ptr)
    ratio = groups.load_ratio(g_ptr, RATIO, BASE)
    t = transform_tile(t_ptr, first, D, W, T_STRIDE) if TRANSFORM else 0
    start = tl.program_id(1) * (ROW_TILES * BLOCK_M)
    for i in range(ROW_TILES):
        row = start + i * BLOCK_M + tl.arange(0, BLOCK_M)
        wide = row.to(tl.int64)[:, None]
        x = tl.load(x_ptr + wide * K + columns[None, :], mask=(row < M)[:, None], other=0.0)
        y = rotate(x, t, TRANSFORM, PRECISION, NORM)
        if FORMAT == "none":
            if RATIO != 1.0:
                y = y * ratio
            y = y.to(x.dtype).to(tl.float32)
            r = y * e2m1.power_of_two(shift)
            if dtype == tl.float16:
                r = tl.where(tl.abs(y) < float("inf"), _saturate(r, _F16_MAX), y)
        elif FORMAT == "mxfp4":
            v = tl.reshape(y, [BLOCK_M, W // 32, 32])
            r = groups.mxfp4_folded(v, groups.magnitude(v), ratio, shift, RATIO)
            r = tl.reshape(r, [BLOCK_M, W])
            if dtype == tl.float16:  # the conversion to E5M2 saturates by itself
                r = _saturate(r, _E5M2_MAX)
        else:
            v = tl.reshape(y, [BLOCK_M, W // 16, 16])
            r, scale, _ = groups.nvfp4_units(v, groups.magnitude(v), ratio, RATIO, e2m1.ONE)
            r = tl.reshape(r * (scale * e2m1.power_of_two(shift)), [BLOCK_M, W])
            if dtype == tl.float16:
                r = _saturate(r, _F16_MAX)
        target = out_ptr + wide * K + columns[None, :]
        tl.store(target, r.to(dtype), mask=(row < rows)[:, None])


@triton.jit
def codes_kernel(
    x_ptr,
    t_ptr,
    g_ptr,
    M,
    rows,
    codes_ptr,
    scales_ptr,
    K: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROW_TILES: tl.constexpr,
    T_STRIDE: tl.constexpr,
    TRANSFORM: tl.constexpr,
    PRECISION: tl.constexpr,
    NORM: tl.constexpr,
    FORMAT: tl.constexpr,
    RULE: tl.constexpr,
    G: tl.constexpr,
    RATIO: tl.constexpr,
    BASE: tl.constexpr,
):
    """Public layout: codes [rows, K/2], low nibble = even k; E8M0 or E4M3 bytes [rows, K/G]."""
    first = tl.program_id(0) * W
    columns = first + tl.arange(0, W)
    pairs = first // 2 + tl.arange(0, W // 2)
    group = first // G + tl.arange(0, W // G)
    ratio = groups.load_ratio(g_ptr, RATIO, BASE)
    t = transform_tile(t_ptr, first, D, W, T_STRIDE) if TRANSFORM else 0
    start = tl.program_id(1) * (ROW_TILES * BLOCK_M)
    for i in range(ROW_TILES):
        row = start + i * BLOCK_M + tl.arange(0, BLOCK_M)
        wide = row.to(tl.int64)[:, None]
        mask = (row < rows)[:, None]
        x = tl.load(x_ptr + wide * K + columns[None, :], mask=(row < M)[:, None], other=0.0)
        v = tl.reshape(rotate(x, t, TRANSFORM, PRECISION, NORM), [BLOCK_M, W // G, G])
        amax = groups.magnitude(v)
        if FORMAT == "mxfp4":
            r, byte = groups.mxfp4_units(v, amax, ratio, RATIO, RULE)
        else:
            r, _, byte = groups.nvfp4_units(v, amax, ratio, RATIO, e2m1.CODE_UNIT)
        code = e2m1.codes(r).to(tl.uint8)
        low, high = tl.split(tl.reshape(code, [BLOCK_M, W // 2, 2]))
        tl.store(codes_ptr + wide * (K // 2) + pairs[None, :], low | (high << 4), mask=mask)
        stored = tl.reshape(byte, [BLOCK_M, W // G]).to(tl.uint8)
        tl.store(scales_ptr + wide * (K // G) + group[None, :], stored, mask=mask)
